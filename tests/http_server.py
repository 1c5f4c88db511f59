"""An HTTP server on 127.0.0.1 with scripted responses, per path and per request."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.close_connection = True
        step = self.server.script.take(self)
        with contextlib.suppress(OSError):  # the client may close the connection at any time
            step(self)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


Step = Callable[[Handler], None]


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]


@dataclass
class ScriptedServer:
    """``on`` scripts a path: its n-th request gets the n-th step, and all further ones the last."""

    url: str = ""
    requests: list[Seen] = field(default_factory=list)
    _steps: dict[str, list[Step]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, path: str, *steps: Step) -> str:
        self._steps[path] = list(steps)
        return self.url + path

    def hits(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)

    def take(self, handler: Handler) -> Step:
        with self._lock:
            self.requests.append(Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()}))
            steps = self._steps.get(handler.path, [serve(b"", status=404)])
            return steps.pop(0) if len(steps) > 1 else steps[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    script: ScriptedServer


@contextlib.contextmanager
def running(*, tls: bool = False) -> Iterator[ScriptedServer]:
    server = _Server(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.script = ScriptedServer(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(
    content: bytes, *, status: int = 200, sent: int | None = None, pause: float = 0.0,
    headers: dict[str, str] | None = None,
) -> Step:  # fmt: skip
    """Respond with ``content``: ``sent`` bytes go out, then comes the pause."""

    def step(handler: Handler) -> None:
        handler.start(status, {"Content-Length": str(len(content)), **(headers or {})})
        handler.wfile.write(content[:sent])
        time.sleep(pause)

    return step


def ranged(content: bytes, *, sent: int | None = None) -> Step:
    """Respond to a Range with 206, otherwise with the whole."""

    def step(handler: Handler) -> None:
        value = handler.headers.get("Range")
        if value is None:
            return serve(content, sent=sent)(handler)
        start = int(value.removeprefix("bytes=").removesuffix("-"))
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return serve(content[start:], status=206, sent=sent, headers=span)(handler)

    return step


def raw(response: bytes, *, interval: float = 0.0) -> Step:
    """Send these bytes, status line included; with an interval, one at a time."""

    def step(handler: Handler) -> None:
        for part in [response] if not interval else [bytes([byte]) for byte in response]:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(interval)

    return step


def redirect(location: str) -> Step:
    return serve(b"", status=302, headers={"Location": location})
