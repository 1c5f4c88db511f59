"""The demo page's server: what it shows, what it refuses, and what it does not give away. No browser is needed."""

import asyncio
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

import hardnet
from hardnet import cli
from hardnet.demo import guard
from hardnet.demo import page as demo
from hardnet.demo.choices import list_choices, sample_images, validation_pictures
from hardnet.demo.texts import translate
from hardnet.demo.view import look
from hardnet.inference.gradcam import explain

pytest.importorskip("gradio")

REPO = Path(__file__).parent.parent
PACKAGED = ("hardnet39ds", "FASHION_MNIST")
SNEAKER = REPO / "images" / "fashion_mnist" / "sneaker-00009.png"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDNET_OFFLINE", "1")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        choices = list_choices()
        app = demo.build_app(choices, hosts=["example.org"], max_bytes=200_000, max_stored=3_000_000)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client


# Results.


@pytest.fixture(scope="module")
def classifier() -> hardnet.Classifier:
    return hardnet.Classifier("hardnet39ds", weights="FASHION_MNIST", engine="eager")


def test_a_view_has_the_picture_the_classes_and_a_map_of_each(classifier: hardnet.Classifier) -> None:
    view = look(classifier, hardnet.load_image(SNEAKER))
    [expected] = classifier.predict(SNEAKER)
    predictions = [(p.label, p.probability) for p in view.result.predictions]
    assert predictions == [(p.label, p.probability) for p in expected.predictions]
    assert predictions[0][0] == "Sneaker"
    assert (view.box, view.side, view.cells) == ((0, 0, 1, 1), 64, 8)
    assert look(classifier, Image.new("RGB", (2000, 1000))).box == (0.25, 0, 0.5, 1)
    for prediction, activation in zip(expected.predictions, view.maps, strict=True):
        assert torch.equal(activation, explain(classifier, SNEAKER, label=prediction.label).activation)
    assert view.network > 0
    assert view.prepared > 0


def test_samples_are_one_garment_per_class_and_each_photograph_once() -> None:
    garments, photographs = sample_images()
    assert len({name.rsplit("-", 1)[0] for name in garments}) == len(garments) == 10
    assert sorted(photographs) == ["camera.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"]


@pytest.mark.parametrize("listed", [True, False])
def test_examples_of_a_run_are_validation_pictures_of_every_class(listed: bool, tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9)]
    for folder in ("train",) if listed else ("train", "Valid"):
        for name in names[:-1] if folder == "Valid" else names:
            (tmp_path / "data" / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / folder / name)
    (tmp_path / "options.json").write_text(json.dumps({"data": str(tmp_path / "data")}))
    if listed:
        (tmp_path / "validation_images.txt").write_text("".join(f"{name}\n" for name in names[1:]))
    examples = validation_pictures(tmp_path)
    assert sorted(examples) == names[listed : 5 + listed] + names[9:14]
    assert {path.parts[-3] for path in examples.values()} == {"train" if listed else "Valid"}
    assert validation_pictures(tmp_path / "data") == {}


def test_all_texts_of_the_catalogue_are_translated() -> None:
    for record in hardnet.weights.catalog.CATALOG.values():
        for text in (record.evaluated_on, record.reported_by):
            assert translate("ko", text)
    for label in hardnet.get_weights(*PACKAGED).categories:
        assert not translate("ko", label).isascii()


# Refusals in words.


def upload(client: Any, name: str, content: bytes) -> Any:
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def run(client: Any, *files: object, **more: object) -> str:
    """Do what the page does when pictures are there; returns the result as HTML."""
    order = {"language": "en", "choice": "hardnet39ds/FASHION_MNIST", "example": "", "files": list(files)} | more
    message = call(client, [order])
    assert message["success"]
    return str(message["output"]["data"][1])


def call(client: Any, data: list[object]) -> dict[str, Any]:
    functions = client.get("/config").json()["dependencies"]
    number = next(f["id"] for f in functions if any(name == "submit" for _, name in f["targets"]))
    order = {"data": data, "fn_index": number, "session_hash": "test"}
    joined = client.post("/gradio_api/queue/join", json=order)
    assert joined.status_code == 200, joined.text
    lines = client.get("/gradio_api/queue/data", params={"session_hash": "test"}).text.splitlines()
    messages = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")


def test_an_uploaded_picture_is_classified_and_deleted(client: Any) -> None:
    [path] = upload(client, SNEAKER.name, SNEAKER.read_bytes()).json()
    content = run(client, [path, "<b>.png", ""])
    assert "Sneaker</span> 99" in content
    assert "These weights know ten garments only" in content
    assert not Path(path).exists()
    assert "These weights" not in run(client, example="sneaker-00009.png")
    assert "no longer on the server" in run(client, [path, "<b>.png", ""])


def test_several_pictures_make_a_table(client: Any) -> None:
    [path] = upload(client, SNEAKER.name, SNEAKER.read_bytes()).json()
    content = run(client, [path, "<b>.png", ""], ["", "=big.png", "large"], language="ko")
    assert "&lt;b&gt;.png" in content
    assert "<td>운동화</td>" in content
    assert "파일이 20 MiB보다 큽니다" in content
    assert "파일 2개 중 1개를" in content
    assert not Path(path).exists()
    [link] = re.findall("href='data:text/csv;charset=utf-8,(.*?)'", content)
    good, bad = csv.DictReader(unquote(link).splitlines())
    assert (good["source"], good["label"], good["error"]) == ("<b>.png", "Sneaker", "")
    assert float(good["probability"]) > 0.9
    assert (bad["source"], bad["label"], bad["error"]) == ("'=big.png", "", "파일이 20 MiB보다 큽니다")


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("notes.png", "FASHION_MNIST", "This file is not a picture that can be read here"),
        ("coat-00006.png", "IMAGENET1K_V1", "This server does not reach the internet."),
    ],
)
def test_errors_are_in_visitors_words(client: Any, name: str, tag: str, words: str) -> None:
    file = next((REPO / "images").rglob(name), None)
    [path] = upload(client, name, file.read_bytes() if file else b"no picture").json()
    content = run(client, [path, name, ""], choice=f"hardnet39ds/{tag}")
    assert "class='card problem'" in content
    assert words in content
    assert not Path(path).exists()
    for secret in (str(Path(path).parent), "HARDNET_", "TORCH_HOME", "://", "Traceback"):
        assert secret not in content


@pytest.mark.parametrize(
    "more",
    [
        {"choice": "hardnet39ds/NONE"},
        {"choice": 1},
        {"example": "../README.md"},
        {"files": [1]},
        {"files": [["\0", "a.png", ""]]},
    ],
)
def test_malformed_orders_get_an_error(client: Any, more: dict[str, object]) -> None:
    assert "The server failed" in run(client, **more)


# Requests.


def test_large_requests_are_refused(client: Any) -> None:
    assert upload(client, "a.png", bytes(150_000)).status_code == 200
    assert upload(client, "a.png", bytes(220_000)).status_code == 413
    files = [("files", (f"{number}.png", bytes(150_000))) for number in range(2)]
    assert client.post("/gradio_api/upload", files=files).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"more ", b"and more"])).status_code == 411


def test_uploads_end_when_the_storage_is_full(client: Any) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    (folder / "other.bin").write_bytes(bytes(2_900_000))
    try:
        assert upload(client, "b.png", bytes(150_000)).status_code == 503
        assert client.get("/").status_code == 200
    finally:
        (folder / "other.bin").unlink()
    assert upload(client, "b.png", bytes(150_000)).status_code == 200


@pytest.mark.parametrize(("stored", "status"), [(0, 408), (900_000, 503)])
def test_idle_uploads_end_and_keep_nobody_from_uploading(
    stored: int, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Twenty promise many bytes and send few; if the storage is full by then, they end at once."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    monkeypatch.setattr(guard, "CHECK_BYTES", 100)

    import fastapi
    import httpx

    app = fastapi.FastAPI()

    @app.post("/")
    async def read(request: fastapi.Request) -> None:
        await request.body()

    async def upload(client: httpx.AsyncClient, promised: int, sent: int) -> int:
        async def body() -> AsyncIterator[bytes]:
            (tmp_path / "other.bin").write_bytes(bytes(stored))
            yield bytes(sent)
            await asyncio.sleep(60 if sent < promised else 0)

        response = await client.post("/", content=body(), headers={"content-length": str(promised)})
        return response.status_code

    async def visits() -> list[int]:
        transport = httpx.ASGITransport(guard.Guard(app, [], 500_000, 800_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(upload(client, 50, 50), *(upload(client, 500_000, 200) for _ in range(20)))

    assert asyncio.run(visits()) == [200] + [status] * 20


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("[::1]:7860", "http://[::1]:7860", 200),
        ("localhost", "https://localhost", 200),
        ("Example.org", "https://example.org", 200),
        ("127.0.0.1:7860", "https://example.org", 200),  # nginx passes the address that it turns to
        ("example.org", "https://example.org:8443", 200),
        ("attacker.example", None, 421),  # DNS rebinding
        ("attacker.example", "http://attacker.example", 421),
        ("127.0.0.1.attacker.example", None, 421),
        ("", None, 421),
        ("[::1", None, 421),
        ("127.0.0.1:7860", "https://attacker.example", 403),  # a form of another site
        ("127.0.0.1:7860", "http://127.0.0.1:8000", 403),
        ("127.0.0.1:7860", "null", 403),
        ("127.0.0.1:7860", "https://[", 403),
    ],
)
def test_only_own_pages_are_served(client: Any, host: str, origin: str | None, status: int) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert client.get("/", headers=headers).status_code == status
    sent = client.post("/gradio_api/upload", headers=headers, files={"files": ("a.png", b"1")})
    assert sent.status_code == status


def test_errors_of_the_server_give_nothing_away(client: Any) -> None:
    response = client.get("/static/" + "a" * 5000)
    assert (response.status_code, response.text) == (500, "Internal Server Error")


# Files of the server.

SECRET = ["/etc/passwd", str(REPO / "README.md"), "README.md", "pyproject.toml", str(Path(demo.__file__)), str(SNEAKER)]


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/"])
def test_no_file_of_the_server_can_be_fetched(client: Any, route: str) -> None:
    for path in SECRET:
        for spelled in (path, path.replace("/", "%2F"), "../" * 12 + path.lstrip("/"), "..%2F" * 12 + path.lstrip("/")):
            response = client.get(route + spelled)
            assert response.status_code in (403, 404, 405, 400), (spelled, response.status_code)
            assert b"root:" not in response.content
            assert b"HarDNet for" not in response.content


@pytest.mark.parametrize("path", [str(SNEAKER), "images/fashion_mnist/sneaker-00009.png", "/etc/passwd", "{}", "{}/.."])
def test_no_file_of_the_server_can_be_classified(client: Any, path: str) -> None:
    folder = os.environ["GRADIO_TEMP_DIR"]
    for spelled in (path.format(folder), folder + "/.." * 12 + path):
        assert "The server failed" in run(client, [spelled, "a.png", ""])
    assert SNEAKER.exists()


@pytest.mark.parametrize("more", [{}, {"is_stream": True}, {"url": "https://example.org/cat.jpg"}])
@pytest.mark.parametrize("path", [str(SNEAKER), "https://example.org/cat.jpg"])
def test_gradio_neither_copies_nor_fetches_files(
    client: Any, path: str, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", lambda *a, **k: calls.append(a))
    before = sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    message = call(client, [{"path": path, "meta": {"_type": "gradio.FileData"}} | more])
    assert not message["success"] or "The server failed" in json.dumps(message)
    assert not calls
    assert sorted(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == before


def test_every_answer_keeps_the_browser_at_home(client: Any) -> None:
    assert not list(Path(demo.__file__).parent.glob("*.pyi"))  # Gradio writes such files
    for path in ("/", "/theme.css", "/gradio_api/file=/etc/passwd"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self' ")
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


# The command.


def test_an_error_names_the_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--port", "0"]) == 2
    assert 'pip install "gradio>=' in capsys.readouterr().err


def test_a_taken_port_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert cli.main(["demo", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}: " in capsys.readouterr().err


def test_only_this_machine_is_served_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def listen(host: str, port: int) -> socket.socket:
        calls.append((host, port))
        raise ValueError("enough")

    monkeypatch.setattr(demo, "_listen", listen)
    for variables in ({}, {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "7000"}):  # noqa: S104
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["demo"]) == 2
    assert calls == [("127.0.0.1", 7860), ("0.0.0.0", 7000)]  # noqa: S104
    monkeypatch.setattr(demo, "serve", lambda *arguments, **options: calls.extend([*arguments, options]))
    options = ["--port", "1", "--allow-host", "a.example", "--allow-host", "b.example", "--weights", "runs/mine"]
    assert cli.main(["demo", *options]) == 0
    assert calls[2:5] == [None, 1, ["a.example", "b.example"]]
    assert calls[5].items() >= {"weights": "runs/mine", "model": None}.items()


HOLD = """
import sys
from hardnet.demo.page import _own_folder
with _own_folder():
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_uploads_do_not_outlive_the_server(sent: signal.Signals, tmp_path: Path) -> None:
    variables = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPO)}

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLD]
        process = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    with started() as first:
        [folder] = tmp_path.iterdir()
        (folder / "upload.png").write_bytes(b"a visitor's picture")
        first.send_signal(sent)
        first.wait(60)
        if folder.exists():
            os.utime(folder, (0, 0))  # a new one is left alone
    assert folder.exists() == (sent == signal.SIGKILL)
    with started() as second:
        [own] = tmp_path.iterdir()
        assert own != folder
        second.communicate(b"\n", 60)
    assert not list(tmp_path.iterdir())
