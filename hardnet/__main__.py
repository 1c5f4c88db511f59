"""The process of the command line: ``python -m hardnet`` and the script ``hardnet``."""

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130  # as in .cli.arguments, which imports torch


def main() -> int:
    """Run the command line; Ctrl-C ends it with status 130, also while it imports, a second one at once."""
    caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not if a shell has it ignored
    try:
        if caught:
            signal.signal(signal.SIGINT, _interrupt)
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if caught:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python restores the default when it ends


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; end at once in an import, where extension modules would abort the process."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
