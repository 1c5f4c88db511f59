"""The demo page in a real browser: two sizes, two languages, light and dark, with the network away."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import accessibility_violations, browser, complaints, emulate, requested
from http_server import Handler, running, serve
from offline_copy import python_of, read_page
from PIL import Image

import hardnet

pytestmark = pytest.mark.slow

REPO = Path(__file__).parent.parent
GARMENTS = REPO / "images" / "fashion_mnist"
CAT = REPO / "images" / "cat.jpg"
PATIENCE = 120
arrive = threading.Event()
"""When the second half of a slow download may arrive."""
SIZES = {"desk": (1280, 900), "phone": (390, 844)}

# Python runs a module of this name at its start. Here it writes down every host that the server turns to, and enters a
# server of the test as the source of all weights.
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

if sys.argv[:1] == ["-m"]:
    from dataclasses import replace
    from hardnet.weights.catalog import CATALOG, Digest, Source

    source = Source(os.environ["SOURCE"] + "/{}.pth", Digest("sha256", os.environ["SHA256"]))
    for key, record in CATALOG.items():
        if key[1] != "FASHION_MNIST":
            CATALOG[key] = replace(record, sources=(replace(source, url=source.url.format(key[0])),))
"""


@contextmanager
def started(folder: Path, variables: dict[str, str], *arguments: str) -> Iterator[str]:
    """A Python process that serves the page: its address."""
    command, environment = [sys.executable, *arguments], os.environ | variables
    with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            match = re.fullmatch(r"hardnet: (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", line)
            assert match, line
            yield match[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """The page's server in a process of its own: its address, and the file with the hosts that it turned to.

    It downloads random weights as those of hardnet39ds; of the others it gets, slowly, a file that is not right.
    """
    path = folder / "random.pth"
    torch.save(hardnet.create_model("hardnet39ds").state_dict(), path)
    content = path.read_bytes()

    def slowly(handler: Handler) -> None:
        half = b"PK\x03\x04" + bytes(9_999_996)
        handler.start(200, {"Content-Length": str(2 * len(half))})
        handler.wfile.write(half)
        arrive.wait(15)
        handler.wfile.write(half)

    (folder / "sitecustomize.py").write_text(WATCH)
    watched = folder / "hosts.txt"
    watched.touch()
    with running() as source:
        source.on("/hardnet39ds.pth", serve(content))
        for name in ("hardnet68ds", "hardnet68", "hardnet85"):
            source.on(f"/{name}.pth", slowly)
        variables = {
            "PYTHONPATH": f"{folder}{os.pathsep}{REPO}",
            "WATCHED": str(watched),
            "SOURCE": source.url,
            "SHA256": hashlib.sha256(content).hexdigest(),
            "TMPDIR": str(folder),
            "TORCH_HOME": str(folder / "torch"),
            "OMP_NUM_THREADS": "1",
        }
        with started(folder, variables, "-m", "hardnet", "demo", "--port", "0", *options) as address:
            yield address, watched
    assert not list(folder.glob("hardnet-demo-*"))  # it takes its pictures along


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with serving(tmp_path_factory.mktemp("server")) as address_and_log:
        yield address_and_log


def test_a_space_serves_the_page(tmp_path: Path) -> None:
    """app.py of docs/demo.md, started as a Hugging Face Space starts it."""
    [code] = python_of(read_page("docs/demo.md"))
    (tmp_path / "app.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "SPACE_HOST": "a.hf.space"}
    more = {"PYTHONPATH": str(REPO), "HARDNET_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with started(tmp_path, variables | more, "app.py") as address:
        assert address == f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Host": "a.hf.space"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310  (http)
            assert b"HarDNet" in response.read()


@pytest.fixture(scope="module", params=["en", "ko"])
def any_language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    with browser(tmp_path_factory.mktemp("profile"), request.param) as driver:
        yield driver, request.param


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, server: tuple[str, Path], english: Any) -> Iterator[Any]:
    emulate(english, *SIZES[request.param])
    visit(english, server[0])
    yield english
    check_nothing_left(english, *server)


def visit(driver: Any, address: str) -> None:
    driver.get(address)
    wait(driver, lambda: elements(driver, "#about") and text(driver, "#about"))


def elements(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def text(driver: Any, selector: str) -> str:
    return " ".join(element.text for element in elements(driver, selector))


def wait(driver: Any, condition: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]
    return WebDriverWait(driver, PATIENCE, ignored_exceptions=ignored).until(lambda _: condition())


def upload(driver: Any, *paths: Path) -> None:
    """Put files into the field, as dropping them would."""
    elements(driver, "#drop input")[0].send_keys("\n".join(map(str, paths)))


def top(driver: Any) -> str:
    return text(driver, ".result h2 span")


def choose(driver: Any, value: str) -> None:
    elements(driver, f"#choice option[value='{value}']")[0].click()


def shown_map(driver: Any) -> str:
    [image] = [image for image in elements(driver, ".map") if image.is_displayed()]
    return str(image.get_attribute("alt"))


def check_nothing_left(driver: Any, address: str, watched: Path) -> None:
    urls = requested(driver)
    assert any(url.startswith(f"{address}/gradio_api/") for url in urls)  # the log tells something at all
    assert {url for url in urls if not url.startswith((address, f"blob:{address}"))} == set()
    assert complaints(driver) == []
    assert watched.read_text() == ""


def check_layout(driver: Any) -> None:
    """Nothing sticks out at the side or is wider than its box; at a desk nothing has to be scrolled to."""
    driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    width, height, inner_width, inner_height, cut = driver.execute_script(
        "const e = document.documentElement;"
        "const cut = [...document.querySelectorAll('#page *')].filter(e => e.clientWidth && e.scrollWidth > "
        "e.clientWidth + 1 && !e.matches('.spoken, .drop small span'));"
        "return [e.scrollWidth, e.scrollHeight, innerWidth, innerHeight, cut.map(e => e.outerHTML.slice(0, 200))]"
    )
    assert cut == []
    assert width <= inner_width
    assert height <= inner_height or inner_width < 500
    drop, result = (elements(driver, selector)[0] for selector in ("#drop", "#result"))
    if inner_width < 500 and result.is_displayed():  # the result stands directly below the picture
        assert 0 <= result.rect["y"] - drop.rect["y"] - drop.rect["height"] < 40


def test_results_maps_and_errors_appear(page: Any, tmp_path: Path) -> None:
    """Upload, example, broken file, upload again, as a visitor sees them."""
    check_layout(page)
    upload(page, GARMENTS / "shirt-00004.png")
    wait(page, lambda: top(page) == "Shirt")
    check_layout(page)
    shares = [float(e.text.rstrip("%")) for e in elements(page, "fieldset span:nth-of-type(2)")]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert 50 < shares[0] < sum(shares) < 100.3
    assert "ten garments only" in text(page, ".note")
    assert "the picture at 64 x 64 pixels" in text(page, ".result")
    assert "8 x 8 cells" in text(page, ".result")
    assert re.search(r"PyTorch eager, fp32, CPU, warm: network \d+\.\d ms", text(page, ".facts"))
    [preview] = elements(page, ".drop img")
    assert min(preview.size.values()) > 100  # not a stamp of 28 pixels
    assert preview.value_of_css_property("image-rendering") == "pixelated"

    assert shown_map(page) == "Evidence for Shirt"
    elements(page, "fieldset label")[2].click()
    third = text(page, "fieldset label:nth-of-type(3) span:nth-of-type(1)")
    assert shown_map(page) == f"Evidence for {third}"
    page.execute_script("arguments[0].focus()", elements(page, "[type=range]")[0])
    elements(page, "[type=range]")[0].send_keys("\ue011")  # the key Home
    wait(page, lambda: page.execute_script("return getComputedStyle(document.querySelector('.map')).opacity") == "0")

    elements(page, "[data-example^=trouser]")[0].click()
    wait(page, lambda: top(page) == "Trouser")
    assert shown_map(page) == "Evidence for Trouser"
    assert not elements(page, ".note")

    (tmp_path / "broken.png").write_bytes((GARMENTS / "bag-00018.png").read_bytes()[:300])
    upload(page, tmp_path / "broken.png")
    message = wait(page, lambda: text(page, ".problem"))
    assert message == "This file is not a picture that can be read here\nbroken.png"
    assert not elements(page, "#page img:not(.examples img)")  # no empty boxes
    check_layout(page)

    with Image.open(GARMENTS / "coat-00006.png") as picture:
        picture.convert("CMYK").save(tmp_path / "coat.tiff")
    upload(page, tmp_path / "coat.tiff")
    wait(page, lambda: top(page) == "Coat")
    wait(page, lambda: elements(page, ".drop img")[0].get_property("naturalWidth") == 28)


def test_rows_of_the_table_open_their_pictures(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_bytes(b"no picture")
    upload(page, GARMENTS / "trouser-00002.png", GARMENTS / "bag-00018.png", tmp_path / "notes.png")
    wait(page, lambda: elements(page, ".table"))
    check_layout(page)
    rows = [row.text for row in elements(page, "tbody th")]
    assert rows == ["trouser-00002.png", "bag-00018.png", "notes.png"]
    assert text(page, "p.bad") == "1 of 3 files could not be read."
    assert accessibility_violations(page) == []

    elements(page, "[data-open='1']")[0].click()
    wait(page, lambda: top(page) == "Bag")
    assert len(elements(page, ".map")) == 5
    assert "bag-00018.png" in text(page, ".drop")
    assert accessibility_violations(page) == []
    elements(page, "[data-back]")[0].click()
    wait(page, lambda: len(elements(page, "tbody tr")) == 3)
    assert text(page, ".drop b") == "3 pictures"
    assert page.switch_to.active_element.get_attribute("data-open") == "1"
    elements(page, "[data-open='0']")[0].click()
    wait(page, lambda: top(page) == "Trouser")


def test_downloads_show_progress_and_failures_a_reason(page: Any) -> None:
    upload(page, CAT)
    wait(page, lambda: top(page))
    arrive.clear()
    choose(page, "hardnet85/IMAGENET1K_V1")
    wait(page, lambda: "10.0 of 20.0 MB downloaded" in text(page, ".waiting"))
    arrive.set()
    message = wait(page, lambda: text(page, ".problem"))
    assert message.startswith("HarDNet-85 IMAGENET1K_V1 could not be loaded\nThe file that was received is damaged.\n")
    check_layout(page)
    assert [e.get_attribute("data-example") for e in elements(page, "[data-example]") if e.is_displayed()] == [
        "camera.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"
    ]  # fmt: skip
    elements(page, ".problem [data-choose]")[0].click()
    wait(page, lambda: top(page) and "FASHION_MNIST" in text(page, ".facts"))
    arrive.clear()
    choose(page, "hardnet68/IMAGENET1K_V1")
    wait(page, lambda: "10.0 of 20.0 MB downloaded" in text(page, ".waiting"))
    choose(page, "hardnet39ds/FASHION_MNIST")
    wait(page, lambda: top(page))  # without waiting for the download
    arrive.set()
    time.sleep(2)
    assert top(page)  # and not replaced when the download ends
    elements(page, "[data-choose]")[0].click()
    wait(page, lambda: "HarDNet-39DS IMAGENET1K_V1" in text(page, ".facts"))
    assert len(elements(page, ".map")) == 5
    check_layout(page)


def test_a_run_shows_its_classes_and_validation_pictures(tmp_path: Path, english: Any) -> None:
    """The page of a run that was saved: its classes, its validation pictures as examples, and the crop's frame."""
    run, data = tmp_path / "run", tmp_path / "data"
    names = [f"{label}/{number}.jpg" for label in ("<b>cat", "paper") for number in range(3)]
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 60), 80).save(data / name)
    model = hardnet.create_model("hardnet39ds", num_classes=2)
    model.save_pretrained(run, labels=["<b>cat", "paper"])
    (run / "options.json").write_text(json.dumps({"data": str(data)}))
    (run / "validation_images.txt").write_text("".join(f"{name}\n" for name in names))
    with serving(tmp_path, "--weights", str(run)) as (address, watched):
        emulate(english, *SIZES["desk"])
        visit(english, address)
        assert text(english, "#about") == "2 classes: <b>cat, paper."
        examples = [e for e in elements(english, "[data-example]") if e.is_displayed()]
        assert sorted(e.get_attribute("data-example") for e in examples) == names
        assert examples[1].find_element("css selector", "img").get_attribute("alt") in ("<b>cat", "paper")
        examples[1].click()
        wait(english, lambda: top(english) in ("<b>cat", "paper"))
        frame, stack = elements(english, ".crop")[0].rect, elements(english, ".stack")[0].rect
        assert frame["width"] == pytest.approx(frame["height"], abs=2)
        assert frame["height"] == pytest.approx(stack["height"] * 224 / 256, abs=2)
        check_nothing_left(english, address, watched)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(
    size: str, theme: str, any_language: tuple[Any, str], server: tuple[str, Path], tmp_path: Path
) -> None:
    """axe-core finds nothing, and nothing is cut off: empty, with a result, with an error."""
    driver, language = any_language
    emulate(driver, *SIZES[size], theme)
    visit(driver, server[0])
    assert driver.execute_script("return document.documentElement.lang") == language
    assert ("예제" if language == "ko" else "Examples") in text(driver, "#options")
    assert accessibility_violations(driver) == []
    check_layout(driver)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for path, state in ((GARMENTS / "sneaker-00009.png", ".result"), (tmp_path / "broken.png", ".problem")):
        upload(driver, path)
        wait(driver, lambda state=state: elements(driver, state))
        assert accessibility_violations(driver) == []
        check_layout(driver)


def test_the_keyboard_reaches_examples_and_maps(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    reached = []
    for _ in range(40):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focus = page.switch_to.active_element
        reached.append(focus.get_attribute("data-example") or focus.get_attribute("type") or focus.get_attribute("id"))
        outline = page.execute_script(
            "const e = document.activeElement; return getComputedStyle(e.closest('.drop') || e).outlineStyle"
        )
        assert outline == "solid" or focus.tag_name == "body"
        if reached[-1] and reached[-1].startswith("sandal"):
            ActionChains(page).send_keys(Keys.ENTER).perform()
            wait(page, lambda: top(page) == "Sandal")
            break
    else:
        pytest.fail(f"the Tab key reached only {reached}")
    assert "file" in reached
    page.execute_script("document.querySelector('[name=class]').focus()")
    ActionChains(page).send_keys(Keys.ARROW_DOWN).perform()
    assert shown_map(page) != "Evidence for Sandal"
