"""The demo page: a picture in, the five most probable classes, the crop that the network saw and where it looked.

Gradio draws it: ``pip install "hardnet[demo]"``, then ``python -m hardnet demo``. The page asks no other host for
anything, and the browser is told not to let it: fonts are the system's, analytics are off.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from abc import ABCMeta
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..factory import DEFAULT_TAG, get_weights, list_models, list_weights
from ..utils.errors import ImageError, WeightsError
from .view import MAX_PIXELS, about, look, sample_images

HOST, PORT = "127.0.0.1", 7860
MODEL, TAG = "hardnet39ds", "FASHION_MNIST"
MAX_BYTES = 20 * 2**20
"""The largest file that may be uploaded."""
KEPT_SECONDS = 3600
"""How long uploaded and drawn pictures stay on disk while the server runs."""

# 'unsafe-inline' and 'unsafe-eval' are what Gradio's own page needs.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'"

_STYLE = "#problem textarea {font-family: ui-monospace, monospace}"


def serve(host: str | None = None, port: int | None = None) -> None:
    """Serve the page until interrupted, and print its address.

    Args:
        host: where to listen; None takes ``GRADIO_SERVER_NAME``, as a Hugging Face Space sets it, or else this
            machine alone.
        port: None takes ``GRADIO_SERVER_PORT`` or 7860; 0 takes a free one.

    Raises:
        ImportError: gradio or captum is not installed.
        ValueError: it is not possible to listen there.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HOST
    with _listen(host, _port() if port is None else port) as listener, _own_folder():
        app = build_app()
        import uvicorn  # type: ignore[import-not-found,unused-ignore]

        shown = f"[{host}]" if ":" in host else host
        print(f"hardnet: http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def build_app(*, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Any:
    """Return the page as an ASGI application.

    Args:
        max_bytes: larger files are refused while they are uploaded.
        max_pixels: pictures of more pixels are refused before they are decoded.

    Raises:
        ImportError: gradio or captum is not installed.
    """
    gr = _gradio()
    import fastapi  # type: ignore[import-not-found,unused-ignore]

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Policy)
    return gr.mount_gradio_app(
        app,
        _build_page(gr, max_pixels),
        path="/",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_STYLE,
        max_file_size=max_bytes,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
    )


_PLAIN: dict[str, Any] = {"interactive": False, "buttons": [], "format": "png", "type": "pil", "height": 280}


def _build_page(gr: Any, max_pixels: int) -> Any:
    def show(path: str | None, model: str, tag: str) -> list[Any]:
        if path is None:
            return [None, None, None, "", gr.update(visible=False)]
        try:
            view = look(path, model, tag, max_pixels)
        except (ImageError, WeightsError, ValueError) as error:
            return [None, None, None, "", gr.update(value=str(error), visible=True)]
        return [view.top, view.seen, view.looked, view.facts, gr.update(visible=False)]

    def choose(model: str, tag: str) -> tuple[Any, str]:
        tags = list_weights(model)
        tag = tag if tag in tags else DEFAULT_TAG
        return gr.update(choices=tags, value=tag), about(get_weights(model, tag))

    samples = [[str(path)] for path in sample_images()]
    with gr.Blocks(title="HarDNet", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)) as page:
        gr.Markdown("# HarDNet\nDrop a picture, or click one of the examples.")
        with gr.Row():
            with gr.Column():
                image = _upload_class(gr)(
                    label="Picture", sources=["upload", "clipboard"], type="filepath", height=300, elem_id="image"
                )
                with gr.Row():
                    model = gr.Dropdown(list_models(), value=MODEL, label="Model", elem_id="model", min_width=200)
                    tag = gr.Dropdown(list_weights(MODEL), value=TAG, label="Weights", elem_id="weights", min_width=200)
                known = gr.Textbox(about(get_weights(MODEL, TAG)), show_label=False, container=False, lines=2)
                if samples:
                    gr.Examples(samples, image, label="Examples", examples_per_page=20, elem_id="examples")
            with gr.Column():
                problem = gr.Textbox(label="This did not work", visible=False, elem_id="problem", lines=3)
                top = gr.Label(label="Most probable", num_top_classes=5, elem_id="top")
                with gr.Row():
                    seen = gr.Image(label="What the network saw", elem_id="seen", min_width=140, **_PLAIN)
                    looked = gr.Image(label="Where it saw the class", elem_id="looked", min_width=140, **_PLAIN)
                facts = gr.Textbox(show_label=False, container=False, lines=2, elem_id="facts")
        inputs, outputs = [image, model, tag], [top, seen, looked, facts, problem]
        shared: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
        image.change(show, inputs, outputs, **shared)
        for choice in (model, tag):
            chosen = choice.input(choose, [model, tag], [tag, known], api_visibility="private")
            chosen.then(show, inputs, outputs, **shared)
    page.queue(max_size=16)
    return page


def _upload_class(gr: Any) -> Any:
    """Return an image field that hands over the uploaded file as it is, and no other: load_image reads it.

    Gradio checks where a file lies only in pages that it launches itself, and would fetch an address; here the path is
    checked before it is copied and again before it is handed over, since streamed files are not copied.
    """

    def check(image: Any, place: str | Path) -> str:
        if not Path(place).resolve().is_relative_to(Path(image.GRADIO_CACHE).resolve()):
            raise gr.Error("Only files that were uploaded here are read.", print_exception=False)
        return str(place)

    def preprocess(image: Any, payload: Any) -> str | None:
        return None if payload is None else check(image, payload.path)

    async def move(image: Any, place: str | Path | None) -> Any:
        return None if place is None else await gr.Image.async_move_resource_to_block_cache(image, check(image, place))

    members = {
        "__module__": __name__,
        "is_template": True,  # the browser takes it for an Image
        "preprocess": preprocess,
        "async_move_resource_to_block_cache": move,
    }
    # Past Gradio's metaclass, which would write a stub file beside this module.
    return ABCMeta.__new__(type(gr.Image), "Upload", (gr.Image,), members)


class _Policy:
    """ASGI middleware: tells the browser to load nothing from elsewhere and to guess no content types."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import captum  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401  (before a picture comes)
        import gradio  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('the demo page needs gradio and captum: pip install "hardnet[demo]"') from None
    return gradio


@contextmanager
def _own_folder() -> Iterator[None]:
    """Have Gradio keep its files in a folder of this server alone, which goes when the server ends, by SIGTERM too."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, leave) if in_main_thread else None
    try:
        with tempfile.TemporaryDirectory(prefix="hardnet-demo-") as folder:
            os.environ[name] = folder
            yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _port() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT") or str(PORT)
    if not text.isdecimal():
        raise ValueError(f"GRADIO_SERVER_PORT is the number of a port, got {text!r}")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {error}; --port 0 takes a free one") from None
