"""The verb ``info``: layers, parameters, multiply-accumulates and memory traffic of the models."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ..factory import list_models
from ..models.config import CONFIGS
from ..models.cost import Cost, StageCost, measure_cost
from ..utils.text import table
from .arguments import Verbs, image_size


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("info", help="show layers, parameters, multiply-accumulates and memory traffic")
    parser.add_argument("model", nargs="?", choices=list_models(), help="one model, stage by stage (default: all)")
    parser.add_argument("--size", type=image_size, default=(224, 224), metavar="H[xW]", help="pixels (default: 224)")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    height, width = arguments.size
    names = [arguments.model] if arguments.model else list_models()
    costs = [measure_cost(CONFIGS[name], height=height, width=width) for name in names]
    print(_cost(costs[0]) if arguments.model else _costs(costs))
    return 0


def _cost(measured: Cost) -> str:
    """The cost of one model, stage by stage."""
    header = ("stage", "base", "output", "layers", "parameters", "MACs", "CIO", "MACs/CIO")
    rows = [_cost_row(stage, _indices(stage)) for stage in measured.stages]
    shape = " x ".join(map(str, measured.input_shape))
    title = f"{measured.model} for one image of {shape}"
    return f"{title}\n{table(header, [*rows, _cost_row(measured.total, '')])}"


def _indices(stage: StageCost) -> str:
    first, stop = stage.indices
    return f"[{first}]" if stop == first + 1 else f"[{first}:{stop}]"


def _cost_row(stage: StageCost, indices: str) -> tuple[str, ...]:
    return (
        stage.name,
        indices,
        " x ".join(map(str, stage.output_shape)),
        str(stage.layers),
        f"{stage.params:,}",
        f"{stage.macs:,}",
        f"{stage.cio:,}",
        f"{stage.macs_per_cio:.1f}" if stage.cio else "-",
    )


def _costs(measured: Iterable[Cost]) -> str:
    """The totals of several models."""
    header = ("model", "layers", "parameters", "MACs", "CIO", "MACs/CIO")
    rows = []
    for one in measured:
        total = one.total
        numbers = (f"{total.params:,}", f"{total.macs:,}", f"{total.cio:,}", f"{total.macs_per_cio:.1f}")
        rows.append((one.model, str(total.layers), *numbers))
    return table(header, rows)
