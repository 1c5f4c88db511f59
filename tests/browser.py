"""Chromium without a screen, for the tests of pages: what it asked for, what it complained of, what axe-core finds."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def browser(profile: Path, language: str = "en") -> Iterator[Any]:
    """A browser whose pages are asked for in this language; :func:`emulate` sets the size."""
    from selenium import webdriver

    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.fail("this test needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for option in (*OPTIONS, f"--user-data-dir={profile}", f"--lang={language}"):
        options.add_argument(option)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    try:
        driver.get_log("performance")  # what the empty start page did
        yield driver
    finally:
        driver.quit()


def emulate(driver: Any, width: int, height: int, theme: str = "light") -> None:
    """Set the size in pixels, since phones are narrower than any window may be, and the theme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def requested(driver: Any) -> set[str]:
    """Every address that pages asked for since the last call, web sockets included."""
    urls = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.add(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            urls.add(message["params"]["url"])
    return {url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}


def complaints(driver: Any) -> list[str]:
    """The errors of the console since the last call, refused loads among them."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def accessibility_violations(driver: Any) -> list[str]:
    """What axe-core finds on the page as it is: rule, and the elements."""
    script = Path(find_spec("axe_playwright_python").submodule_search_locations[0], "axe.min.js").read_text("utf-8")
    driver.execute_script(script)
    run = "axe.run().then(({violations}) => arguments[0](violations.map(v => [v.id, ...v.nodes.map(n => n.html)])))"
    return [": ".join(each)[:1000] for each in driver.execute_async_script(run)]
