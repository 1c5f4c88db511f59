"""List the models that visitors of the demo page can choose, with example pictures."""

import json
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path
from typing import Literal, NamedTuple, cast

from .. import Classifier, HarDNet, WeightsRecord
from ..images.read import find_images
from ..training.checkpoint import OPTIONS, VALIDATION
from ..training.comparison import read_held_out
from ..training.data import find_splits
from ..weights.catalog import CATALOG

OWN, PACKAGED = "own", "hardnet39ds/FASHION_MNIST"
MAX_EXAMPLES = 10


class Choice(NamedTuple):
    """A model with its weights."""

    name: str  # on the page
    group: Literal["own", "garments", "things"]  # decides which examples go with it, and the language of the classes
    source: Classifier | WeightsRecord  # one's own model, or one of the catalogue, which is loaded when it is chosen
    examples: dict[str, Path]  # pictures by name


def list_choices(classifier: Classifier | None = None, source: str = "") -> dict[str, Choice]:
    """Return what can be chosen, by key: one's own model first, if there is one, then the catalogue.

    ``source`` is where one's own model comes from; the folder of a training run gives the examples.
    """
    choices = {}
    if classifier is not None:
        path = Path(source)
        name = f"{display_name(cast(HarDNet, classifier.model).config.name)} {path.name}"
        examples = validation_pictures(path.parent if path.is_file() else path)
        choices[OWN] = Choice(name, "own", classifier, examples)
    garments, photographs = sample_images()
    for (model, tag), record in CATALOG.items():
        key, name = f"{model}/{tag}", f"{display_name(model)} {tag}"
        if key == PACKAGED:
            choices[key] = Choice(name, "garments", record, garments)
        else:
            choices[key] = Choice(name, "things", record, photographs)
    return choices


def display_name(model: str) -> str:
    """Return the name of a model as the paper writes it."""
    return model.replace("hardnet", "HarDNet-").replace("ds", "DS")


def sample_images() -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the example pictures by name: one garment of each class, and photographs.

    A wheel has them inside the package, a checkout in its ``images``; {} if they are missing.
    """
    package = Path(__file__).parents[1]
    folder = next(package.glob("samples/fashion_mnist"), package.parent / "images" / "fashion_mnist")
    by_class = {path.stem.rsplit("-", 1)[0]: path for path in sorted(folder.glob("*.png"), reverse=True)}
    photographs = [path for path in sorted(folder.parent.glob("*.jpg")) if "rotated" not in path.stem]
    return {path.name: path for path in sorted(by_class.values())}, {path.name: path for path in photographs}


def validation_pictures(run: Path) -> dict[str, Path]:
    """Return some validation pictures of a training run by name, of as many classes as possible; {} without any."""
    try:
        data = Path(json.loads((run / OPTIONS).read_bytes())["data"]).expanduser()
        splits = find_splits(data)
        if (run / VALIDATION).exists():
            names = sorted(read_held_out(run))
            folder = next(folder for folder in (data, *splits.values()) if (folder / names[0]).is_file())
        else:
            folder = splits.get("val") or splits["test"]
            names = [path.relative_to(folder).as_posix() for path, error in find_images(folder) if error is None]
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return {}
    by_class = [list(group) for _, group in groupby(sorted(names), key=lambda name: name.partition("/")[0])]
    turns = filter(None, chain.from_iterable(zip_longest(*by_class)))
    return {name: folder / name for name in islice(turns, MAX_EXAMPLES)}
