"""ASGI middleware of the demo page: check Host and Origin, limit request sizes, set security headers."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Gradio's own page needs 'unsafe-inline' and 'unsafe-eval'.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'"
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]


class Guard:
    """ASGI middleware that refuses foreign and oversized requests.

    Args:
        app: the application behind it.
        hosts: names of the server, in addition to ``localhost`` and all IP addresses (DNS rebinding needs a name).
        max_request: the largest body of one request, in bytes.
        max_stored: the largest sum of uploads on disk and under way, in bytes.
    """

    def __init__(self, app: Any, hosts: Collection[str], max_request: int, max_stored: int) -> None:
        self.app, self.hosts = app, {"localhost", *map(str.lower, filter(None, hosts))}
        self.max_request, self.max_stored, self.arriving = max_request, max_stored, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page has no web sockets
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        refusal = self._refusal(headers, size)
        if refusal is not None:
            status, text = refusal
            await send_with_headers(
                {"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]}
            )
            await send({"type": "http.response.body", "body": text.encode()})
            return
        self.arriving += size
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self.arriving -= size

    def _refusal(self, headers: dict[str, str], size: int) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            return 421, "Unknown host name. The option --allow-host adds one."
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests from other sites are refused."
        if "transfer-encoding" in headers:
            return 411, "The request must state its length."
        if size > self.max_request:
            return 413, f"A request may have {self.max_request:,} bytes."
        if size and self.arriving + size + sum(_stored()) > self.max_stored:
            return 503, "The storage for pictures is full. Try again later."
        return None

    def _is_own(self, host: str) -> bool:
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.hosts or bool(ipaddress.ip_address(name))
        return False


def _stored() -> Iterator[int]:
    for file in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"):
        with suppress(OSError):  # deleted in the meantime
            yield file.lstat().st_size
