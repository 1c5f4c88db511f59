"""The demo page in a real browser, at the widths of a desk and of a telephone, with the network away."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, complaints, requested
from offline_copy import python_of, read_page

pytestmark = pytest.mark.slow

REPO = Path(__file__).parent.parent
GARMENTS = REPO / "images" / "fashion_mnist"
PATIENCE = 120

# Python runs a module of this name at its start: here it writes down every host that the server turns to.
WATCH = """
import os, sys

def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", None):
        with open(os.environ["WATCHED"], "a") as file:
            print(host, file=file)

sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server in a process of its own: its address, and the file with the hosts that it turned to."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text(WATCH)
    watched = folder / "hosts.txt"
    watched.touch()
    variables = {
        "PYTHONPATH": f"{folder}{os.pathsep}{REPO}",
        "WATCHED": str(watched),
        "TMPDIR": str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "HARDNET_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "hardnet", "demo", "--port", "0"]
    with subprocess.Popen(
        command, env=os.environ | variables, cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.fullmatch(r"hardnet: (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", line)
            assert found, line
            yield found[1], watched
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
    assert not list(folder.glob("hardnet-demo-*"))  # it takes its pictures along


def test_a_space_serves_the_page(tmp_path: Path) -> None:
    """app.py of docs/demo.md, started as a Hugging Face Space starts it."""
    [code] = python_of(read_page("docs/demo.md"))
    (tmp_path / "app.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "SPACE_HOST": "a.hf.space"}
    more = {"PYTHONPATH": str(REPO), "HARDNET_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | variables | more, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == f"hardnet: http://127.0.0.1:{port} (Ctrl-C ends)\n".encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Host": "a.hf.space"})
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310  (http)
                assert b"HarDNet" in response.read()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


@pytest.fixture(params=[(1280, 1000), (390, 844)], ids=["desk", "telephone"])
def page(request: pytest.FixtureRequest, server: tuple[str, Path], tmp_path: Path) -> Iterator[Any]:
    with browser(*request.param, tmp_path / "profile") as driver:
        driver.get(server[0])
        wait(driver, lambda: elements(driver, "#examples button"))
        yield driver


def elements(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def wait(driver: Any, condition: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]
    return WebDriverWait(driver, PATIENCE, ignored_exceptions=ignored).until(lambda _: condition())


def upload(driver: Any, path: Path) -> None:
    """Put a file into the field, as dropping it would; a picture that is there has to go first."""
    for close in elements(driver, "#image button[aria-label='Clear']"):
        close.click()
    field = wait(driver, lambda: elements(driver, "#image input[type=file]"))[0]
    field.send_keys(str(path))


def label(driver: Any) -> str:
    return "".join(element.text for element in elements(driver, "#top [data-testid=label-output-value]"))


def problem(driver: Any) -> str:
    return "".join(element.get_property("value") for element in elements(driver, "#problem textarea"))


def choose(driver: Any, field: str, option: str) -> None:
    elements(driver, f"#{field} input")[0].click()
    [entry] = wait(driver, lambda: elements(driver, f"[role=option][aria-label='{option}']"))
    entry.click()


def check_nothing_left(driver: Any, address: str, watched: Path) -> None:
    urls = requested(driver)
    assert any(url.startswith(f"{address}/gradio_api/") for url in urls)  # the log tells something at all
    assert {url for url in urls if not url.startswith(address)} == set()
    assert complaints(driver) == []
    assert watched.read_text() == ""


def test_a_visit(page: Any, server: tuple[str, Path], tmp_path: Path) -> None:
    """Upload, example, broken file, upload again: labels and errors are read off the page."""
    upload(page, GARMENTS / "sneaker-00009.png")
    wait(page, lambda: label(page) == "Sneaker")
    bars = wait(page, lambda: elements(page, "#top meter"))
    shares = [float(bar.get_attribute("value")) for bar in bars]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < shares[0] < sum(shares) < 1.001
    assert elements(page, "#facts textarea")[0].get_property("value").startswith("Read and prepared in ")
    for name in ("seen", "looked"):
        [picture] = wait(page, lambda name=name: elements(page, f"#{name} img"))
        wait(page, lambda picture=picture: picture.get_property("naturalWidth") == 256)

    [trouser] = [e for e in elements(page, "#examples button") if "trouser" in e.get_attribute("innerHTML")]
    trouser.click()
    wait(page, lambda: label(page) == "Trouser")

    (tmp_path / "broken.png").write_bytes((GARMENTS / "bag-00018.png").read_bytes()[:300])
    upload(page, tmp_path / "broken.png")
    told = wait(page, lambda: problem(page))
    assert re.fullmatch(r"broken\.png: cannot be read: .*", told), told
    assert label(page) == ""

    upload(page, GARMENTS / "bag-00018.png")
    wait(page, lambda: label(page) == "Bag")
    assert problem(page) == ""
    page.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    width, inner = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= inner  # nothing sticks out at the side
    check_nothing_left(page, *server)


def test_weights_that_cannot_be_loaded(page: Any, server: tuple[str, Path]) -> None:
    upload(page, GARMENTS / "coat-00006.png")
    wait(page, lambda: label(page) == "Coat")
    assert "ten garments" in elements(page, "#garments")[0].text
    assert not [each for each in elements(page, "#photographs") if each.is_displayed()]
    choose(page, "model", "hardnet85")
    wait(page, lambda: [each for each in elements(page, "#photographs") if each.is_displayed()])
    assert not [each for each in elements(page, "#garments") if each.is_displayed()]
    told = wait(page, lambda: problem(page))
    assert told.startswith("The weights IMAGENET1K_V1 of hardnet85 could not be loaded.")
    assert label(page) == ""
    choose(page, "weights", "IMAGENET1K_V2")
    wait(page, lambda: "IMAGENET1K_V2 of hardnet85" in problem(page))
    choose(page, "model", "hardnet39ds")
    wait(page, lambda: "IMAGENET1K_V2 of hardnet39ds" in problem(page))
    choose(page, "weights", "FASHION_MNIST")
    wait(page, lambda: label(page) == "Coat")
    check_nothing_left(page, *server)
