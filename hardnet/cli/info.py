"""The verb ``info``: layers, parameters, multiply-accumulates and memory traffic of the models."""

import argparse

from .. import load_weights
from ..models.config import NETWORKS
from ..models.cost import StageCost, measure_cost
from ..utils.text import table
from ..utils.validation import image_size
from .arguments import Verbs
from .output import show

_COLUMNS = ("layers", "parameters", "MACs", "CIO", "MACs/CIO")


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("info", help="show layers, parameters, multiply-accumulates and memory traffic")
    parser.add_argument("model", nargs="?", choices=NETWORKS, help="one model, stage by stage (default: all)")
    parser.add_argument("--size", type=image_size, default=(224, 224), metavar="H[xW]", help="pixels (default: 224)")
    parser.add("--weights")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    height, width = arguments.size
    names = [arguments.model] if arguments.model else list(NETWORKS)
    options: dict[str, int] = {}
    if arguments.weights is not None:
        loaded = load_weights(arguments.weights, model=arguments.model)
        names = [loaded.config.name]
        options = {"num_classes": loaded.num_classes or 0, "in_chans": loaded.in_chans}
    costs = [measure_cost(NETWORKS[name], height=height, width=width, **options) for name in names]
    if len(costs) > 1:
        show(table(("model", *_COLUMNS), [(cost.model, *_numbers(cost.total)) for cost in costs]))
        return 0
    [cost] = costs
    rows = [
        (stage.name, stage.modules, " x ".join(map(str, stage.output_shape)), *_numbers(stage))
        for stage in (*cost.stages, cost.total)
    ]
    show(f"{cost.model} for one image of {' x '.join(map(str, cost.input_shape))}")
    show(table(("stage", "modules", "output", *_COLUMNS), rows))
    return 0


def _numbers(stage: StageCost) -> tuple[str, ...]:
    counts = (f"{stage.params:,}", f"{stage.macs:,}", f"{stage.cio:,}")
    return str(stage.layers), *counts, f"{stage.macs / stage.cio:.1f}" if stage.cio else "-"
