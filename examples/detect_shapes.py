"""Find shapes: torchvision's FCOS detector on a HarDNet feature pyramid, trained from scratch on drawn scenes.

    python -m examples.detect_shapes --output detections.png

What it shows: HarDNet's levels of stride 8 and 16 under torchvision's feature pyramid network, and behind it whatever
torchvision builds on a backbone. About two minutes on one CPU core.
"""

import argparse
import random

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_iou, nms

import hardnet
from hardnet.torchvision_registry import return_layers

from .shapes import COLOURS, SHAPES, Scene, draw_scene, outlined, tile, to_input

SIZE = 128


def make_detector() -> FCOS:
    """Build the detector: HarDNet, the pyramid network's levels of stride 8, 16 and 32, and FCOS's heads."""
    features = hardnet.create_model("hardnet39ds", features_only=True, out_indices=(2, 3))
    channels = [info.channels for info in features.feature_info]
    backbone = BackboneWithFPN(features.base, return_layers(features), channels, out_channels=64)
    anchors = AnchorGenerator(
        sizes=((8,), (16,), (32,)), aspect_ratios=((1.0,),) * 3
    )  # FCOS: one, of the stride's size
    as_they_are = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": SIZE, "max_size": SIZE}
    return FCOS(backbone, num_classes=len(SHAPES) + 1, anchor_generator=anchors, score_thresh=0.4, **as_they_are)


def train(model: FCOS, rng: random.Random, steps: int, batch: int = 8) -> list[float]:
    """Train on scenes drawn along the way; return the loss of each step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    losses = []
    model.train()
    for _ in range(steps):
        scenes = [draw_scene(rng, SIZE) for _ in range(batch)]
        targets = [{"boxes": torch.tensor(s.boxes).float(), "labels": torch.tensor(s.labels)} for s in scenes]
        loss = sum(model([to_input(scene.image) for scene in scenes], targets).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def evaluate(model: FCOS, scenes: list[Scene]) -> tuple[float, float, float, list[dict[str, Tensor]]]:
    """Return recall and precision at an overlap of one half, the mean overlap of the shapes found, and all detections.

    The overlap of two boxes is their intersection over their union.
    """
    true = predictions = 0
    overlaps = []
    detections = []
    for scene, raw in zip(scenes, model.eval()([to_input(scene.image) for scene in scenes]), strict=True):
        best = nms(raw["boxes"], raw["scores"], 0.5)  # of several labels for one place; FCOS keeps them all
        detection = {key: value[best] for key, value in raw.items()}
        same = torch.tensor(scene.labels)[:, None] == detection["labels"]
        overlap = box_iou(torch.tensor(scene.boxes).float(), detection["boxes"]) * same
        true, predictions = true + overlap.shape[0], predictions + overlap.shape[1]
        overlaps += [value for value in overlap.amax(1).tolist() if value > 0.5] if len(best) else []
        detections.append(detection)
    return len(overlaps) / true, len(overlaps) / max(predictions, 1), sum(overlaps) / max(len(overlaps), 1), detections


def draw_results(scenes: list[Scene], detections: list[dict[str, Tensor]]) -> Image.Image:
    """Draw the true boxes of each scene and, to the right, the boxes found with their scores."""
    pictures, captions = [], []
    for scene, detection in zip(scenes, detections, strict=True):
        labels = detection["labels"].tolist()
        pictures.append(outlined(scene.image, scene.boxes, scene.labels))
        captions.append([("true", "white"), *((SHAPES[label - 1], COLOURS[label]) for label in scene.labels)])
        pictures.append(outlined(scene.image, detection["boxes"].tolist(), labels))
        names = [
            (f"{SHAPES[label - 1]} {score:.2f}", COLOURS[label])
            for label, score in zip(labels, detection["scores"], strict=True)
        ]
        captions.append([("found, with score", "white"), *names])
    return tile(pictures, columns=4, captions=captions, lines=4)


def main(argv: list[str] | None = None) -> tuple[list[float], float, float, float]:
    """Train, evaluate, and write a picture if asked to; return the losses, recall, precision and mean overlap."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", help="where to write a picture: true boxes, and to the right those found")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    rng = random.Random(0)  # noqa: S311  (draws pictures, keeps no secrets)
    model = make_detector()
    losses = train(model, rng, arguments.steps)
    scenes = [draw_scene(rng, SIZE) for _ in range(200)]
    recall, precision, overlap, detections = evaluate(model, scenes)
    print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; {len(scenes)} new scenes: recall {recall:.1%}, precision "
        f"{precision:.1%}, mean overlap of the boxes found {overlap:.3f}"
    )
    if arguments.output:
        draw_results(scenes[:6], detections[:6]).save(arguments.output)
    return losses, recall, precision, overlap


if __name__ == "__main__":
    main()
