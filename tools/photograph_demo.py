"""Take the picture of the demo page that the documentation shows, docs/pictures/demo.png, with Chromium."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO / "tests"))

from browser import browser, emulate  # noqa: E402
from test_demo_browser import SIZES, elements, serving, visit, wait  # noqa: E402

if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as (address, _),
        browser(Path(folder, "profile")) as driver,
    ):
        emulate(driver, *SIZES["desk"], "light")
        visit(driver, address)
        elements(driver, "[data-example^=bag]")[0].click()
        wait(driver, lambda: elements(driver, ".result"))
        driver.execute_async_script("setTimeout(arguments[0], 500)")  # until what fades has faded
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        picture.crop((0, 0, 1280, 740)).save(REPO / "docs" / "pictures" / "demo.png", optimize=True)
