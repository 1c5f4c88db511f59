"""Count what the shipped checkpoint takes for what on the 10,000 test images of Fashion-MNIST.

    python tools/count_confusions.py docs/training/fashion-mnist-confusions.json

The data are those of Debian's package `dataset-fashion-mnist`, or of the folder named second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hardnet
from hardnet.training.data import open_evaluation

KEY = ("hardnet39ds", "FASHION_MNIST")


def main() -> None:
    """Write the counts: one row per true class, one column per class that was told."""
    target, *data = sys.argv[1:]
    source = open_evaluation(*(data or ["fashion-mnist"]))
    classifier = hardnet.Classifier(KEY[0], weights=KEY[1], device="cpu")
    images, labels = zip(*(source.load(index) for index in range(len(source))), strict=True)
    names = hardnet.get_weights(*KEY).categories
    counts = [[0] * len(names) for _ in names]
    for label, result in zip(labels, classifier.stream(images, topk=1, batch_size=100), strict=True):
        counts[label][result.top.index] += 1
    rows = ",\n    ".join(json.dumps(row) for row in counts)
    text = (
        f'{{\n  "weights": "{" ".join(KEY)}",\n  "classes": {json.dumps(names)},\n  "counts": [\n    {rows}\n  ]\n}}\n'
    )
    Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
