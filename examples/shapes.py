"""Pictures of drawn shapes, with the boxes and the mask that belong to them: data that needs no download."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

SHAPES = ("circle", "square", "triangle")
COLOURS = ("black", "#e6194b", "#3cb44b", "#4363d8")  # of the background and of each shape, in the results' pictures


@dataclass
class Scene:
    """A picture, and what is to be learnt from it."""

    image: Image.Image
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right, bottom, in pixels."""
    labels: list[int]
    """1 for a circle, 2 for a square, 3 for a triangle; 0 is the background."""
    mask: Image.Image
    """The label of each pixel."""


def draw_scene(rng: random.Random, size: int, most: int = 3, label: int | None = None) -> Scene:
    """Draw one to ``most`` shapes that do not overlap, of one kind or of any, light on a dark and noisy background."""
    noise = Image.frombytes("L", (size, size), rng.randbytes(size * size)).point([value // 3 for value in range(256)])
    image = Image.merge("RGB", [noise] * 3)
    mask = Image.new("L", (size, size))
    boxes: list[tuple[int, int, int, int]] = []
    labels = []
    for _ in range(rng.randint(1, most)):
        side = rng.randint(size // 5, size * 2 // 5)
        left, top = rng.randrange(size - side), rng.randrange(size - side)
        box = (left, top, left + side, top + side)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        kind = label or rng.randint(1, len(SHAPES))
        for target, fill in ((image, tuple(rng.randint(120, 255) for _ in "rgb")), (mask, kind)):
            draw = ImageDraw.Draw(target)
            if kind == 1:
                draw.ellipse(box, fill=fill)
            elif kind == 2:
                draw.rectangle(box, fill=fill)
            else:
                draw.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], fill=fill)
        boxes.append(box)
        labels.append(kind)
    return Scene(image, boxes, labels, mask)


def to_input(image: Image.Image) -> Tensor:
    """Picture -> float32 (3, H, W) in [-1, 1]."""
    return pil_to_tensor(image).to(torch.float32).div(127.5).sub(1)


def tile(images: list[Image.Image], columns: int, scale: int = 2) -> Image.Image:
    """Lay pictures of one size out in a table, enlarged."""
    width, height = (side * scale for side in images[0].size)
    sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)))
    for number, image in enumerate(images):
        sheet.paste(image.resize((width, height)), (number % columns * width, number // columns * height))
    return sheet
