"""Parameter groups by depth, for learning rates that fall from the head to the stem."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from .config import stage_indices
from .network import HarDNet, ImageModule


def layerwise_groups(
    model: ImageModule, *, lr: float, layer_decay: float = 0.75, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Divide the parameters by depth into groups for a torch optimiser: stem, stages, head.

    The last group learns with ``lr``, each one below it with ``layer_decay`` times the rate of the one above. Weight
    decay is kept off normalisation and biases, which have groups of their own.

    Args:
        model: a classifier or a feature pyramid.
        lr: learning rate of the head, or of the deepest stage where there is none.
        layer_decay: factor per level of depth, in (0, 1]; 1 gives every group the same rate.
        weight_decay: for convolutions and the linear layer.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name``; together they hold every parameter once.

    Raises:
        ValueError: ``layer_decay`` is out of its range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay!r}")
    groups: list[dict[str, Any]] = []
    runs = _runs(model)
    for depth, (name, modules) in enumerate(runs):
        parameters = [parameter for module in modules for parameter in module.parameters()]
        rate = lr * layer_decay ** (len(runs) - 1 - depth)
        kinds = (
            ("weights", weight_decay, [p for p in parameters if p.dim() > 1]),
            ("norm and bias", 0.0, [p for p in parameters if p.dim() <= 1]),
        )
        groups += [
            {"params": chosen, "lr": rate, "weight_decay": decay, "name": f"{name}: {kind}"}
            for kind, decay, chosen in kinds
            if chosen
        ]
    return groups


def _runs(model: ImageModule) -> list[tuple[str, list[nn.Module]]]:
    base = list(cast(nn.Sequential, model.base))
    body = len(base) - isinstance(model, HarDNet)
    starts = [0, *(stage.block for stage in stage_indices(model.config) if stage.block < body), body]
    names = ["stem", *(f"stage {number}" for number in range(1, len(starts) - 1))]
    runs = [(name, base[start:stop]) for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True)]
    return [*runs, ("head", base[body:])] if body < len(base) else runs
