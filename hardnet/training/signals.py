"""Stop a run gracefully on SIGTERM and SIGINT."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Stop gracefully: within this context SIGTERM and SIGINT set ``requested``, which is read between two steps.

    A second SIGINT raises KeyboardInterrupt, later ones are ignored. Under torchrun, which forwards a Ctrl-C that the
    ranks have received already, no SIGINT interrupts. Outside the main thread, Python allows no handlers.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = "TORCHELASTIC_RUN_ID" not in os.environ
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        interrupt = self.requested and number == signal.SIGINT and self._interrupts
        self.requested = True
        if interrupt:
            self._interrupts = False
            raise KeyboardInterrupt
