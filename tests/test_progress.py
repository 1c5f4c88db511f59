"""The progress bar: what it shows on a terminal, and that it is quiet elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
from itertools import pairwise
from types import SimpleNamespace

import pytest

from hardnet.utils import progress
from hardnet.utils.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What each drawing showed, trailing blanks aside."""
        return [line.rstrip() for line in self.getvalue().split("\r")[1:]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))  # pytest itself sets the real one
    monkeypatch.setattr(progress, "REFRESH_INTERVAL", 0.0)
    monkeypatch.setenv("COLUMNS", "100")
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_bytes_show_share_count_and_rate(terminal: Terminal, clock: list[float]) -> None:
    with ProgressBar(4_000_000, "weights.pth") as bar:
        clock[0] += 2
        bar.update(1_000_000)
    assert "weights.pth" in terminal.lines[-1]
    assert "25% [#####...............] 1.0 MB of 4.0 MB  500.0 kB/s  0:06" in terminal.lines[-1]
    assert terminal.getvalue().endswith("\n")


def test_other_units_are_counted(terminal: Terminal, clock: list[float]) -> None:
    with ProgressBar(10_000, "photos", unit="images") as bar:
        clock[0] += 4
        bar.update(10_000)
    assert "100% [####################] 10000 images of 10000 images  2500 images/s  0:04" in terminal.lines[-1]


def test_an_unknown_total_shows_count_and_rate_and_may_be_set_later(terminal: Terminal, clock: list[float]) -> None:
    with ProgressBar(None, "x") as bar:
        clock[0] += 1
        bar.update(2500)
        assert terminal.lines[-1] == "x  2.5 kB  2.5 kB/s"
        bar.total = 5000
        bar.update(0)
        assert " 50% [" in terminal.lines[-1]


def test_work_to_be_done_again_is_taken_back(terminal: Terminal) -> None:
    with ProgressBar(100, "x") as bar:
        bar.update(80)
        bar.update(-80)
        assert "  0% [" in terminal.lines[-1]
        bar.update(150)
        assert "100% [####################]" in terminal.lines[-1]


def test_drawings_are_rationed(terminal: Terminal, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_INTERVAL", 0.1)
    with ProgressBar(1000, "x") as bar:
        for _ in range(1000):
            clock[0] += 0.001
            bar.update()
    assert 8 <= len(terminal.lines) <= 12
    assert "100%" in terminal.lines[-1]


def test_a_line_never_wraps_and_leaves_no_remains(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with ProgressBar(None, "a label that is far longer than the terminal is wide \x1b[2J\n") as bar:
        bar.update(10_000)
        bar.update(-9_999)
    drawings = terminal.getvalue().rstrip("\n").split("\r")[1:]
    assert all(len(line) <= 39 for line in drawings)
    assert all(len(after) >= len(before.rstrip()) for before, after in pairwise(drawings))
    assert "\x1b" not in terminal.getvalue()


def test_nothing_is_drawn_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_INTERVAL", 0.0)
    with ProgressBar(10, "x") as bar:  # the captured stream is no terminal
        bar.update(10)
    assert capsys.readouterr() == ("", "")
    assert bar.count == 10
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=None))
    with ProgressBar(10, "x") as bar:
        bar.update(10)


def test_nothing_is_drawn_when_disabled(terminal: Terminal) -> None:
    with ProgressBar(10, "x", enabled=False) as bar:
        bar.update(10)
    assert terminal.getvalue() == ""


def test_a_terminal_that_goes_away_does_not_stop_the_work(terminal: Terminal) -> None:
    with ProgressBar(10, "x") as bar:
        terminal.close()
        bar.update(5)
        bar.update(5)
    assert bar.count == 10


def test_the_line_ends_when_the_work_fails(terminal: Terminal) -> None:
    with pytest.raises(KeyError), ProgressBar(10, "x"):
        raise KeyError
    assert terminal.getvalue().endswith("\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="pseudo-terminals are a POSIX feature")
def test_a_real_terminal_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
        with ProgressBar(10, "caf\xe9") as bar:
            bar.update(10)
    shown = ""
    with contextlib.suppress(OSError):  # the end of what a closed terminal had to show
        while chunk := os.read(master, 10_000):
            shown += chunk.decode()
    os.close(master)
    assert "caf?" in shown
    assert "10 B of 10 B" in shown
