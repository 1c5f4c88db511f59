"""Take the picture of the demo page that the documentation shows: the page must be running, Chromium installed.

python -m hardnet demo &
python tools/photograph_demo.py http://127.0.0.1:7860 docs/pictures/demo.png [WIDTH HEIGHT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import browser
from test_demo_browser import elements, label, wait


def main() -> None:
    """Click the sandal and photograph what comes."""
    address, target, *size = sys.argv[1:]
    width, height = map(int, size or ("1100", "850"))
    with tempfile.TemporaryDirectory() as profile, browser(width, height, Path(profile)) as driver:
        driver.get(address)
        wait(driver, lambda: elements(driver, "#examples button"))
        [button] = [e for e in elements(driver, "#examples button") if "sandal" in e.get_attribute("innerHTML")]
        button.click()
        wait(driver, lambda: label(driver) == "Sandal" and elements(driver, "#looked img"))
        driver.execute_async_script("setTimeout(arguments[0], 1000)")  # until what fades has faded
        driver.save_screenshot(target)
    with Image.open(target) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(target, optimize=True)


if __name__ == "__main__":
    main()
