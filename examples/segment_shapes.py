"""Mark shapes pixel by pixel: FC-HarDNet-70 and a U-Net on a HarDNet encoder, trained on the same drawn scenes.

    python -m examples.segment_shapes --output masks.png

What it shows: the segmentation network trains like any module; and once registered in timm, HarDNet is an encoder for
whatever builds on timm, here for segmentation_models_pytorch under the name "tu-hardnet39ds". Both networks start from
random weights, their encoders too. Less than two minutes on one CPU core. Needs: pip install "timm>=1.0.16"
segmentation-models-pytorch
"""

import argparse
import random

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn

import hardnet
import hardnet.timm_registry  # registers the models

from .shapes import COLOURS, SHAPES, Scene, coloured, draw_scene, enlarged, tile, to_input

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
def evaluate(model: nn.Module, scenes: list[Scene]) -> tuple[list[float], Tensor, Tensor]:
    """Return each shape's intersection over union, over all scenes, and the true and predicted labels, (N, H, W)."""
    images, labels = to_batch(scenes)
    predicted = model.eval()(images).argmax(1)
    return [overlap_of(shape, labels, predicted) for shape in range(1, len(SHAPES) + 1)], labels, predicted


def overlap_of(shape: int, labels: Tensor, predicted: Tensor) -> float:
    """Return the intersection over union of the pixels of one shape; 0 if there are none."""
    a, b = labels == shape, predicted == shape
    return ((a & b).sum() / (a | b).sum().clamp(min=1)).item()


def draw_results(scenes: list[Scene], labels: Tensor, predicted: Tensor) -> Image.Image:
    """Draw each scene, its true mask and the mask predicted, with the intersection over union of each of its shapes."""
    pictures, captions = [], []
    for scene, truth, guess in zip(scenes, labels, predicted, strict=True):
        shapes = sorted({*truth.unique().tolist(), *guess.unique().tolist()} - {0})
        overlaps = [(f"{SHAPES[shape - 1]} {overlap_of(shape, truth, guess):.2f}", COLOURS[shape]) for shape in shapes]
        pictures += [enlarged(picture, 2) for picture in (scene.image, coloured(truth), coloured(guess))]
        names = [(SHAPES[shape - 1], COLOURS[shape]) for shape in sorted(set(scene.labels))]
        captions += [
            [("scene", "white")],
            [("true mask", "white"), *names],
            [("predicted, with overlap", "white"), *overlaps],
        ]
    return tile(pictures, columns=6, captions=captions, lines=4)


def build_unet() -> nn.Module:
    """Build the U-Net: images (N, 3, H, W) -> logits (N, classes, H, W)."""
    model: nn.Module = smp.Unet(
        "tu-hardnet39ds",
        encoder_depth=4,
        encoder_weights=None,
        decoder_channels=(128, 64, 32, 16),
        classes=len(SHAPES) + 1,
    )
    return model


def main(argv: list[str] | None = None) -> dict[str, tuple[list[float], list[float]]]:
    """Train and evaluate both networks; return the losses and each shape's intersection over union of each.

    If asked to, write a picture of the masks that FC-HarDNet-70 finds.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", help="where to write a picture: scenes, their true masks, and those predicted")
    arguments = parser.parse_args(argv)
    results = {}
    for name, build in {
        "fchardnet70": lambda: hardnet.create_model("fchardnet70", num_classes=len(SHAPES) + 1),
        "U-Net on hardnet39ds": build_unet,
    }.items():
        torch.manual_seed(0)
        rng = random.Random(0)  # noqa: S311  (draws pictures, keeps no secrets)
        model = build()
        losses = train(model, rng, arguments.steps)
        scenes = [draw_scene(rng, SIZE) for _ in range(200)]
        overlaps, labels, predicted = evaluate(model, scenes)
        listed = ", ".join(f"{shape} {overlap:.3f}" for shape, overlap in zip(SHAPES, overlaps, strict=True))
        print(
            f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f}; {len(scenes)} new scenes: intersection over union "
            f"{listed}; {(labels == predicted).float().mean():.1%} of the pixels right"
        )
        if arguments.output and not results:
            draw_results(scenes[:6], labels[:6], predicted[:6]).save(arguments.output)
        results[name] = losses, overlaps
    return results


if __name__ == "__main__":
    main()
