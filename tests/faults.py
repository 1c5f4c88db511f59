"""The faults that a download is put through: what the server does, and what becomes of it. One row each.

The tests run every row, and ``tools/fault_table.py`` writes the table of docs/reliability.md from the same rows.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import stat
import struct
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from http_server import (
    Handler,
    ScriptedServer,
    Step,
    chunked,
    hang_up,
    ranged,
    redirect,
    serve,
    stalling,
    trickling,
)
from made_records import GOOD, OTHER, packed

from hardnet.weights.download import Policy

HALF = len(GOOD) // 2
HTML = b"<!DOCTYPE html><html><title>Parked</title></html>"
MAX_BYTES = 1_000_000

POLICY = Policy(
    connect_timeout=10, stall_timeout=10, attempts=2, backoff=0.01, retry_after_cap=0.05, max_bytes=MAX_BYTES
)
IMPATIENT = dataclasses.replace(POLICY, stall_timeout=0.2)
PATIENT = dataclasses.replace(POLICY, attempts=3)
HURRIED = dataclasses.replace(POLICY, min_throughput=1000, throughput_window=0.2)

GAVE_UP = "next source"
RECOVERED = "same source"


@dataclass(frozen=True)
class Fault:
    """What one server does wrong."""

    what: str
    """For the table."""
    script: Callable[[ScriptedServer, str], object]
    """Prepares a server to do it at a path."""
    says: str = ""
    """What the log, and the error where it is the only source, says; empty where the fault is overcome."""
    requests: int = 1
    """How many times the source is asked before it is given up, or yields."""
    archived: bool = False
    tls: bool = False
    policy: Policy = POLICY

    @property
    def outcome(self) -> str:
        """Where the weights come from in the end."""
        return GAVE_UP if self.says else RECOVERED


def steps(*script: Step) -> Callable[[ScriptedServer, str], object]:
    return lambda server, path: server.on(path, *script)


def _stalled(sent: int) -> Step:
    return stalling(GOOD, sent, threading.Event())


def _answer(body: bytes, length: int) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def _endless_body(handler: Handler) -> None:
    """A zip's first bytes, and then zeros for ever."""
    handler.start(200, {"Content-Type": "application/octet-stream"})
    handler.wfile.write(GOOD[:100])
    while True:
        handler.wfile.write(bytes(65536))


def _endless_header(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-Pad: " + b"x" * 1000 + b"\r\n")


def _endless_interim(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def _endless_trailer(handler: Handler) -> None:
    chunked(GOOD, ended=False)(handler)
    handler.wfile.write(b"0\r\n")
    while True:
        handler.wfile.write(b"X-Pad: x\r\n" * 1000)


def _terminal_commands(handler: Handler) -> None:
    """Words that would clear the screen where they are shown."""
    handler.wfile.write(b"HTTP/1.1 404 \x1b[2J Not Found\r\nContent-Length: 0\r\n\r\n")


def _elsewhere(server: ScriptedServer, path: str) -> None:
    """Another host: the same machine by another name, where nothing good is served."""
    other = server.on("/elsewhere", serve(OTHER)).replace("127.0.0.1", "localhost")
    server.on(path, redirect(other))


def _no_tls(server: ScriptedServer, path: str) -> str:
    return server.on(path, hang_up).replace("http:", "https:")


def _moved(server: ScriptedServer, path: str) -> None:
    server.on("/moved", serve(GOOD))
    server.on(path, redirect("/moved", 308))


def _maze(server: ScriptedServer, path: str) -> None:
    for number in range(20):
        server.on(f"/maze{number}", redirect(f"/maze{number + 1}"))
    server.on(path, redirect("/maze0"))


def _zip(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def _link() -> bytes:
    info = zipfile.ZipInfo("hardnet.pth")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return _zip((info, b"/etc/passwd"))


def _lying_bomb() -> bytes:
    content = bytearray(_zip(("hardnet.pth", bytes(3 * MAX_BYTES))))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 1000)
    return bytes(content)


def trace() -> Path:
    """What a pickle would leave behind if it were run."""
    return Path(tempfile.gettempdir()) / f"hardnet-fault-trace-{os.getpid()}"


class Gadget:
    """A pickle that leaves a file behind if it is run."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (trace(),)


HARMFUL_PICKLE = pickle.dumps({"state_dict": Gadget()}, 2)


def status(code: int, **headers: str) -> Step:
    return serve(b"", status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


def _slow_start(handler: Handler) -> None:
    time.sleep(0.3)
    serve(GOOD)(handler)


_CUT = f"closed after {HALF} of {len(GOOD)} bytes"
_WRONG = "another file or damaged"

FAULTS = (
    Fault("an HTML page with status 200", steps(serve(HTML, kind="text/html")), "an HTML page"),
    Fault("an HTML page that is called binary", steps(serve(HTML)), "an HTML page"),
    Fault("a Git LFS pointer", steps(serve(b"version https://git-lfs.github.com/spec/v1\n")), "not a PyTorch"),
    Fault("an empty file", steps(serve(b"")), "the file is empty"),
    Fault("404", steps(status(404)), "HTTP 404"),
    Fault("403", steps(status(403)), "HTTP 403"),
    Fault("401", steps(status(401)), "HTTP 401"),
    Fault("410", steps(status(410)), "HTTP 410"),
    Fault("429 with Retry-After, then the file", steps(status(429, Retry_After="1"), serve(GOOD)), requests=2),
    Fault("429 for ever, Retry-After: a day", steps(status(429, Retry_After="86400")), "HTTP 429", requests=2),
    Fault("404 in words that would clear the screen", steps(_terminal_commands), r"HTTP 404 \x1b[2J Not Found"),
    Fault("500, then the file", steps(status(500), serve(GOOD)), requests=2),
    Fault("500 for ever", steps(status(500)), "HTTP 500", requests=2),
    Fault("503 for ever", steps(status(503)), "HTTP 503", requests=2),
    Fault("an answer of no known protocol", steps(trickling(b"SSH-2.0-x\r\n", at_once=99)), "failed", requests=2),
    Fault("a redirect to the file", _moved),
    Fault("a redirect to itself, for ever", lambda s, p: s.on(p, redirect(p)), "more than 10 redirects", requests=11),
    Fault("twenty redirects in a row", _maze, "more than 10 redirects"),
    Fault("a redirect to file:", steps(redirect("file:///etc/passwd")), "redirect that is not followed"),
    Fault("a redirect to data:", steps(redirect("data:,x")), "redirect that is not followed"),
    Fault("a redirect to ftp:", steps(redirect("ftp://127.0.0.1/x")), "redirect that is not followed"),
    Fault("a redirect without an address", steps(redirect(None)), "does not say where"),
    Fault("a redirect to another host with another file", _elsewhere, _WRONG),
    Fault("closes without a word", steps(hang_up), "connection failed", requests=2),
    Fault("closes once, then the file", steps(hang_up, serve(GOOD)), requests=2),
    Fault("closes after half, each time", steps(serve(GOOD, sent=HALF)), _CUT, requests=2),
    Fault("closes after half, then resumes", steps(ranged(GOOD, sent=HALF), ranged(GOOD)), requests=2),
    Fault("closes after 10 bytes, each time", steps(serve(GOOD, sent=10)), "closed after 10 of", requests=2),
    Fault("stalls before the first byte", steps(_stalled(0)), "nothing came for", requests=2, policy=IMPATIENT),
    Fault("stalls after half", steps(_stalled(HALF)), "nothing came for", requests=2, policy=IMPATIENT),
    Fault(
        "trickles a byte at a time", steps(trickling(_answer(GOOD, len(GOOD)))), "too slow", requests=2, policy=HURRIED
    ),
    Fault("thinks a while, then sends the file", steps(_slow_start)),
    Fault("an endless body", steps(_endless_body), "larger than"),
    Fault("endless headers", steps(_endless_header), "connection failed", requests=2),
    Fault("100 Continue, without end", steps(_endless_interim), "without end"),
    Fault("the file in chunks, and trailers without end", steps(_endless_trailer), "without end"),
    Fault("a Content-Length of too much", steps(serve(GOOD, length=len(GOOD) + 5)), "closed after", requests=2),
    Fault("a Content-Length of too little", steps(serve(GOOD, length=len(GOOD) - 5)), _WRONG),
    Fault("a Content-Length of a terabyte", steps(serve(GOOD, length=10**12)), "larger than"),
    Fault("a Content-Length that is no number", steps(serve(GOOD, length="many")), "makes no sense"),
    Fault("chunks that break off", steps(chunked(GOOD, ended=False)), "connection failed", requests=2),
    Fault("a gzip-encoded body", steps(serve(GOOD, headers={"Content-Encoding": "gzip"})), "encoded the file (gzip)"),
    Fault("ignores Range", steps(ranged(GOOD, sent=HALF), serve(GOOD)), requests=2),
    Fault(
        "answers Range with other bytes than it says",
        steps(ranged(GOOD, sent=HALF), ranged(OTHER), serve(GOOD)),
        requests=3,
    ),
    Fault(
        "answers Range with another place",
        steps(ranged(GOOD, sent=HALF), ranged(GOOD, shift=1), serve(GOOD)),
        requests=3,
        policy=PATIENT,
    ),
    Fault(
        "answers Range with another size",
        steps(ranged(GOOD, sent=HALF), ranged(GOOD, total=9), serve(GOOD)),
        requests=3,
        policy=PATIENT,
    ),
    Fault(
        "answers Range with 416", steps(ranged(GOOD, sent=HALF), status(416), serve(GOOD)), requests=3, policy=PATIENT
    ),
    Fault(
        "changes the file between two ranges, and says so",
        steps(ranged(OTHER, etag='"old"', sent=HALF), ranged(GOOD, etag='"new"')),
        requests=2,
    ),
    Fault(
        "changes the file between two ranges, and does not say so",
        steps(ranged(OTHER, sent=HALF), ranged(GOOD), serve(GOOD)),
        requests=3,
    ),
    Fault("an untrusted certificate", steps(serve(GOOD)), "certificate is not trusted", requests=0, tls=True),
    Fault("plain HTTP where TLS is expected", _no_tls, "connection failed", requests=0),
    Fault("a wrong file of the right size", steps(serve(OTHER)), _WRONG),
    Fault("one bit flipped", steps(serve(GOOD[:HALF] + bytes([GOOD[HALF] ^ 1]) + GOOD[HALF + 1 :])), _WRONG),
    Fault("bytes appended", steps(serve(GOOD + b"\0")), _WRONG),
    Fault("a pickle that would run code", steps(serve(HARMFUL_PICKLE)), _WRONG),
    Fault("an archive with that pickle in it", steps(serve(packed(HARMFUL_PICKLE))), _WRONG, archived=True),
    Fault("a zip bomb", steps(serve(_zip(("hardnet.pth", bytes(3 * MAX_BYTES))))), "unpacks to", archived=True),
    Fault("a zip bomb that lies about its size", steps(serve(_lying_bomb())), "damaged", archived=True),
    Fault("an archive with a ../ name", steps(serve(_zip(("../hardnet.pth", GOOD)))), "one plain name", archived=True),
    Fault("an archive with an absolute name", steps(serve(_zip(("/x.pth", GOOD)))), "one plain name", archived=True),
    Fault("an archive with a link", steps(serve(_link())), "not a regular file", archived=True),
    Fault(
        "an archive with two members", steps(serve(_zip(("a.pth", GOOD), ("b.pth", GOOD)))), "2 members", archived=True
    ),
    Fault("a truncated archive", steps(serve(packed(GOOD)[:-30])), "damaged", archived=True),
    Fault("a checkpoint where an archive is expected", steps(serve(GOOD)), "members", archived=True),
)
