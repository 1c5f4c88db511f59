"""What a download refuses, tries again and resumes, against a real server."""

from __future__ import annotations

import email.utils
import random
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from http_server import (
    ScriptedServer,
    Step,
    chunked,
    hang_up,
    ranged,
    serve,
    stalling,
    trickling,
)

import hardnet
from hardnet.utils.progress import ProgressBar
from hardnet.weights import transfer
from hardnet.weights.connection import Policy, TransferError
from hardnet.weights.transfer import check_start, download

ZIP = b"PK\x03\x04" + random.Random(0).randbytes(50_000)  # noqa: S311  test data
PICKLE = b"\x80\x02" + random.Random(1).randbytes(50_000)  # noqa: S311  test data
POLICY = Policy(connect_timeout=5, stall_timeout=5, attempts=3, backoff=0.01, retry_after_cap=0.05)
HTML = b"\n<!DOCTYPE html><html><title>Parked</title></html>"
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


class Memory:
    """A target that keeps its bytes, and counts how often it was emptied."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.restarts = 0

    @property
    def size(self) -> int:
        return len(self.content)

    def write(self, chunk: bytes) -> None:
        self.content += chunk

    def restart(self) -> None:
        self.content.clear()
        self.restarts += 1


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    return waits


class Fetched:
    """One download of /f, its outcome and its traces."""

    def __init__(
        self,
        server: ScriptedServer,
        *steps: Step,
        policy: Policy = POLICY,
        archived: bool = False,
        resume: bool = True,
    ) -> None:
        before = server.hits("/f")
        self.target, self.bar = Memory(), ProgressBar(None, "f", enabled=False)
        self.error: TransferError | None = None
        self.resumed = False
        try:
            self.resumed = download(
                server.on("/f", *steps),
                self.target,
                archived=archived,
                policy=policy,
                bar=self.bar,
                resume=resume,
            )
        except TransferError as error:
            self.error = error
        self.content = bytes(self.target.content)
        self.requests = server.requests("/f")[before:]
        self.ranges = [seen.headers.get("range") for seen in self.requests]


@pytest.mark.parametrize("content", [ZIP, PICKLE])
@pytest.mark.parametrize("answer", [serve, chunked, ranged])
def test_a_good_file_arrives(server: ScriptedServer, content: bytes, answer: object) -> None:
    got = Fetched(server, answer(content))  # type: ignore[operator]
    assert got.error is None
    assert got.content == content
    assert got.bar.count == len(content)
    assert got.bar.total == (None if answer is chunked else len(content))
    assert not got.resumed
    headers = got.requests[0].headers
    assert headers["user-agent"] == f"hardnet/{hardnet.__version__}"
    assert headers["accept-encoding"] == "identity"
    assert "range" not in headers


def test_a_file_without_a_length_ends_with_the_connection(server: ScriptedServer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n" + ZIP
    assert Fetched(server, trickling(answer, at_once=len(answer))).content == ZIP


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("page", [HTML, b"\xef\xbb\xbf<HTML>", b"<!-- x --><html>", b"  <script>x</script>"])
def test_an_html_page_is_called_one(server: ScriptedServer, kind: str, page: bytes) -> None:
    got = Fetched(server, serve(page, kind=kind))
    assert got.error is not None
    assert "an HTML page came" in str(got.error)
    assert len(got.requests) == 1
    assert got.content == b""


@pytest.mark.parametrize("kind", ["text/html", "TEXT/HTML; charset=x", "application/xhtml+xml"])
def test_a_page_that_only_its_headers_call_html_is_one_too(server: ScriptedServer, kind: str) -> None:
    assert "an HTML page came" in str(Fetched(server, serve(b"Domain for sale", kind=kind)).error)


@pytest.mark.parametrize(
    "start", [b'{"error": "no"}', b"version https://git-lfs", b"PK\x05\x06", b"\x1f\x8b", b"P", b"\0"]
)
def test_what_starts_unlike_a_checkpoint_is_refused(server: ScriptedServer, start: bytes) -> None:
    got = Fetched(server, serve(start + bytes(1000)))
    assert got.error is not None
    assert "not a PyTorch checkpoint" in str(got.error)
    assert repr(start[:4])[2:-1] in str(got.error)
    assert len(got.requests) == 1


def test_an_archive_must_start_as_a_zip(server: ScriptedServer) -> None:
    assert Fetched(server, serve(ZIP), archived=True).content == ZIP
    assert "not a zip archive" in str(Fetched(server, serve(PICKLE), archived=True).error)
    check_start(PICKLE, archived=False)
    with pytest.raises(TransferError, match="not a zip archive"):
        check_start(PICKLE, archived=True)


def test_an_empty_file_is_refused(server: ScriptedServer) -> None:
    assert "empty" in str(Fetched(server, serve(b"")).error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 304, 416, 451])
def test_a_lasting_refusal_is_not_tried_again(server: ScriptedServer, status: int) -> None:
    got = Fetched(server, serve(b"", status=status))
    assert got.error is not None
    assert str(got.error).startswith(f"HTTP {status}")
    assert len(got.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_tried_again(server: ScriptedServer, status: int) -> None:
    got = Fetched(server, serve(b"", status=status), serve(ZIP))
    assert got.error is None
    assert got.content == ZIP
    assert len(got.requests) == 2


def test_attempts_are_bounded_and_further_and_further_apart(server: ScriptedServer, sleeps: list[float]) -> None:
    got = Fetched(server, serve(b"", status=503), policy=Policy(attempts=5, backoff=2))
    assert got.error is not None
    assert str(got.error).startswith("HTTP 503")
    assert "tried 5 times" in str(got.error)
    assert len(got.requests) == 5
    assert sleeps == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [("7", 7), ("0", 1), ("3600", 60), ("soon", 1), ("-5", 1), (DATE, 1), ("9" * 5000, 60), ("Wed, 99 Oct", 1)],
)
def test_retry_after_is_honoured_up_to_a_cap(
    server: ScriptedServer, sleeps: list[float], retry_after: str, wait: float
) -> None:
    got = Fetched(
        server,
        serve(b"", status=429, headers={"Retry-After": retry_after}),
        serve(ZIP),
        policy=Policy(backoff=1, retry_after_cap=60),
    )
    assert got.content == ZIP
    assert sleeps == [wait]


def test_retry_after_may_be_a_date(server: ScriptedServer, sleeps: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 40, usegmt=True)
    steps = (serve(b"", status=503, headers={"Retry-After": date}), serve(ZIP))
    assert Fetched(server, *steps, policy=Policy(retry_after_cap=60)).content == ZIP
    assert Fetched(server, *steps, policy=Policy(retry_after_cap=3)).content == ZIP
    assert 20 < sleeps[0] <= 40
    assert sleeps[1:] == [3]


def test_a_closed_connection_is_tried_again(server: ScriptedServer) -> None:
    assert Fetched(server, hang_up, hang_up, serve(ZIP)).content == ZIP
    got = Fetched(server, hang_up)
    assert "connection failed" in str(got.error)


def test_a_refused_connection_is_tried_again_and_said_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/f"
        with pytest.raises(TransferError, match=r"connection failed: .*refused.*tried 3 times"):
            download(url, Memory(), archived=False, policy=POLICY, bar=ProgressBar(None, "f", enabled=False))


def test_a_name_that_does_not_exist_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, sleeps: list[float]) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransferError, match="Name or service not known"):
        download("http://x.invalid/", Memory(), archived=False, policy=POLICY, bar=ProgressBar(None, "f"))
    assert sleeps == []


@pytest.mark.parametrize("url", ["http://a..b/x", "http://" + "a" * 70 + "/x", "http://127.0.0.1:99999/x"])
def test_an_impossible_address_is_an_error_like_any_other(url: str) -> None:
    with pytest.raises(TransferError, match="makes no sense"):
        download(url, Memory(), archived=False, policy=POLICY, bar=ProgressBar(None, "f", enabled=False))


@pytest.mark.parametrize("sent", [70, 20_000, len(ZIP) - 1])
@pytest.mark.parametrize("validators", [{}, {"etag": 'W/"weak"', "modified": DATE}, {"etag": None, "modified": DATE}])
def test_a_broken_transfer_is_resumed(server: ScriptedServer, sent: int, validators: dict[str, str | None]) -> None:
    got = Fetched(server, ranged(ZIP, sent=sent, **validators), ranged(ZIP, **validators))  # type: ignore[arg-type]
    assert got.error is None
    assert got.content == ZIP
    assert got.resumed
    assert got.target.restarts == 0
    assert got.ranges == [None, f"bytes={sent}-"]
    assert got.requests[1].headers["if-range"] == (DATE if "modified" in validators else '"one"')
    assert got.bar.count == len(ZIP)


def test_a_transfer_may_be_resumed_several_times(server: ScriptedServer) -> None:
    got = Fetched(server, ranged(ZIP, sent=20_000), ranged(ZIP, sent=10_000, echo=False), ranged(ZIP))
    assert got.content == ZIP
    assert got.ranges == [None, "bytes=20000-", "bytes=30000-"]


def test_ranges_may_come_in_smaller_pieces_than_asked_for(server: ScriptedServer) -> None:
    pieces = [
        serve(
            ZIP[start : start + 20_000],
            status=206,
            headers={"Content-Range": f"bytes {start}-{min(start + 20_000, len(ZIP)) - 1}/{len(ZIP)}"},
        )
        for start in (20_000, 40_000)
    ]
    got = Fetched(server, ranged(ZIP, sent=20_000), *pieces)
    assert got.content == ZIP
    assert got.ranges == [None, "bytes=20000-", "bytes=40000-"]


def test_a_transfer_resumed_and_then_begun_anew_counts_as_whole(server: ScriptedServer) -> None:
    got = Fetched(server, ranged(ZIP, sent=20_000), ranged(ZIP, sent=10_000), serve(ZIP))
    assert got.content == ZIP
    assert not got.resumed
    assert got.target.restarts == 1


def test_a_transfer_that_comes_forward_may_break_more_often_than_the_attempts(server: ScriptedServer) -> None:
    policy = Policy(attempts=2, backoff=0.001, progress_bytes=10_000)
    assert Fetched(server, ranged(ZIP, sent=10_000), policy=policy).content == ZIP
    got = Fetched(server, ranged(ZIP, sent=9_999), policy=policy)
    assert got.error is not None
    assert len(got.requests) == 2


def test_the_same_bytes_again_and_again_are_no_progress(server: ScriptedServer) -> None:
    policy = Policy(attempts=3, backoff=0.001, progress_bytes=10_000)
    got = Fetched(server, serve(ZIP, sent=20_000), policy=policy)
    assert "closed after 20000 of 50004 bytes" in str(got.error)
    assert len(got.requests) == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (serve(ZIP, sent=20_000), ranged(ZIP)),
        (ranged(ZIP, etag='W/"weak"', sent=20_000), ranged(ZIP)),
        (ranged(ZIP, sent=20_000), serve(ZIP)),
        (ranged(PICKLE, etag='"one"', sent=20_000), ranged(ZIP, etag='"two"')),
        (ranged(ZIP, sent=50), ranged(ZIP)),
    ],
    ids=["no validator", "weak validator", "server without ranges", "file changed", "too little to judge"],
)
def test_what_cannot_be_resumed_starts_again(server: ScriptedServer, first: Step, second: Step) -> None:
    got = Fetched(server, first, second)
    assert got.error is None
    assert got.content == ZIP
    assert not got.resumed
    assert len(got.requests) == 2
    assert got.bar.count == len(ZIP)


@pytest.mark.parametrize(
    "wrong",
    [
        ranged(ZIP, shift=1),
        ranged(ZIP, shift=-1),
        ranged(ZIP, total=len(ZIP) + 1),
        ranged(ZIP, total=10),
        serve(ZIP[20_000:], status=206),
        serve(ZIP[20_000:], status=206, headers={"Content-Range": "bytes 20000-9/50004"}),
        serve(ZIP[20_000:], status=206, headers={"Content-Range": "bytes 20000-50004/50004"}),
        serve(ZIP[20_000:], status=206, headers={"Content-Range": "bytes 20000-50003/50004", "ETag": '"two"'}),
        serve(b"", status=416, headers={"Content-Range": "bytes */50004"}),
    ],
    ids=["late", "early", "larger", "smaller", "no range", "backwards", "beyond", "other file", "416"],
)
def test_a_range_that_does_not_fit_starts_again(server: ScriptedServer, wrong: Step) -> None:
    got = Fetched(server, ranged(ZIP, sent=20_000), wrong, serve(ZIP))
    assert got.error is None
    assert got.content == ZIP
    assert not got.resumed
    assert got.ranges == [None, "bytes=20000-", None]
    assert got.bar.count == len(ZIP)


def test_a_range_without_a_total_is_taken_at_the_first_answers_word(server: ScriptedServer) -> None:
    got = Fetched(server, ranged(ZIP, sent=20_000), ranged(ZIP, total="*"))
    assert got.content == ZIP
    assert got.resumed


def test_resuming_can_be_forbidden(server: ScriptedServer) -> None:
    got = Fetched(server, ranged(ZIP, sent=20_000), ranged(ZIP), resume=False)
    assert got.content == ZIP
    assert got.ranges == [None, None]


def test_a_chunked_answer_that_breaks_off_is_tried_again(server: ScriptedServer) -> None:
    got = Fetched(server, chunked(ZIP, ended=False), chunked(ZIP))
    assert got.content == ZIP
    assert len(got.requests) == 2


def test_a_length_that_promises_too_much_is_an_error(server: ScriptedServer) -> None:
    got = Fetched(server, serve(ZIP, length=len(ZIP) + 5))
    assert f"closed after {len(ZIP)} of {len(ZIP) + 5} bytes" in str(got.error)
    assert len(got.requests) == 3


def test_nothing_beyond_the_length_is_taken(server: ScriptedServer) -> None:
    assert Fetched(server, serve(ZIP, length=len(ZIP) - 5)).content == ZIP[:-5]


@pytest.mark.parametrize("length", ["many", "-1", "1e3", "9" * 40])
def test_a_length_that_makes_no_sense_is_an_error(server: ScriptedServer, length: str) -> None:
    assert "Content-Length that makes no sense" in str(Fetched(server, serve(ZIP, length=length)).error)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_an_encoded_body_is_refused(server: ScriptedServer, encoding: str) -> None:
    got = Fetched(server, serve(ZIP, headers={"Content-Encoding": encoding}))
    assert f"encoded the file ({encoding})" in str(got.error)
    assert len(got.requests) == 1
    assert Fetched(server, serve(ZIP, headers={"Content-Encoding": "identity"})).content == ZIP


@pytest.mark.parametrize("answer", [serve(ZIP), chunked(ZIP), ranged(ZIP)])
def test_the_size_is_bounded(server: ScriptedServer, answer: Step) -> None:
    got = Fetched(server, answer, policy=Policy(max_bytes=len(ZIP) - 1))
    assert f"larger than {len(ZIP) - 1} bytes" in str(got.error)
    assert got.target.size < len(ZIP)
    assert len(got.requests) == 1
    assert Fetched(server, answer, policy=Policy(max_bytes=len(ZIP))).content == ZIP


def test_a_declared_size_over_the_limit_is_refused_before_a_byte_is_read(server: ScriptedServer) -> None:
    assert Fetched(server, serve(ZIP, length=10**12), policy=Policy(max_bytes=10**6)).target.size == 0
    first = chunked(ZIP, ended=False, headers={"ETag": '"one"'})
    rest = serve(b"", status=206, headers={"Content-Range": f"bytes {len(ZIP)}-9999999/10000000", "ETag": '"one"'})
    got = Fetched(server, first, rest, policy=Policy(max_bytes=10**6, backoff=0.01))
    assert "larger than 1000000 bytes" in str(got.error)
    assert len(got.requests) == 2


def test_a_stall_ends_the_attempt_and_the_next_one_resumes(server: ScriptedServer) -> None:
    release = threading.Event()
    policy = Policy(stall_timeout=0.3, attempts=3, backoff=0.01)
    got = Fetched(server, stalling(ZIP, 20_000, release, ETag='"one"'), ranged(ZIP), policy=policy)
    release.set()
    assert got.content == ZIP
    assert got.ranges == [None, "bytes=20000-"]


@pytest.mark.parametrize("sent", [0, 30, 20_000])
def test_a_lasting_stall_is_an_error(server: ScriptedServer, sent: int) -> None:
    release = threading.Event()
    got = Fetched(server, stalling(ZIP, sent, release), policy=Policy(stall_timeout=0.1, attempts=2, backoff=0.01))
    release.set()
    assert "nothing came for 0.1 seconds" in str(got.error)
    assert len(got.requests) == 2


def test_a_trickle_is_an_error(server: ScriptedServer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + ZIP[:500]
    policy = Policy(stall_timeout=5, min_throughput=1000, throughput_window=0.2, attempts=1)
    got = Fetched(server, trickling(answer, at_once=100), policy=policy)
    assert "too slow" in str(got.error)
    assert got.target.size < 500


def test_a_connection_that_never_stands_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def never(address: object, timeout: float, *_: object) -> None:
        asked.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", never)
    policy = Policy(connect_timeout=3, attempts=2, backoff=0.01)
    with pytest.raises(TransferError, match="no connection within 3 seconds"):
        download("http://127.0.0.1/", Memory(), archived=False, policy=policy, bar=ProgressBar(None, "f"))
    assert asked == [3, 3]


def test_retries_are_logged(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hardnet"):
        Fetched(server, serve(b"", status=503), serve(ZIP))
    assert any("HTTP 503" in line and "trying again" in line for line in caplog.messages)
