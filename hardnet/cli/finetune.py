"""The verb ``finetune``: fine-tune pretrained weights on a folder of your own images."""

from __future__ import annotations

import argparse

from ..training.package import FOLDER
from ..weights.catalog import DEFAULT_MODEL, DEFAULT_TAG, PACKAGED_TAG
from .arguments import Verbs, say
from .train import add_train_arguments, run_train


def add_verb(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("finetune", help="train pretrained weights on your own pictures, in folders by class")
    add_train_arguments(parser, finetuning=True)
    parser.description = (
        "Train pretrained weights on your own pictures: first the new head alone, then all layers, with smaller rates "
        f"for earlier ones. OUTPUT/{FOLDER} holds the result. Without --model and --weights, training starts from the "
        f"packaged weights, without a download; with --model alone, from its {DEFAULT_TAG}, which is downloaded."
    )
    parser.set_defaults(run=run_finetune)


def run_finetune(arguments: argparse.Namespace) -> int:
    """Fine-tune as the arguments say; return the exit status."""
    if "weights" not in arguments:
        arguments.weights = DEFAULT_TAG if "model" in arguments else PACKAGED_TAG
        if "model" not in arguments:
            note = "weights for garments, which need no download; for photographs, --model hardnet39ds is better"
            say(f"starting from {DEFAULT_MODEL} {PACKAGED_TAG}: {note} (a download)")
    return run_train(arguments, finetuning=True)
