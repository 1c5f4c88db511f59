"""Fine-tune HarDNet to a small folder of images, one subfolder per class: the new head first, then everything.

    python -m examples.finetune_folder --output predictions.png                       # draws a folder of its own
    python -m examples.finetune_folder --folder my/images --weights IMAGENET1K_V1

What it shows: a new head on old weights (by default those that ship with the library) and timm's layer-wise learning
rate decay. A quarter of a minute on one CPU core for the drawn folder. Needs: pip install "timm>=1.0.3"
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import hardnet
from hardnet.images.preprocess import Preprocessing

from .shapes import draw_folder, tile


def train(model: hardnet.HarDNet, groups: Iterable[object], data: DataLoader, epochs: int, lr: float) -> None:
    """Train the parameters in ``groups``; the others, and their normalisation's statistics, stay as they are."""
    optimiser = torch.optim.AdamW(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=epochs * len(data))
    for _ in range(epochs):
        for images, labels in data:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


@torch.inference_mode()
def accuracy(model: hardnet.HarDNet, data: DataLoader) -> float:
    """Return the share of the pictures whose class is found."""
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in data]
    return torch.cat(right).mean().item()


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Train the head, then all, and write a picture if asked to; return the accuracy after each of the two."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="with train/CLASS/... and test/CLASS/...; none: one is drawn")
    parser.add_argument("--weights", default="FASHION_MNIST", help="a tag or a file to start from (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="over everything (%(default)s)")
    parser.add_argument("--output", help="where to write a picture of test images under their predicted classes")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as drawn:
        folder = arguments.folder or Path(drawn)
        if not arguments.folder:
            draw_folder(random.Random(0), folder, per_class=48)  # noqa: S311  (draws pictures, keeps no secrets)
        data = {part: ImageFolder(folder / part) for part in ("train", "test")}
        classes = data["train"].classes
        model = hardnet.create_model("hardnet39ds", weights=arguments.weights, num_classes=len(classes))
        for part in data.values():  # weights of the catalogue bring their preprocessing
            part.transform = model.preprocessing or Preprocessing()
        train_data = DataLoader(data["train"], batch_size=16, shuffle=True, drop_last=True)
        test_data = DataLoader(data["test"], batch_size=16)
        head = model.eval().requires_grad_(False).get_classifier().requires_grad_(True)
        train(model, head.parameters(), train_data, epochs=10, lr=1e-3)
        first = accuracy(model, test_data)
        groups = param_groups_layer_decay(model.train().requires_grad_(True), weight_decay=0.0, layer_decay=0.75)
        for group in groups:  # timm's schedulers apply the scale, torch's do not
            group["lr"] = 2e-3 * group["lr_scale"]
        train(model, groups, train_data, arguments.epochs, lr=2e-3)
        everything = accuracy(model, test_data)
        print(f"{first:.0%} of the test images right with a new head, {everything:.0%} after training everything")
        if arguments.output:
            pictures, captions = [], []
            for path, label in data["test"].samples[::2]:
                picture = data["test"].loader(path)
                with torch.inference_mode():
                    score, best = model(data["test"].transform(picture)[None]).softmax(1)[0].max(0)
                colour = "white" if best == label else "#ff7b72"
                pictures.append(picture.resize((192, 192), Image.Resampling.NEAREST))
                captions.append([(f"{classes[best]} {score:.1%}", colour), (f"true: {classes[label]}", "#9198a1")])
            tile(pictures, columns=6, captions=captions, lines=2).save(arguments.output)
    return first, everything


if __name__ == "__main__":
    main()
