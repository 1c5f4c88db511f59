"""Download a file over HTTP: redirects, certificates, time limits, retries and resuming."""

from __future__ import annotations

import base64
import errno
import http.client
import io
import logging
import os
import re
import socket
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..utils.errors import WeightsError
from ..utils.files import expand_user
from ..utils.text import printable
from ..utils.version import __version__
from .files import MAX_BYTES

logger = logging.getLogger(__name__)

Cause: TypeAlias = Literal["network", "host", "damaged"] | None
_CHUNK = 256 * 1024
_PROGRESS = 1024 * 1024  # bytes; an attempt that gets this much further than any earlier one resets the attempt counter
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/")
_REDIRECTS, _RETRIED, _MAX_REDIRECTS = (301, 302, 303, 307, 308), (408, 425, 429), 10
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_HIDDEN = "an address that is not valid"


@dataclass(frozen=True)
class Policy:
    """Limits of a download. Times are in seconds."""

    timeout: float = 20.0
    """Longest time without a connection, or without a byte."""
    total_timeout: float = 7200.0
    """Longest time for one address, all attempts included."""
    attempts: int = 4
    """Attempts per address. An attempt that brings a further mebibyte restarts the count."""
    backoff: float = 0.5
    """Wait before the second attempt. It doubles with each further one."""
    retry_after_cap: float = 60.0
    """Longest wait that a server can ask for with ``Retry-After``."""
    max_bytes: int = MAX_BYTES
    """Largest file, in bytes."""


class TransferError(Exception):
    """A source did not give the file. ``retry``: another attempt may succeed; ``wait``: the server's Retry-After."""

    def __init__(self, message: str, *, retry: bool = False, wait: float = 0.0, cause: Cause = "host") -> None:
        super().__init__(printable(message[:1000]))  # a server's text may be long
        self.retry, self.wait, self.cause = retry, wait, cause


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


class Transfer:
    """The download of one URL. An interrupted transfer continues with a range request.

    A server may have changed the file meanwhile: check the digest, and download again if it differs.
    ``report`` is called with the bytes so far and in total (None if unknown).
    """

    def __init__(self, url: str, policy: Policy, report: Callable[[int, int | None], None]) -> None:
        self.url, self.policy, self.report = url, policy, report
        self.deadline = time.monotonic() + policy.total_timeout
        self._restart()

    def run(self) -> bytes:
        """Return what the URL serves; afterwards ``resumed`` says whether it was assembled from several responses."""
        failures = most = 0
        while True:
            try:
                self._attempt()
                return self.buffer.getvalue()
            except TransferError as error:
                failures = 1 if self.size >= most + _PROGRESS else failures + 1
                most = max(most, self.size)
                if not error.retry:
                    raise
                if failures >= self.policy.attempts:
                    raise TransferError(f"{error} (tried {failures} times)", cause=error.cause) from error
                wait = max(self.policy.backoff * 2 ** (failures - 1), min(error.wait, self.policy.retry_after_cap))
                logger.info("%s: %s; trying again in %.1f seconds", redact(self.url), error, wait)
                time.sleep(wait)

    def _restart(self) -> None:
        self.buffer, self.size, self.resumed = io.BytesIO(), 0, False
        self.validator: str | None = None

    def _attempt(self) -> None:
        headers = {"User-Agent": f"hardnet/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
        if self.size:
            headers |= {"Range": f"bytes={self.size}-"} | ({"If-Range": self.validator} if self.validator else {})
        try:
            with _open(self.url, headers, self.policy) as response:
                self._check_status(response)
                self._receive(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _as_transfer_error(error, self.policy) from error

    def _check_status(self, response: http.client.HTTPResponse) -> None:
        if self.size and response.status in (http.HTTPStatus.PARTIAL_CONTENT, 416):
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self.size:
                self._restart()
                raise TransferError("the server does not continue the transfer where it ended", retry=True)
            self.resumed = True
        elif response.status == http.HTTPStatus.OK:
            self._restart()
            etag = response.headers.get("ETag", "")
            self.validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")  # not W/"weak"
        else:
            retry = response.status in _RETRIED or response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
            wait = response.headers.get("Retry-After", "").strip()
            text = f"HTTP {response.status} {response.reason}".rstrip()
            raise TransferError(text, retry=retry, wait=float(wait) if wait.isdecimal() else 0.0)

    def _receive(self, response: http.client.HTTPResponse) -> None:
        end = None if response.length is None else self.size + response.length  # None if the server does not say it
        while end is None or self.size < end:
            if max(self.size, end or 0) > self.policy.max_bytes:
                raise TransferError(f"the file is larger than {self.policy.max_bytes} bytes")
            if time.monotonic() > self.deadline:
                raise TransferError(f"not complete after {self.policy.total_timeout:g} seconds")
            chunk = response.read1(_CHUNK if end is None else min(_CHUNK, end - self.size))
            if not chunk:
                break
            self.size += self.buffer.write(chunk)
            self.report(self.size, end)
        if end is not None and self.size < end:
            raise TransferError(f"the connection closed after {self.size} of {end} bytes", retry=True)


def _open(url: str, headers: dict[str, str], policy: Policy) -> http.client.HTTPResponse:
    """Request ``url`` and follow redirects; return the response with any other status. The caller closes it.

    Proxies are those of the usual environment variables. A user and a password are sent to the host of ``url`` only.
    """
    if not is_valid(url):
        raise TransferError("not a valid http or https address")
    credentials = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    token = base64.b64encode(urllib.parse.unquote_to_bytes(credentials + ("" if ":" in credentials else ":")))
    address = _without_credentials(url)
    origin = urllib.parse.urlsplit(address)[:2]
    # Without the handlers of build_opener for redirects, HTTP errors, files and ftp.
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler(context=_trusted_certificates()))
    opener.add_handler(urllib.request.UnknownHandler())  # for a proxy of another kind
    for _ in range(_MAX_REDIRECTS + 1):
        request = urllib.request.Request(address, headers=headers)  # noqa: S310  http and https only
        if credentials and urllib.parse.urlsplit(address)[:2] == origin:
            request.add_unredirected_header("Authorization", f"Basic {token.decode()}")
        response: http.client.HTTPResponse = opener.open(request, timeout=policy.timeout)
        if response.status not in _REDIRECTS:
            return response
        response.close()
        # Headers arrive as Latin-1. Other characters than ASCII have to be quoted in a request.
        location = urllib.parse.quote(response.headers.get("Location", ""), string.punctuation, "iso-8859-1")
        target = urllib.parse.urljoin(address, location)
        if not location or not is_valid(target):
            raise TransferError("a redirect that does not lead to a valid http or https address")
        if address.startswith("https:") and not target.startswith("https:"):
            raise TransferError(f"a redirect from https to http: {redact(target)}")
        address = _without_credentials(target)
    raise TransferError(f"more than {_MAX_REDIRECTS} redirects")


def _without_credentials(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _trusted_certificates() -> ssl.SSLContext:
    """Trust the system's certificates, or those in the bundle that the environment names."""
    variable = next((name for name in _BUNDLES if os.environ.get(name)), "")
    bundle = str(expand_user(os.environ[variable])) if variable else None
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise WeightsError(f"{variable}: the certificate bundle {bundle} cannot be loaded: {error}") from error


def _as_transfer_error(error: Exception, policy: Policy) -> TransferError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return TransferError(f"the server's certificate is not trusted: {reason.verify_message} (see SSL_CERT_FILE)")
    if isinstance(reason, TimeoutError):
        return TransferError(f"no data for {policy.timeout:g} seconds", retry=True)
    if isinstance(error, (http.client.InvalidURL, ValueError)):
        return TransferError("the address, or that of a proxy, is not valid")  # the error's text may hold a password
    retry = not (isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME)
    offline = isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) == errno.ENETUNREACH
    cause: Cause = "network" if offline else "host"
    return TransferError(f"the connection failed: {reason or type(error).__name__}", retry=retry, cause=cause)
