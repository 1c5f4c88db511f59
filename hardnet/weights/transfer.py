"""The attempts to bring one file over HTTP: what is refused, what is tried again, what is resumed."""

from __future__ import annotations

import email.utils
import http.client
import logging
import re
import socket
import ssl
import time
import urllib.error
from typing import Protocol

from ..utils.progress import ProgressBar
from .connection import Policy, TooSlowError, TransferError, open_url, redact

logger = logging.getLogger(__name__)

_CHUNK = 256 * 1024
_HEAD = 64  # bytes that suffice to tell a checkpoint from a page
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"
_RETRIED = {408, 425, 429}
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Target(Protocol):
    """Where the bytes go: appended, or all dropped."""

    @property
    def size(self) -> int: ...  # noqa: D102  see the class

    def write(self, chunk: bytes) -> None: ...  # noqa: D102

    def restart(self) -> None: ...  # noqa: D102


def download(
    url: str, target: Target, *, archived: bool, policy: Policy, bar: ProgressBar, resume: bool = True
) -> bool:
    """Bring what ``url`` serves into the empty ``target``; return whether it was pieced together from ranges.

    Raises:
        TransferError: the address did not yield a file that could be a checkpoint, after all attempts.
        WeightsError: writing to ``target`` failed, or the environment names certificates that cannot be loaded.
    """
    transfer = _Transfer(url, target, archived, policy, bar, resume)
    transfer.run()
    return transfer.resumed


def check_start(head: bytes, archived: bool) -> None:
    """Refuse a file whose first bytes cannot be those of a checkpoint, or of an archive.

    Raises:
        TransferError: they cannot be; the message says what came instead.
    """
    if head.startswith(_ZIP) or (head.startswith(_PICKLE) and not archived):
        return
    if not head:
        raise TransferError("the file is empty")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--", b"<title")):
        raise TransferError("an HTML page came in place of the file")
    expected = "a zip archive" if archived else "a PyTorch checkpoint"
    raise TransferError(f"what came is not {expected}: it starts with {head[:16]!r}")


class _Transfer:
    """One download: what is known of the file, and how far it has come."""

    def __init__(
        self, url: str, target: Target, archived: bool, policy: Policy, bar: ProgressBar, resume: bool
    ) -> None:
        self.url = url
        self.target = target
        self.archived = archived
        self.policy = policy
        self.bar = bar
        self.resume = resume
        self.resumed = False
        self.total: int | None = None
        self.etag: str | None = None
        self.modified: str | None = None

    def run(self) -> None:
        failures, most = 0, 0
        while True:
            try:
                self._attempt()
            except TransferError as error:
                # Only a new record counts as progress, so that no server can keep us busy for ever.
                failures = 1 if self.target.size >= most + self.policy.progress_bytes else failures + 1
                most = max(most, self.target.size)
                if not error.retry:
                    raise
                if failures >= self.policy.attempts:
                    raise TransferError(f"{error}{f' (tried {failures} times)' if failures > 1 else ''}") from error
                self._wait(error, failures)
            else:
                return

    def _wait(self, error: TransferError, failures: int) -> None:
        seconds = self.policy.backoff * 2.0 ** (failures - 1)
        if error.wait is not None:
            seconds = max(seconds, min(error.wait, self.policy.retry_after_cap))
        logger.info("%s: %s; trying again in %.1f seconds", redact(self.url), error, seconds)
        time.sleep(seconds)

    def _attempt(self) -> None:
        headers = {"User-Agent": _user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"}
        validator = self.etag or self.modified  # by which the server knows whether its file is still the same
        if self.target.size and (validator is None or not self.resume):
            self._restart()
        elif self.target.size and validator is not None:
            headers |= {"Range": f"bytes={self.target.size}-", "If-Range": validator}
        try:
            with open_url(self.url, headers, self.policy) as answer:
                self._receive(answer, self._accept(answer))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _as_transfer_error(error, self.policy) from error

    def _accept(self, answer: http.client.HTTPResponse) -> int | None:
        """Check status line and headers; return the size that the target will have after this answer, if known."""
        offset = self.target.size
        if answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            self._restart()
            raise TransferError("the server cannot continue where the transfer broke off", retry=True)
        if answer.status != http.HTTPStatus.OK and not (answer.status == http.HTTPStatus.PARTIAL_CONTENT and offset):
            raise _status_error(answer)
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise TransferError(f"the server encoded the file ({encoding}) though asked not to")
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise TransferError("an HTML page came in place of the file")
        return (
            self._accept_rest(answer) if answer.status == http.HTTPStatus.PARTIAL_CONTENT else self._accept_all(answer)
        )

    def _accept_all(self, answer: http.client.HTTPResponse) -> int | None:
        if self.target.size:
            self._restart()  # the server sends the whole file: it knows no ranges, or the file has changed
        length = answer.headers.get("Content-Length")
        if length is not None and _NUMBER.fullmatch(length.strip()) is None:
            raise TransferError(f"a Content-Length that makes no sense: {length!r}")
        self.total = self.bar.total = None if length is None else int(length)
        self._check_size(self.total or 0)
        etag = answer.headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') else None  # a weak one vouches for the meaning, not for the bytes
        self.modified = answer.headers.get("Last-Modified")
        return self.total

    def _accept_rest(self, answer: http.client.HTTPResponse) -> int:
        text = answer.headers.get("Content-Range", "")
        end = self._end_of_rest(text, answer.headers.get("ETag"))
        if end is None:
            offset = self.target.size
            self._restart()
            raise TransferError(f"asked for the file from byte {offset} on, got the range {text!r}", retry=True)
        self.resumed = True
        return end

    def _end_of_rest(self, content_range: str, etag: str | None) -> int | None:
        """Return where the range that came ends, or None where it does not continue the file that we have begun."""
        match = _CONTENT_RANGE.fullmatch(content_range.strip())
        if match is None or (etag is not None and self.etag is not None and etag != self.etag):
            return None
        start, last = int(match[1]), int(match[2])
        total = self.total if match[3] == "*" else int(match[3])
        if total is None or self.total not in (None, total) or not self.target.size == start <= last < total:
            return None
        self._check_size(total)
        self.total = self.bar.total = total
        return last + 1

    def _receive(self, answer: http.client.HTTPResponse, end: int | None) -> None:
        if not self.target.size:
            head = self._read_head(answer, end)
            if len(head) < _HEAD and end is not None and len(head) < end:
                raise TransferError(f"the connection closed after {len(head)} of {end} bytes", retry=True)
            check_start(head, self.archived)
            self._write(head)
        while end is None or self.target.size < end:
            chunk = answer.read1(_CHUNK if end is None else min(_CHUNK, end - self.target.size))
            if not chunk:
                break
            self._write(chunk)
        if self.total is not None and self.target.size < self.total:
            raise TransferError(f"the connection closed after {self.target.size} of {self.total} bytes", retry=True)

    def _read_head(self, answer: http.client.HTTPResponse, end: int | None) -> bytes:
        head = b""
        wanted = _HEAD if end is None else min(_HEAD, end)
        while len(head) < wanted and (chunk := answer.read1(wanted - len(head))):
            head += chunk
        return head

    def _write(self, chunk: bytes) -> None:
        self._check_size(self.target.size + len(chunk))
        self.target.write(chunk)
        self.bar.update(len(chunk))

    def _restart(self) -> None:
        self.bar.update(-self.target.size)
        self.target.restart()
        self.resumed = False  # the rest of what is known comes anew with the next answer

    def _check_size(self, size: int) -> None:
        if size > self.policy.max_bytes:
            raise TransferError(f"the file is larger than {self.policy.max_bytes} bytes")


def _user_agent() -> str:
    from ..utils.version import __version__  # here, since the package's own import may not be over yet

    return f"hardnet/{__version__}"


def _status_error(answer: http.client.HTTPResponse) -> TransferError:
    retry = answer.status in _RETRIED or answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    wait = _seconds(answer.headers.get("Retry-After")) if retry else None
    return TransferError(f"HTTP {answer.status} {answer.reason}".rstrip(), retry=retry, wait=wait)


def _seconds(retry_after: str | None) -> float | None:
    """Return the wait that a Retry-After header asks for: seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None  # neither: as good as no header


def _as_transfer_error(error: Exception, policy: Policy) -> TransferError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return TransferError(
            f"the server's certificate is not trusted: {reason.verify_message}. Behind a proxy that opens TLS, name "
            "its certificate bundle in SSL_CERT_FILE"
        )
    if isinstance(reason, TooSlowError):
        return TransferError(f"the transfer was too slow: {reason}", retry=True)
    if isinstance(reason, TimeoutError):
        if error is not reason:  # urllib wraps what happens before the request is out
            return TransferError(f"no connection within {policy.connect_timeout:g} seconds", retry=True)
        return TransferError(f"nothing came for {policy.stall_timeout:g} seconds", retry=True)
    if isinstance(error, (http.client.InvalidURL, ValueError)):
        return TransferError(f"the address makes no sense: {error}")
    # A name that does not exist will not exist in a second; one that could not be looked up may.
    retry = not (isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME)
    return TransferError(f"the connection failed: {reason or type(error).__name__}", retry=retry)
