"""A real HTTP server on 127.0.0.1 whose answers are scripted, path by path and request by request."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "data" / "localhost.pem"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.close_connection = True
        step = self.server.script.take(self)
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):  # the client may leave at any time
            step(self)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


Step = Callable[[Handler], None]


@dataclass
class Seen:
    path: str
    headers: dict[str, str]


@dataclass
class ScriptedServer:
    """``on`` scripts a path: its n-th request from then on gets the n-th step, and all further ones the last."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    _steps: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    _since: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, path: str, *steps: Step) -> str:
        self._since[path] = self.hits(path)
        self._steps[path] = steps
        return self.url + path

    def requests(self, path: str) -> list[Seen]:
        with self._lock:
            return [seen for seen in self.seen if seen.path == path]

    def hits(self, path: str) -> int:
        return len(self.requests(path))

    def take(self, handler: Handler) -> Step:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            number = sum(seen.path == handler.path for seen in self.seen) - self._since.get(handler.path, 0)
            self.seen.append(Seen(handler.path, headers))
            steps = self._steps.get(handler.path, (serve(b"", status=404),))
            return steps[min(number, len(steps) - 1)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    script: ScriptedServer

    def handle_error(self, request: object, client_address: object) -> None:
        import sys

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.script.errors.append(error)


@contextlib.contextmanager
def running(*, tls: bool = False) -> Iterator[ScriptedServer]:
    server = _Server(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.script = ScriptedServer(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not server.script.errors, server.script.errors


def serve(
    content: bytes,
    *,
    status: int = 200,
    kind: str = "application/octet-stream",
    length: str | int | None = None,
    sent: int | None = None,
    headers: dict[str, str] | None = None,
) -> Step:
    """Answer with ``content``; ``length`` lies about its length, ``sent`` closes after so many bytes."""

    def step(handler: Handler) -> None:
        declared = str(len(content) if length is None else length)
        handler.start(status, {"Content-Type": kind, "Content-Length": declared, **(headers or {})})
        handler.wfile.write(content[:sent])

    return step


def ranged(
    content: bytes,
    *,
    etag: str | None = '"one"',
    modified: str | None = None,
    sent: int | None = None,
    shift: int = 0,
    total: int | str | None = None,
    echo: bool = True,
) -> Step:
    """Answer a Range that If-Range allows with 206, anything else in full.

    ``shift`` and ``total`` make the Content-Range wrong; without ``echo`` a 206 does not repeat the ETag.
    """

    def step(handler: Handler) -> None:
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        headers = {"Content-Type": "application/octet-stream"}
        validators = {"ETag": etag, "Last-Modified": modified}
        headers |= {name: value for name, value in validators.items() if value is not None}
        start = 0
        if asked is not None and condition in (etag, modified):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            first, last = start + shift, len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content) if total is None else total}"
            if not echo:
                headers.pop("ETag", None)
        rest = content[start:]
        handler.start(206 if "Content-Range" in headers else 200, {**headers, "Content-Length": str(len(rest))})
        handler.wfile.write(rest[:sent])

    return step


def chunked(content: bytes, *, ended: bool = True, headers: dict[str, str] | None = None) -> Step:
    """Answer without a Content-Length; without ``ended`` the closing chunk is missing."""

    def step(handler: Handler) -> None:
        handler.start(
            200, {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked", **(headers or {})}
        )
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) + (b"0\r\n\r\n" if ended else b""))

    return step


def stalling(content: bytes, sent: int, release: threading.Event, **headers: str) -> Step:
    """Send so many bytes, then nothing until ``release`` is set or some seconds have gone by, then the rest."""

    def step(handler: Handler) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.start(200, {"Content-Type": "application/octet-stream", "Content-Length": str(len(content)), **named})
        handler.wfile.write(content[:sent])
        handler.wfile.flush()
        if not release.wait(6):
            handler.wfile.write(content[sent:])

    return step


def trickling(answer: bytes, *, at_once: int = 0, interval: float = 0.02) -> Step:
    """Send the raw answer, status line and headers included, byte by byte after the first ``at_once``."""

    def step(handler: Handler) -> None:
        handler.wfile.write(answer[:at_once])
        for index in range(at_once, len(answer)):
            handler.wfile.write(answer[index : index + 1])
            handler.wfile.flush()
            time.sleep(interval)

    return step


def redirect(location: str | None, status: int = 302) -> Step:
    def step(handler: Handler) -> None:
        handler.start(status, {"Content-Length": "0", **({} if location is None else {"Location": location})})

    return step


def hang_up(handler: Handler) -> None:
    """Close the connection without a word."""
