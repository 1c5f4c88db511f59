"""ASGI middleware of the demo page: check Host and Origin, limit request sizes, set security headers."""

import asyncio
import ipaddress
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Gradio's own page needs 'unsafe-inline' and 'unsafe-eval'.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'"
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
PATIENCE = 10.0
"""Seconds by which a request's body may be later than :data:`LEAST_RATE` has it."""
LEAST_RATE = 16 * 1024
"""Bytes per second."""
CHECK_BYTES = 2**20
"""Bytes of a request after which the storage is measured again."""

_FULL = 503, "The storage for pictures is full. Try again later."
_LATE = 408, "The request arrives too slowly."
_CLOSE = {"connection": "close"}
"""The rest of a refused request is not read."""


class Guard:
    """ASGI middleware that refuses foreign, oversized and idle requests; limits are in bytes.

    ``hosts`` are names of the server, in addition to ``localhost`` and all IP addresses (DNS rebinding needs a name).
    Pages of these names may send requests, whatever the port and whatever Host a proxy passes on.
    """

    def __init__(self, app: Any, hosts: Collection[str], max_request: int, max_stored: int) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts if host}
        self.max_request, self.max_stored = max_request, max_stored

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        from starlette.exceptions import HTTPException  # type: ignore[import-not-found,unused-ignore]
        from starlette.responses import PlainTextResponse  # type: ignore[import-not-found,unused-ignore]

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page has no web sockets
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        started, arrived = time.monotonic(), 0

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        async def receive_in_time() -> Any:
            nonlocal arrived
            if arrived >= size:
                return await receive()
            late = started + PATIENCE + arrived / LEAST_RATE - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), late)
            except asyncio.TimeoutError:
                raise HTTPException(*_LATE, _CLOSE) from None
            before, arrived = arrived, arrived + len(message.get("body", b""))
            if before // CHECK_BYTES != arrived // CHECK_BYTES and not self._has_space(0):
                raise HTTPException(*_FULL, _CLOSE)
            return message

        if (problem := self._refusal(headers, size)) is not None:
            status, text = problem
            await PlainTextResponse(text, status, _CLOSE)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive_in_time, send_with_headers)

    def _refusal(self, headers: dict[str, str], size: int) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _name(f"//{host}")
        if name not in ("localhost", *self.hosts) and not is_address(name):
            return 421, "Unknown host name. The option --allow-host adds one."
        addresses = {f"http://{host}".lower(), f"https://{host}".lower()}
        if origin is not None and origin.lower() not in addresses and _name(origin) not in self.hosts:
            return 403, "Requests from other sites are refused. Behind a proxy, --allow-host names the site."
        if "transfer-encoding" in headers:
            return 411, "The request must state its length."
        if size > self.max_request:
            return 413, f"A request may have {self.max_request:,} bytes."
        return _FULL if size and not self._has_space(size) else None

    def _has_space(self, size: int) -> bool:
        for file in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"):
            with suppress(OSError):  # deleted in the meantime
                size += file.lstat().st_size
        return size <= self.max_stored


def _name(url: str) -> str:
    """Return the host's name in an address, in lower case; "" if there is none."""
    with suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def is_address(name: str) -> bool:
    """Return whether a host's name is an IP address."""
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False
