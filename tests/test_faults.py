"""Every fault of the list: the right bytes from another source, or one clear error; a clean cache either way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FAULTS, GAVE_UP, Fault, trace
from http_server import ScriptedServer, running, serve
from made_records import GOOD, cached_names, record_of

import hardnet.weights.download
from hardnet.utils.errors import WeightsError
from hardnet.weights.catalog import WeightsRecord
from hardnet.weights.download import VerifiedFile, fetch

HANG = 120
"""Seconds: no fault takes as many, on any machine."""


@pytest.fixture(autouse=True)
def _environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[bool, ScriptedServer]]:
    with running() as plain, running(tls=True) as tls:
        yield {False: plain, True: tls}


def in_time(call: Callable[[], VerifiedFile]) -> VerifiedFile | WeightsError:
    """What comes of a call that must not hang."""
    outcome: list[VerifiedFile | WeightsError] = []

    def run() -> None:
        try:
            outcome.append(call())
        except WeightsError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG)
    assert not thread.is_alive(), "it hangs"
    return outcome[0]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_loses_nothing_and_lets_nothing_in(
    servers: dict[bool, ScriptedServer], fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server, number = servers[fault.tls], FAULTS.index(fault)
    suffix = ".pth.zip" if fault.archived else ".pth"

    def prepare(name: str) -> tuple[str, str]:
        path = f"/{name}{number}{suffix}"
        made = fault.script(server, path)
        return path, made if isinstance(made, str) else server.url + path

    path, url = prepare("alone")
    alone = in_time(lambda: fetch(record_of(url), policy=fault.policy))
    if fault.outcome == GAVE_UP:
        check_error(alone, fault.says, url)
        assert cached_names() == []
    else:
        check_good(alone, record_of(url), 0)
    assert server.hits(path) == fault.requests

    for cached in list_cache():
        cached.unlink()
    caplog.clear()
    path, url = prepare("first")
    record = record_of(url, servers[False].on(f"/second{number}.pth", serve(GOOD)))
    used = 1 if fault.outcome == GAVE_UP else 0
    check_good(in_time(lambda: fetch(record, policy=fault.policy)), record, used)
    told = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert sum("trying the next source" in line and fault.says in line for line in told) == used
    assert not trace().exists()


def check_error(outcome: VerifiedFile | WeightsError, says: str, url: str) -> None:
    assert isinstance(outcome, WeightsError), "the fault was not noticed"
    lines = [line for line in str(outcome).splitlines() if line.startswith(f"  - {url}: ")]
    assert len(lines) == 1
    assert says in lines[0]


def check_good(outcome: VerifiedFile | WeightsError, record: WeightsRecord, source: int) -> None:
    """The right bytes from the right source, and nothing else in the cache."""
    assert isinstance(outcome, VerifiedFile), outcome
    assert outcome.content == GOOD == outcome.path.read_bytes()
    assert outcome.source == record.sources[source]
    assert cached_names() == [outcome.path.name]


def list_cache() -> list[Path]:
    folder = hardnet.weights.download.cache_dir()
    return list(folder.iterdir()) if folder.is_dir() else []


def test_the_list_is_long_and_tells_its_rows_apart() -> None:
    assert len(FAULTS) >= 50
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


def test_the_documents_table_is_that_of_the_list() -> None:
    from tools.fault_table import DOCUMENT, updated

    text = DOCUMENT.read_text(encoding="utf-8")
    assert updated(text) == text, "run python -m tools.fault_table"
