"""Mark shapes pixel by pixel: segmentation_models_pytorch's U-Net on a HarDNet encoder, trained on drawn scenes.

    python -m examples.segment_shapes --output masks.png

What it shows: once registered in timm, HarDNet is an encoder for whatever builds on timm, here under the name
"tu-hardnet39ds". Forty seconds on two CPU cores. Needs: pip install "timm>=1.0.3" segmentation-models-pytorch
"""

from __future__ import annotations

import argparse
import random

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import hardnet.timm_registry  # noqa: F401  (registers the models)

from .shapes import SHAPES, Scene, coloured, draw_scene, tile, to_input

SIZE = 96


def to_batch(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Scenes -> images (N, 3, H, W) and labels (N, H, W)."""
    masks = [torch.frombuffer(bytearray(scene.mask.tobytes()), dtype=torch.uint8) for scene in scenes]
    return torch.stack([to_input(scene.image) for scene in scenes]), torch.stack(masks).view(-1, SIZE, SIZE).long()


def train(model: nn.Module, rng: random.Random, steps: int, batch: int = 8) -> list[float]:
    """Train on scenes drawn along the way; return the loss of each step."""
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    losses = []
    model.train()
    for _ in range(steps):
        images, labels = to_batch([draw_scene(rng, SIZE) for _ in range(batch)])
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def evaluate(model: nn.Module, scenes: list[Scene]) -> tuple[list[float], Tensor]:
    """Return the intersection over union of each shape over all scenes, and the labels found, (N, H, W)."""
    images, labels = to_batch(scenes)
    found = model.eval()(images).argmax(1)
    pairs = [(found == shape, labels == shape) for shape in range(1, len(SHAPES) + 1)]
    return [((a & b).sum() / (a | b).sum().clamp(min=1)).item() for a, b in pairs], found


def main(argv: list[str] | None = None) -> tuple[list[float], list[float]]:
    """Train, evaluate, and write a picture if asked to; return the losses and each shape's intersection over union."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", help="where to write a picture: scenes above, what was found below")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    rng = random.Random(0)  # noqa: S311  (draws pictures, keeps no secrets)
    channels = (128, 64, 32, 16)
    model = smp.Unet(
        "tu-hardnet39ds", encoder_depth=4, encoder_weights=None, decoder_channels=channels, classes=len(SHAPES) + 1
    )
    losses = train(model, rng, arguments.steps)
    scenes = [draw_scene(rng, SIZE) for _ in range(32)]
    overlaps, found = evaluate(model, scenes)
    listed = ", ".join(f"{shape} {overlap:.2f}" for shape, overlap in zip(SHAPES, overlaps, strict=True))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; intersection over union: {listed}")
    if arguments.output:
        tile([scene.image for scene in scenes[:6]] + [coloured(labels) for labels in found[:6]], 6).save(
            arguments.output
        )
    return losses, overlaps


if __name__ == "__main__":
    main()
