"""Images in, embeddings out: the pooled features in front of the classifier, one row per picture."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import report_unusable, run_in_batches, usable_device
from .config import CONFIGS
from .embedding_file import EmbeddingFile
from .errors import ImageError
from .factory import DEFAULT_TAG, WeightsLike, create_model, list_models
from .inputs import ImageLike, Item, Transform, expand
from .model import HarDNet, check_count
from .preprocess import EvaluationTransform
from .progress import ProgressBar

if TYPE_CHECKING:
    from typing import TypeAlias

    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Embedding:
    """What became of one picture: a vector, or an error."""

    source: str
    """The picture: its path as given, or ``<image 3>``, ``<tensor 3>`` by the position among the results."""
    vector: Tensor | None
    """(num_features,) in float32, on the CPU."""
    error: str | None = None
    """Why there is no vector; it names the source."""


class Extractor:
    """Turns files, folders, Pillow images and tensors into embeddings of ``num_features`` numbers.

    Args:
        model_or_name: the name of a model, or a :class:`hardnet.HarDNet`, which is used as it is: it is switched to
            evaluation mode and moved to ``device``. Its classifier, if it has one, is not run.
        weights: with a name, what :func:`hardnet.create_model` takes; None means ``IMAGENET1K_V1``.
        device: ``"auto"`` (CUDA where there is some, else the CPU) or whatever ``torch.device`` takes.
        transform: Pillow image -> float tensor (channels, H, W), to be called from several threads. None takes the
            weights' own, or the ImageNet one without a record.

    Raises:
        ValueError: an unknown name, a device that is not there, ``weights`` for a module.
        TypeError: ``model_or_name`` is neither a name nor a HarDNet.
        WeightsError: the weights could not be had.
    """

    def __init__(
        self,
        model_or_name: str | HarDNet,
        *,
        weights: WeightsLike | None = None,
        device: str | torch.device = "auto",
        transform: Transform | None = None,
    ) -> None:
        self.device = usable_device(device)
        if isinstance(model_or_name, HarDNet):
            if weights is not None:
                raise ValueError("weights= goes with the name of a model: a module has its weights already")
            model = model_or_name
        elif isinstance(model_or_name, str):
            model = create_model(model_or_name, weights=DEFAULT_TAG if weights is None else weights, num_classes=0)
        else:
            raise TypeError(f"expected the name of a model or a HarDNet, got {type(model_or_name).__name__}")
        record = model.weights_record
        self.transform = transform or (record.transforms() if record else EvaluationTransform())
        self.num_features = model.num_features
        self.model = model.eval().to(self.device)

    def stream(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Iterator[Embedding]:
        """Compute lazily, in bounded memory: one embedding per picture, in the order of the input.

        Args:
            images: as for :meth:`hardnet.Classifier.stream`.
            batch_size: the most pictures that the model sees at once.

        Raises:
            ImageError: a picture that was handed over alone is unusable, or a folder holds none. Within a folder or
                an iterable it becomes a result with ``error`` set, a warning is logged, and the others go on.
            TypeError: the input is of another type.
            ValueError: ``batch_size`` is not a whole number from 1 up, or transform and model do not fit together.
        """
        check_count("batch_size", batch_size, least=1)
        return self._stream(expand(images), batch_size)

    def _stream(self, items: Iterator[Item], batch_size: int) -> Iterator[Embedding]:
        rows = run_in_batches(
            items,
            self.model,
            self.transform,
            device=self.device,
            batch_size=batch_size,
            compute=self._pooled,
            what="embeddings of shape ({0}, width)",
        )
        with closing(rows):
            for item, row in rows:
                if isinstance(row, ImageError):
                    report_unusable(item, row, logger)
                    yield Embedding(item.source, None, str(row))
                else:
                    yield Embedding(item.source, row.float())

    def _pooled(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


def add_extract(verbs: Verbs) -> None:
    """Add ``extract`` to the command line's verbs."""
    parser = verbs.add_parser("extract", help="write the embeddings of images to a file")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder that is searched for images")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .npz or .csv file")
    parser.add_argument("--model", choices=list_models(), default="hardnet39ds")
    parser.add_argument("--weights", default=DEFAULT_TAG, help="a tag or a file (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.set_defaults(run=_run_extract)


def _run_extract(arguments: argparse.Namespace) -> int:
    check_count("--batch-size", arguments.batch_size, least=1)
    width = CONFIGS[arguments.model].transition_channels[-1]
    failed = 0
    with EmbeddingFile(arguments.output, width) as file:
        extractor = Extractor(arguments.model, weights=arguments.weights, device=arguments.device)
        with ProgressBar(None, "extracting", unit="images") as bar:
            for embedding in extractor.stream(arguments.paths, arguments.batch_size):
                if embedding.vector is not None:
                    file.add(embedding.source, embedding.vector)
                failed += embedding.error is not None
                bar.update(1)
        if not file.rows:
            raise ImageError("none of the images could be used, nothing was written")
    if failed:
        print(f"hardnet: {failed} of {file.rows + failed} images could not be used", file=sys.stderr)
    return 1 if failed else 0
