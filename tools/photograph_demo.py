"""Take pictures of the demo page in all its states with Chromium, and the one that the documentation shows.

python tools/photograph_demo.py FOLDER

FOLDER gets STATE-SIZE-LANGUAGE-THEME.png; docs/pictures/demo.png is replaced.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from hardnet.demo.texts import LANGUAGES

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO / "tests"))

from browser import browser, emulate  # noqa: E402
from test_demo_browser import CAT, GARMENTS, SIZES, choose, elements, serving, upload, visit, wait  # noqa: E402

STATES = ("empty", "result", "photograph", "table", "loading", "problem")


def show(driver: Any, state: str, broken: Path) -> None:
    """Bring the page into a state."""
    ends = {"photograph": ".result", "loading": "progress[max]"}
    if state == "result":
        elements(driver, "[data-example^=sandal]")[0].click()
    elif state == "table":
        upload(driver, *sorted(GARMENTS.glob("*.png"))[::4], CAT, broken)
    elif state == "problem":
        upload(driver, broken)
    elif state in ends:
        choose(driver, "hardnet39ds/IMAGENET1K_V1" if state == "photograph" else "hardnet85/IMAGENET1K_V1")
        elements(driver, "[data-example='cat.jpg']")[0].click()
    wait(driver, lambda: elements(driver, ends.get(state, f".{state}")))
    driver.execute_async_script("setTimeout(arguments[0], 500)")  # until what fades has faded


def main() -> None:
    """Photograph every state, size, language and theme."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (address, _):
        broken = Path(folder, "broken.png")
        broken.write_bytes(b"no picture")
        for language in LANGUAGES:
            with browser(Path(folder, language), language) as driver:
                for size, theme, state in itertools.product(SIZES, ("light", "dark"), STATES):
                    emulate(driver, *SIZES[size], theme)
                    visit(driver, address)
                    show(driver, state, broken)
                    driver.save_screenshot(str(target / f"{state}-{size}-{language}-{theme}.png"))
    with Image.open(target / "result-desk-en-light.png") as picture:
        picture.convert("RGB").crop((0, 0, 1280, 740)).save(REPO / "docs" / "pictures" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
