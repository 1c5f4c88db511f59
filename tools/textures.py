"""Fine-tune the packaged weights on crops of three photographs of textures and draw Grad-CAM maps of unseen parts.

The photographs are CC0 and come with scikit-image. Writes docs/pictures/textures.png: python -m tools.textures
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from skimage import data

import hardnet
from hardnet.cli import main

NAMES = ("brick", "grass", "gravel")
SIDE = 128  # of a crop; the last row of a photograph, of 512 x 512 pixels, is not trained on
TARGET = Path(__file__).parent.parent / "docs" / "pictures" / "textures.png"


def draw(folder: Path) -> Figure:
    """Train in a folder and return the picture: four unseen crops, and where each class is seen in them."""
    mosaic = Image.new("L", (2 * SIDE, 2 * SIDE))
    for number, name in enumerate(NAMES):
        photograph = Image.fromarray(getattr(data, name)())
        (folder / "data" / name).mkdir(parents=True)
        for index in range(12):
            left, top = SIDE * (index % 4), SIDE * (index // 4)
            crop = photograph.crop((left, top, left + SIDE, top + SIDE))
            crop.save(folder / "data" / name / f"{index}.png")
        unseen = photograph.crop((0, 3 * SIDE, SIDE, 4 * SIDE))
        mosaic.paste(unseen, (SIDE * (number % 2), SIDE * (number // 2)))
    mosaic.paste(Image.fromarray(data.brick()).crop((SIDE, 3 * SIDE, 2 * SIDE, 4 * SIDE)), (SIDE, SIDE))
    run = str(folder / "run")
    main(["finetune", str(folder / "data"), "--output", run, "--epochs", "40", "--workers", "0", "--flip", "0.5"])
    model = hardnet.from_pretrained(run)
    # The picture at the scale of the training images, which were reduced from 128 to 64 pixels.
    preprocessing = replace(model.preprocessing, resize=SIDE, crop=SIDE)
    classifier = hardnet.Classifier(model, transform=preprocessing, device="cpu")
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(mosaic, cmap="gray")
    axes[0].set_title("photographs, parts not trained on", fontsize=10)
    for axis, name in zip(axes[1:], NAMES, strict=True):
        explanation = hardnet.explain(classifier, mosaic, label=name, stride=8)
        axis.imshow(explanation.overlay())
        axis.set_title(f"evidence for {name}", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    return figure


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        draw(Path(scratch)).savefig(TARGET, dpi=100)
