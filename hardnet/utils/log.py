"""Log a warning once in a process."""

import logging

LOGGED: set[str] = set()
"""Topics of which this process has warned."""


def warn_once(logger: logging.Logger, topic: str, message: str, *arguments: object) -> None:
    """Log a warning, unless this process has logged one on the same topic."""
    if topic not in LOGGED:
        LOGGED.add(topic)
        logger.warning(message, *arguments)
