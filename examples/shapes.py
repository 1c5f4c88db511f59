"""Drawn pictures, with the boxes and masks that belong to them: data that needs no download."""

import random
from dataclasses import dataclass

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

SHAPES = ("circle", "square", "triangle")
COLOURS = ("black", "#ff7b72", "#56d364", "#79c0ff")  # of the background and of each shape, in the results' pictures
Caption = list[tuple[str, str]]  # lines of text and their colours


@dataclass
class Scene:
    """A picture, and what is to be learnt from it."""

    image: Image.Image
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right, bottom, in pixels; right and bottom are the first pixels outside."""
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
            right, bottom = left + side - 1, top + side - 1  # Pillow draws these pixels, too
            if kind == 1:
                draw.ellipse((left, top, right, bottom), fill=fill)
            elif kind == 2:
                draw.rectangle((left, top, right, bottom), fill=fill)
            else:
                draw.polygon([(left, bottom), (right, bottom), (left + side // 2, top)], fill=fill)
        boxes.append(box)
        labels.append(kind)
    return Scene(image, boxes, labels, mask)


def to_input(image: Image.Image) -> Tensor:
    """Picture -> float32 (3, H, W) in [-1, 1]."""
    return pil_to_tensor(image).to(torch.float32).div(127.5).sub(1)


def coloured(labels: Tensor) -> Image.Image:
    """Labels (H, W) -> picture."""
    palette = torch.tensor([ImageColor.getrgb(colour) for colour in COLOURS], dtype=torch.uint8)
    picture: Image.Image = to_pil_image(palette[labels].permute(2, 0, 1))
    return picture


def outlined(image: Image.Image, boxes: list[tuple[float, ...]], labels: list[int], scale: int = 2) -> Image.Image:
    """Enlarge a picture and draw lines of two pixels around the boxes, in the colours of their labels."""
    picture = enlarged(image, scale)
    for box, label in zip(boxes, labels, strict=True):
        left, top, right, bottom = (round(scale * side) for side in box)
        around = (left - 2, top - 2, right + 1, bottom + 1)
        ImageDraw.Draw(picture).rectangle(around, outline=COLOURS[label], width=2)
    return picture


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    """Repeat each pixel ``scale`` times in both directions."""
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def tile(images: list[Image.Image], columns: int, captions: list[Caption] | None = None, lines: int = 0) -> Image.Image:
    """Lay pictures of one size out in a table, each with a caption on a strip of ``lines`` lines below."""
    gap, line = 8, 20
    width = images[0].width + gap
    height = images[0].height + gap + line * lines
    sheet = Image.new("RGB", (width * columns + gap, height * -(-len(images) // columns) + gap), "#0d1117")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for number, image in enumerate(images):
        left, top = number % columns * width + gap, number // columns * height + gap
        sheet.paste(image, (left, top))
        for row, (text, colour) in enumerate(captions[number] if captions else []):
            draw.text((left, top + image.height + row * line + 2), text, fill=colour, font=font)
    return sheet
