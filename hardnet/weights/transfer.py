"""Download a file over HTTP: redirects, certificates, time limits, retries and resuming."""

import base64
import errno
import http.client
import io
import logging
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import IO, Literal, TypeAlias

from ..utils.errors import WeightsError
from ..utils.text import printable, reason
from ..utils.version import __version__
from .files import MAX_BYTES

logger = logging.getLogger(__name__)

Cause: TypeAlias = Literal["network", "host", "damaged"] | None
Report: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes so far and in total (None if unknown)."""

# Limits of a download. Times are in seconds.
TIMEOUT = 20.0
"""Longest time without a connection, or without a byte."""
TOTAL_TIMEOUT = 7200.0
"""Longest time for one address, all attempts included."""
ATTEMPTS = 4
"""Attempts per address. An attempt that gets a mebibyte further than any earlier one restarts the count."""
BACKOFF = 0.5
"""Wait before the second attempt. It doubles with each further one."""

_CHUNK = 256 * 1024
_PROGRESS = 1024 * 1024
_RETRIED = (408, 425, 429)
_HIDDEN = "an address that is not valid"


class TransferError(WeightsError):
    """A source did not give the file. ``retry``: another attempt may succeed."""

    def __init__(self, message: str, *, retry: bool = False, cause: Cause = "host") -> None:
        super().__init__(printable(message[:1000]))  # a server's text may be long
        self.retry, self.cause = retry, cause


def redact(url: str) -> str:
    """Return an http(s) address without credentials, query and fragment; a fixed text if it is not a valid address.

    An ``@`` behind the host counts as invalid: then a ``/``, ``?`` or ``#`` in a password has moved the border.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port  # both raise ValueError for an invalid address
    except ValueError:
        return _HIDDEN
    if parts.scheme not in ("http", "https") or not host or "@" in parts.path + parts.query + parts.fragment:
        return _HIDDEN
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_valid(url: str) -> bool:
    """Return whether ``url`` is an http(s) address that can be requested."""
    return redact(url) != _HIDDEN


def download(url: str, report: Report, check: Callable[[bytes], bytes]) -> bytes:
    """Return ``check`` of the bytes that an address serves.

    An interrupted attempt is continued with a range request. If ``check`` refuses a file of several parts, which may be
    of different files, it is downloaded again from the start.

    Raises:
        TransferError: no attempt succeeded.
    """
    deadline = time.monotonic() + TOTAL_TIMEOUT
    buffer, resumed = io.BytesIO(), False
    failures = most = 0
    while True:
        try:
            resumed = _receive(url, buffer, deadline, report)
            return check(buffer.getvalue())
        except TransferError as error:
            mixed = resumed and error.cause == "damaged"
            if not error.retry and not mixed:
                raise
            failures = 1 if buffer.tell() >= most + _PROGRESS else failures + 1
            most = max(most, buffer.tell())
            if failures >= ATTEMPTS:
                raise TransferError(f"{error} (tried {failures} times)", cause=error.cause) from error
            if mixed:
                buffer = io.BytesIO()
            wait = BACKOFF * 2 ** (failures - 1)
            logger.info("%s: %s; trying again in %.1f seconds", redact(url), error, wait)
            time.sleep(wait)


def _receive(url: str, buffer: io.BytesIO, deadline: float, report: Report) -> bool:
    """Append the rest of a file to the buffer, or replace its content; return whether it was appended."""
    headers = {"User-Agent": f"hardnet/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
    if buffer.tell():
        headers["Range"] = f"bytes={buffer.tell()}-"
    try:
        with _open(url, headers) as response:
            resumed: bool = response.status == http.HTTPStatus.PARTIAL_CONTENT
            if not resumed:
                buffer.seek(0)
                buffer.truncate()
            total = None if response.length is None else buffer.tell() + response.length
            while True:
                if max(buffer.tell(), total or 0) > MAX_BYTES:
                    raise TransferError(f"the file is larger than {MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise TransferError(f"not complete after {TOTAL_TIMEOUT:g} seconds")
                chunk = response.read1(_CHUNK)
                if not chunk:
                    break
                buffer.write(chunk)
                report(buffer.tell(), total)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _as_transfer_error(error) from error
    if total is not None and buffer.tell() < total:
        raise TransferError(f"the connection closed after {buffer.tell()} of {total} bytes", retry=True)
    return resumed


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Request ``url``. Proxies and certificates are those of the usual environment variables, such as SSL_CERT_FILE."""
    if not is_valid(url):
        raise TransferError("not a valid http or https address")
    parts = urllib.parse.urlsplit(url)
    address = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(address, headers=headers)  # noqa: S310  http and https only
    if parts.username is not None:
        credentials = urllib.parse.unquote_to_bytes(f"{parts.username}:{parts.password or ''}")
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(credentials).decode()}")
    response: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only, and none from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        """Return the next request, without the credentials."""
        fp.close()  # urllib would read the body, which may be endless
        if not is_valid(newurl):
            raise TransferError("a redirect that does not lead to a valid http or https address")
        if req.type == "https" and not newurl.startswith("https:"):
            raise TransferError(f"a redirect from https to http: {redact(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _as_transfer_error(error: Exception) -> TransferError:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        retry = error.code in _RETRIED or error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
        return TransferError(reason(error), retry=retry)
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return TransferError(f"the server's certificate is not trusted: {inner.verify_message} (see SSL_CERT_FILE)")
    if isinstance(inner, TimeoutError):
        return TransferError(f"no data for {TIMEOUT:g} seconds", retry=True)
    if isinstance(error, (http.client.InvalidURL, ValueError)):
        return TransferError("the address, or that of a proxy, is not valid")  # the error's text may hold a password
    offline = isinstance(inner, socket.gaierror) or getattr(inner, "errno", None) == errno.ENETUNREACH
    cause: Cause = "network" if offline else "host"
    return TransferError(f"the connection failed: {inner or type(error).__name__}", retry=not offline, cause=cause)
