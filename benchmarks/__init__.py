"""How fast the models are on this machine: ``hardnet benchmark``.

    rows ─▶ candidates, one worker process each ─▶ interleaved rounds ─▶ figures ─▶ table, JSON, picture

Every row (a model, an engine, a precision, a batch size, a resolution) is built in a process of its own. Then the
processes take turns, so that what slows the machine down for a while meets all rows alike.
"""

from benchmarks.rounds import Outcome, Protocol, measure
from benchmarks.rows import Row, plan

__all__ = ["Outcome", "Protocol", "Row", "measure", "plan"]
