"""The verb ``finetune``: fine-tune pretrained weights on a folder of your own images."""

from __future__ import annotations

import argparse

from ..training.package import FOLDER
from ..weights.catalog import DEFAULT_TAG, PACKAGED_TAG
from .arguments import Verbs
from .train import add_train_arguments, run_train


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("finetune", help="train pretrained weights on your own pictures, in folders by class")
    add_train_arguments(parser, recipe=False)
    parser.description = (
        "Train pretrained weights on your own pictures: first the new head alone, then all layers, with smaller rates "
        f"for earlier ones. OUTPUT/{FOLDER} is a folder for predict --weights. The options are those of train; without "
        f"--weights, {DEFAULT_TAG} of --model is downloaded; without both, training starts from the packaged weights."
    )
    parser.set_defaults(run=run_finetune)


def run_finetune(arguments: argparse.Namespace) -> int:
    """Fine-tune as the arguments say; return the exit status."""
    if "weights" not in arguments:
        arguments.weights = DEFAULT_TAG if "model" in arguments else PACKAGED_TAG
    return run_train(arguments, stages=True)
