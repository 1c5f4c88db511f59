"""One HTTP answer, followed through redirects: time limits, trusted certificates, who may send us where."""

from __future__ import annotations

import base64
import functools
import http.client
import io
import os
import ssl
import string
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from ..utils.errors import WeightsError
from ..utils.files import expand_user
from ..utils.text import printable
from .archive import MAX_BYTES

_MOST_BEFORE_BODY = 1 << 20  # bytes of status lines and headers, those of a proxy included
_LONGEST_MESSAGE = 1000  # characters: what a server says may go on for longer
_REDIRECTS = {301, 302, 303, 307, 308}
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Policy:
    """How patient and how trusting a download is. Times in seconds."""

    connect_timeout: float = 10.0
    """For a connection to stand, TLS included, to each address that the host has."""
    stall_timeout: float = 30.0
    """For the next byte to arrive."""
    min_throughput: float = 1024.0
    """Bytes per second: fewer, over ``throughput_window`` of waiting, end the attempt."""
    throughput_window: float = 30.0
    """Over which ``min_throughput`` is looked at."""
    attempts: int = 4
    """Per address, the first one included. An attempt that won ``progress_bytes`` starts the count anew."""
    progress_bytes: int = 1024 * 1024
    """See ``attempts``."""
    backoff: float = 0.5
    """Before the second attempt; doubles with every further one."""
    retry_after_cap: float = 60.0
    """The longest wait that a server may ask for."""
    max_redirects: int = 10
    max_bytes: int = MAX_BYTES
    """The largest file, in bytes."""
    lock_timeout: float = 600.0
    """How long to wait for another process that fetches the same weights before doing it oneself."""


class TransferError(Exception):
    """An address did not yield the file. ``retry``: it may yet; ``wait``: seconds that the server asked for."""

    def __init__(self, message: str, *, retry: bool = False, wait: float | None = None) -> None:
        super().__init__(printable(message[:_LONGEST_MESSAGE]))
        self.retry = retry
        self.wait = wait


class TooSlowError(OSError):
    """Bytes kept coming, but so few that the transfer would hang for ever."""


def open_url(url: str, headers: dict[str, str], policy: Policy) -> http.client.HTTPResponse:
    """Ask for ``url`` and return the answer, whatever its status; the caller closes it.

    Proxies come from the usual environment variables, as urllib reads them. A user and a password in the
    address are sent to that host alone.

    Raises:
        TransferError: the address, or one that it redirects to, is not to be followed.
        WeightsError: the certificate bundle that the environment names cannot be loaded.
        OSError, http.client.HTTPException: the connection failed.
    """
    address, authorization = _split_credentials(_checked(url))
    origin = _origin(address)
    opener = _opener(policy)
    for _ in range(policy.max_redirects + 1):
        request = urllib.request.Request(address, headers=headers)  # noqa: S310  _checked lets http(s) pass alone
        if authorization is not None and _origin(address) == origin:
            request.add_unredirected_header("Authorization", authorization)
        response: http.client.HTTPResponse = opener.open(request, timeout=policy.connect_timeout)
        if response.status not in _REDIRECTS:
            return response
        with response:  # the body is left unread: it could go on for ever
            address = _redirected(address, response.headers.get("Location"))
    raise TransferError(f"more than {policy.max_redirects} redirects")


def redact(url: str) -> str:
    """Return the address without user and password, fit for a message."""
    try:
        return _split_credentials(url)[0]
    except ValueError:
        return "an address that cannot be parsed"


def _checked(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port  # both raise ValueError where they make no sense
    except ValueError as error:
        raise TransferError(f"the address makes no sense: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise TransferError(f"{redact(url)} is no http or https address")
    return url


def _split_credentials(url: str) -> tuple[str, str | None]:
    """Return the address without user and password, and the Authorization header that they make."""
    parts = urllib.parse.urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    if ":" not in credentials:
        credentials += ":"
    token = base64.b64encode(urllib.parse.unquote_to_bytes(credentials)).decode("ascii")
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), f"Basic {token}"


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _redirected(address: str, location: str | None) -> str:
    if not location:
        raise TransferError("a redirect that does not say where to")
    try:
        # Headers arrive as Latin-1; what is not ASCII has to be quoted before it can be asked for.
        target = urllib.parse.urljoin(address, urllib.parse.quote(location, string.punctuation, "iso-8859-1"))
        target = _split_credentials(_checked(target))[0]
    except (ValueError, TransferError) as error:
        raise TransferError(f"a redirect that is not followed: {error}") from error
    if address.startswith("https:") and not target.startswith("https:"):
        raise TransferError(f"a redirect from https to http that is not followed: {target}")
    return target


class _PacedReader(io.RawIOBase):
    """The socket's file; ends a transfer that crawls, or has no end. Only time spent waiting for bytes counts."""

    def __init__(self, raw: io.RawIOBase, policy: Policy) -> None:
        self.left = _MOST_BEFORE_BODY
        self._raw = raw
        self._policy = policy
        self._begun = False
        self._waited = 0.0
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        start = time.monotonic()
        count = self._raw.readinto(buffer)
        if self._begun:  # the first byte may take its time: that is the server thinking, and a stall if it lasts
            self._waited += time.monotonic() - start
        self._begun = True
        self._received += count or 0
        self.left -= count or 0
        if self.left < 0:
            raise TransferError("headers or trailers without end")
        if count and self._waited >= self._policy.throughput_window:
            if self._received < self._policy.min_throughput * self._waited:
                raise TooSlowError(
                    f"{self._received} bytes in {self._waited:.1f} seconds, "
                    f"fewer than {self._policy.min_throughput:.0f} per second"
                )
            self._waited, self._received = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    def __init__(self, *args: Any, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Here rather than around the body, so that the status line and the headers are under the same limit.
        self._reader = _PacedReader(self.fp.detach(), policy)
        self.fp = io.BufferedReader(self._reader)
        self._most_in_body = 2 * policy.max_bytes + _MOST_BEFORE_BODY  # the body itself, and what chunks add to it

    def begin(self) -> None:
        super().begin()
        self._reader.left = self._most_in_body


class _Limits(http.client.HTTPConnection):
    def __init__(self, *args: Any, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._policy = policy
        self.response_class = functools.partial(_PacedResponse, policy=policy)  # type: ignore[assignment]  # a factory will do

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._policy.stall_timeout)  # until here it was connect_timeout


class _TLSLimits(_Limits, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Limits, policy=self._policy), req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = functools.partial(_TLSLimits, policy=self._policy)
        return self.do_open(connection, req, context=trusted_certificates())


def _opener(policy: Policy) -> urllib.request.OpenerDirector:
    # Not build_opener: its handlers for redirects, errors, files and ftp are the ones we must not have.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HTTPHandler(policy),
        _HTTPSHandler(policy),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def trusted_certificates() -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificates, or those of a bundle that the environment names.

    The first of SSL_CERT_FILE, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE that is set takes the place of the system's.

    Raises:
        WeightsError: the bundle does not exist or holds no certificates.
    """
    variable = next((name for name in _BUNDLE_VARIABLES if os.environ.get(name)), None)
    if variable is None:
        return ssl.create_default_context()
    bundle = expand_user(os.environ[variable])
    if not bundle.exists():
        raise WeightsError(f"{variable} names a certificate bundle that does not exist: {bundle}")
    folder = os.environ.get("SSL_CERT_DIR") if variable == "SSL_CERT_FILE" else None  # OpenSSL reads the two together
    try:
        if bundle.is_dir():
            return ssl.create_default_context(capath=str(bundle))
        return ssl.create_default_context(cafile=str(bundle), capath=folder)
    except OSError as error:
        raise WeightsError(f"{variable} names a certificate bundle that cannot be loaded: {bundle}: {error}") from error
