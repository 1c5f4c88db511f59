"""The process of the command line: ``python -m hardnet`` and the script ``hardnet``."""

import os
import signal
import sys

_INTERRUPTED = 130  # as in .cli.arguments, which imports torch


def main() -> int:
    """Run the command line; Ctrl-C ends it with status 130, a second one at once."""
    caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not if a shell has it ignored
    try:
        if caught:
            signal.signal(signal.SIGINT, _exit)  # an exception in an import would abort the process
        from .cli import main as run

        if caught:
            signal.signal(signal.SIGINT, _interrupt)
        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if caught:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python restores the default when it ends


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, _exit)
    raise KeyboardInterrupt


def _exit(*_: object) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
