"""The demo page and its server: drop pictures; see the most probable classes and where the evidence for them is.

Built with Gradio: ``pip install gradio``, then ``python -m hardnet demo``. The page loads nothing from other
hosts: system fonts, no analytics, and a content security policy.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from abc import ABCMeta
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .. import Classifier, load_weights
from ..utils.optional import require
from .answers import MAX_BYTES, MAX_COUNT, TEMPORARY, answer
from .choices import OWN, PACKAGED, Choice, list_choices
from .guard import Guard, is_address
from .markup import render
from .texts import LANGUAGES, translate
from .view import ENGINE, warm_up

HOST, PORT = "127.0.0.1", 7860
MAX_STORED = 2**30
"""Largest size of all pictures on disk, in bytes."""
MAX_AGE = 3600
"""Age at which uploaded pictures are deleted while the server runs."""

_HERE = Path(__file__).parent
SESSIONS = 1000
"""Number of visitors whose last order is remembered: results of earlier ones are not sent."""


def serve(
    host: str | None = None,
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    *,
    weights: str | None = None,
    model: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until interrupted, and announce its address.

    Args:
        host: where to listen; None takes ``GRADIO_SERVER_NAME``, as a Hugging Face Space sets it, or this machine.
        port: None takes ``GRADIO_SERVER_PORT`` or 7860; 0 takes a free one.
        allow_hosts: further names that browsers may reach the server by. IP addresses, ``localhost``, ``host`` and
            ``SPACE_HOST``, which a Hugging Face Space sets, are always allowed.
        weights: any source of weights, which the page offers first. The validation pictures of a training run become
            the examples.
        model: the name of its architecture, if the weights do not say it.
        announce: called with the line that has the address; None prints it.

    Raises:
        ImportError: gradio is not installed.
        ValueError: it is not possible to listen there.
        WeightsError: the weights cannot be loaded.
    """
    _gradio()
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HOST
    port = int(os.environ.get("GRADIO_SERVER_PORT") or PORT) if port is None else port
    with _listen(host, port) as listener, _own_folder():
        classifier = None
        if weights is not None:
            classifier = warm_up(Classifier(load_weights(weights, model=model), engine=ENGINE))
        choices = list_choices(classifier, weights or "")
        names = [] if is_address(host) or host == "localhost" else [host]
        app = build_app(choices, hosts=[*names, os.environ.get("SPACE_HOST", ""), *allow_hosts])
        import uvicorn  # type: ignore[import-not-found,unused-ignore]

        name = f"[{host}]" if ":" in host else host
        (announce or partial(print, flush=True))(f"hardnet: http://{name}:{listener.getsockname()[1]} (Ctrl-C ends)")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listener])


def build_app(
    choices: Mapping[str, Choice],
    *,
    hosts: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    max_stored: int = MAX_STORED,
) -> Any:
    """Return the page as an ASGI application for the models of :func:`list_choices`, with the limits of :class:`Guard`.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = _gradio()
    import fastapi  # type: ignore[import-not-found,unused-ignore]

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, max_request=max_bytes + 2**16, max_stored=max_stored)
    return gr.mount_gradio_app(
        app,
        _build_page(gr, choices, max_bytes),
        path="/",
        theme=gr.themes.Base(
            primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]
        ),
        css=(_HERE / "style.css").read_text(encoding="utf-8"),
        max_file_size=max_bytes,
        show_error=False,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
    )


_LOCAL = "(navigator.language.toLowerCase().startsWith('ko') ? ko : en)"
_DROP = """<label class="drop ${preview ? 'full' : ''}">
<input type="file" multiple accept="image/*,.tif,.tiff,.tga,.jp2">${preview || local}
</label><p class="spoken" role="status">${status}</p>"""


def _build_page(gr: Any, choices: Mapping[str, Choice], max_bytes: int) -> Any:
    latest: OrderedDict[str | None, object] = OrderedDict()  # the last order of each session

    # Gradio passes the request by its type.
    def show(order: Any, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        latest[request.session_hash] = order
        if len(latest) > SESSIONS:
            latest.popitem(last=False)
        for update in answer(order, choices):
            if latest.get(request.session_hash) is not order:
                yield gr.skip(), gr.skip()  # there is a later order; Gradio sends the last update twice
                return
            changed = {} if update.preview is None else {"preview": update.preview}
            yield gr.update(status=update.status, **changed), update.result

    def local(
        build: Callable[[str], str], place: str, template: str = "${local}", kind: Any = gr.HTML, **more: Any
    ) -> Any:
        """Return an HTML component with what ``build`` returns for the browser's language, as ``local``."""
        texts = {language: build(language) for language in LANGUAGES}
        return kind(html_template=template.replace("local", _LOCAL), elem_id=place, **texts, **more)

    with gr.Blocks(title="HarDNet", analytics_enabled=False, delete_cache=(MAX_AGE // 6, MAX_AGE)) as page:
        local(partial(render, "header"), "header")
        with gr.Column(elem_id="page"):
            drop = local(
                partial(render, "prompt", size=max_bytes // 2**20, count=MAX_COUNT),
                "drop",
                _DROP,
                _order_class(gr),
                js_on_load=(_HERE / "page.js").read_text(encoding="utf-8"),
                preview="",
                status="",
                limit=max_bytes,
                most=MAX_COUNT,
                uploading={language: translate(language, "uploading") for language in LANGUAGES},
            )
            result = local(partial(render, "empty"), "result", "${value || local}")
            examples = {choice.group: choice.examples for choice in choices.values()}
            default = OWN if OWN in choices else PACKAGED
            local(partial(render, "options", examples=examples, choices=choices, default=default), "options")
        drop.submit(
            show,
            drop,
            [drop, result],
            api_visibility="private",
            trigger_mode="multiple",
            concurrency_limit=4,
            show_progress="hidden",
        )
    page.queue(max_size=16)
    return page


def _order_class(gr: Any) -> Any:
    """Return an HTML component that takes orders, and no files in Gradio's own form.

    Gradio copies a file whose path comes in that form, from anywhere on the server, or fetches it from an address.
    """

    async def refuse(component: Any, place: object) -> None:
        raise gr.Error("Only files that were uploaded here are read.", print_exception=False)

    members = {"__module__": __name__, "async_move_resource_to_block_cache": refuse}
    # ABCMeta, because Gradio's metaclass would write a stub file next to this module.
    return ABCMeta.__new__(type(gr.HTML), "Order", (gr.HTML,), members)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return require("gradio", "6.31", extra="demo")


@contextmanager
def _own_folder() -> Iterator[None]:
    """Give Gradio a temporary folder, which is removed at the end or, after a kill, by the next server."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    import filelock

    for orphan in Path(tempfile.gettempdir()).glob("hardnet-demo-*"):
        with suppress(OSError):
            if time.time() - orphan.lstat().st_mtime > 60:  # by then, a living server has its lock
                with filelock.FileLock(orphan / "lock", timeout=0):
                    shutil.rmtree(orphan)
    with (
        tempfile.TemporaryDirectory(prefix="hardnet-demo-", ignore_cleanup_errors=True) as place,
        filelock.FileLock(Path(place, "lock")),
    ):
        files = Path(place, "files")
        files.mkdir()
        os.environ[TEMPORARY] = str(files)
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {error}; --port 0 takes a free port") from None
