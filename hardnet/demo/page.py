"""The demo page and its server: upload a picture; see the five most probable classes, the network's input and Grad-CAM.

Built with Gradio: ``pip install gradio``, then ``python -m hardnet demo``. The page loads nothing from other
hosts: system fonts, no analytics, and a content security policy.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..factory import DEFAULT_TAG, get_weights, list_models, list_weights
from ..utils.errors import ImageError, WeightsError
from ..utils.files import scratch_folder
from ..utils.optional import require
from .guard import Guard
from .view import MAX_PIXELS, about, look, sample_images

HOST, PORT = "127.0.0.1", 7860
TEMPORARY = "GRADIO_TEMP_DIR"
MODEL, TAG = "hardnet39ds", "FASHION_MNIST"
MAX_BYTES = 20 * 2**20
"""The largest file that may be uploaded; a request may have 64 KiB more."""
MAX_STORED = 2**30
"""How many bytes of pictures may be on disk."""
KEPT_SECONDS = 3600
"""How long uploaded and drawn pictures stay on disk while the server runs."""

logger = logging.getLogger(__name__)

_STYLE = "#problem textarea {font-family: ui-monospace, monospace}"


def serve(host: str | None = None, port: int | None = None, allow_hosts: Sequence[str] = ()) -> None:
    """Serve the page until interrupted, and print its address.

    Args:
        host: where to listen; None takes ``GRADIO_SERVER_NAME``, as a Hugging Face Space sets it, or else this
            machine alone.
        port: None takes ``GRADIO_SERVER_PORT`` or 7860; 0 takes a free one.
        allow_hosts: further names that browsers may reach the server by. IP addresses, ``localhost``, ``host`` and
            ``SPACE_HOST``, which a Hugging Face Space sets, are always allowed.

    Raises:
        ImportError: gradio is not installed.
        ValueError: it is not possible to listen there.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HOST
    with _listen(host, _port() if port is None else port) as listener, _own_folder():
        app = build_app(hosts=[host, os.environ.get("SPACE_HOST", ""), *allow_hosts])
        import uvicorn  # type: ignore[import-not-found,unused-ignore]

        shown = f"[{host}]" if ":" in host else host
        print(f"hardnet: http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def build_app(
    *,
    hosts: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    max_stored: int = MAX_STORED,
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """Return the page as an ASGI application.

    Args:
        hosts: names that the server is reached by, in addition to ``localhost`` and IP addresses.
        max_bytes: larger files are refused.
        max_stored: uploads are refused when they would bring the bytes on disk above this.
        max_pixels: pictures of more pixels are refused before they are decoded.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = _gradio()
    import fastapi  # type: ignore[import-not-found,unused-ignore]

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, max_request=max_bytes + 2**16, max_stored=max_stored)
    return gr.mount_gradio_app(
        app,
        _build_page(gr, max_pixels),
        path="/",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_STYLE,
        max_file_size=max_bytes,
        show_error=False,
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
        except (WeightsError, OSError, ImageError) as error:
            logger.warning("%s", error)
            problem = str(error)
            if isinstance(error, WeightsError):
                problem = f"The weights {tag} of {model} could not be loaded. The server's log says why."
            elif isinstance(error, OSError):
                problem = "The picture is no longer on the server. Upload it again."
            return [None, None, None, "", gr.update(value=problem, visible=True)]
        return [view.top, view.seen, view.looked, view.facts, gr.update(visible=False)]

    def choose(model: str, tag: str) -> tuple[Any, ...]:
        tags = list_weights(model)
        tag = tag if tag in tags else DEFAULT_TAG
        small = tag == TAG
        known = about(get_weights(model, tag))
        return gr.update(choices=tags, value=tag), known, gr.update(visible=small), gr.update(visible=not small)

    garments, photographs = (
        [[str(path)] for path in sample_images() if path.suffix == kind] for kind in (".png", ".jpg")
    )
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
                with gr.Column(elem_id="garments") as first:
                    gr.Markdown("These weights know ten garments only. Choose other weights for photographs.")
                    if garments:
                        gr.Examples(garments, image, label="Examples", examples_per_page=20, elem_id="examples")
                with gr.Column(visible=False, elem_id="photographs") as second:
                    if photographs:
                        gr.Examples(photographs, image, label="Examples", elem_id="photograph-examples")
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
            chosen = choice.input(choose, [model, tag], [tag, known, first, second], api_visibility="private")
            chosen.then(show, inputs, outputs, **shared)
    page.queue(max_size=16)
    return page


def _upload_class(gr: Any) -> Any:
    """Return an image field that passes on the path of the uploaded file, for load_image to read.

    Gradio checks paths only in pages that it launches itself, and it would fetch a URL. Here the path is checked before
    the file is copied, and again before it is passed on, because streamed files are not copied.
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
        "is_template": True,  # the browser treats it as an Image
        "preprocess": preprocess,
        "async_move_resource_to_block_cache": move,
    }
    # ABCMeta, because Gradio's metaclass would write a stub file next to this module.
    return ABCMeta.__new__(type(gr.Image), "Upload", (gr.Image,), members)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return require("gradio", "6.31", extra="demo")


@contextmanager
def _own_folder() -> Iterator[None]:
    """Give Gradio a temporary folder, which is removed at the end or, after a kill, by the next server."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    before = os.environ.get(TEMPORARY)
    with scratch_folder(Path(tempfile.gettempdir()), "hardnet-demo-") as folder:
        os.environ[TEMPORARY] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(TEMPORARY)
            if before is not None:
                os.environ[TEMPORARY] = before


def _port() -> int:
    text = os.environ.get("GRADIO_SERVER_PORT") or str(PORT)
    if not text.isdecimal():
        raise ValueError(f"GRADIO_SERVER_PORT must be a port number, got {text!r}")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {error}; --port 0 takes a free port") from None
