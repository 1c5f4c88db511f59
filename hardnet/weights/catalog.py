"""The catalogue of checkpoints: sources, digests, classes, preprocessing and reported errors.

Digests are of the ``.pth`` file itself, also if a source serves it in a ``.zip``.
"""

import fnmatch
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS, NETWORKS, Activation, HarDNetConfig
from ..utils.text import known_names

DigestScheme = Literal["git-blob-sha1", "sha1", "sha256", "sha256-prefix"]  # the weakest last

PACKAGE = "package:"
"""Start of the URL of a file in this package; the rest is a path relative to the package's folder."""


@dataclass(frozen=True)
class Digest:
    """A digest of a ``.pth`` file, in hexadecimal digits.

    ``git-blob-sha1`` is the id that git gives the file: the SHA-1 of ``blob <length>``, a NUL and the bytes.
    ``sha256-prefix`` is the first 32 bits of the SHA-256, as in torch.hub's file names: it finds damage but
    does not protect against tampering.
    """

    scheme: DigestScheme
    value: str

    @property
    def weak(self) -> bool:
        """True if the digest is too short to protect against tampering."""
        return self.scheme == "sha256-prefix"

    def matches(self, content: bytes) -> bool:
        """Return whether ``content`` has this digest."""
        return _hex_digest(content, self.scheme) == self.value.lower()

    def __str__(self) -> str:
        return f"{self.scheme}:{self.value}"


@dataclass(frozen=True)
class Source:
    """One place that serves a checkpoint."""

    url: str
    """An http(s) address, or ``package:`` and a path within this package. A ``.zip`` holds the ``.pth``."""
    digest: Digest

    @property
    def filename(self) -> str:
        """The file's name at the source, and in a mirror."""
        return self.url.partition("?")[0].partition("#")[0].rsplit("/", 1)[-1]


IMAGENET = "ImageNet-1k validation"


@dataclass(frozen=True)
class WeightsRecord:
    """One checkpoint: sources, digests, classes, preprocessing and reported errors."""

    model: str
    tag: str
    sources: tuple[Source, ...]
    """In the order in which they are tried: strongest digest first."""
    provenance: str
    """Who trained and published it."""
    top1_error: float
    """Top-1 error in per cent on the images of ``evaluated_on``, single crop, as reported by ``reported_by``."""
    top5_error: float
    """Top-5 error in per cent, on the same images."""
    reported_by: str
    evaluated_on: str = IMAGENET
    licence: str = "MIT"
    classes: str | tuple[str, ...] = "imagenet_classes.txt"
    """The names of the classes, or the file of the library that lists them."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    block_activation: Activation = "relu6"
    """The activation inside the HarDBlocks with which the checkpoint was trained and must be run."""

    def cache_filename(self, source: Source) -> str:
        """Return the name of the verified file in the cache; its digest prevents collisions with other files."""
        return f"hardnet-{self.model}-{self.tag.lower()}-{source.digest.scheme}-{source.digest.value}.pth"

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return read_categories(self.classes) if isinstance(self.classes, str) else self.classes

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.categories)

    @property
    def meta(self) -> dict[str, Any]:
        """The record's facts as a dict, in the manner of torchvision's ``weights.meta``."""
        names = ("top1_error", "top5_error", "reported_by", "evaluated_on", "provenance", "licence", "preprocessing")
        facts = {name: getattr(self, name) for name in (*names, "num_classes", "block_activation")}
        return facts | {"categories": list(self.categories), "sources": [source.url for source in self.sources]}

    def transforms(self) -> Preprocessing:
        """Return the preprocessing that goes with these weights: PIL image -> (3, crop, crop) tensor."""
        return self.preprocessing

    def __str__(self) -> str:
        return f"{self.model} {self.tag}"


def identify(content: bytes, records: Collection[WeightsRecord]) -> tuple[WeightsRecord, Digest] | tuple[None, None]:
    """Return the record with a digest of ``content``, and the strongest such digest; (None, None) if none has one."""
    digests = [Digest(scheme, _hex_digest(content, scheme)) for scheme in get_args(DigestScheme)]
    for digest in digests:
        for record in records:
            if any(source.digest == digest for source in record.sources):
                return record, digest
    return None, None


def _hex_digest(content: bytes, scheme: DigestScheme) -> str:
    # SHA-1 allows two files with one digest to be made, but no second file for a digest that is known already.
    hasher = hashlib.sha256() if scheme.startswith("sha256") else hashlib.sha1(usedforsecurity=False)
    if scheme == "git-blob-sha1":
        hasher.update(b"blob %d\0" % len(content))
    hasher.update(content)
    return hasher.hexdigest()[:8] if scheme == "sha256-prefix" else hasher.hexdigest()


def read_categories(filename: str) -> tuple[str, ...]:
    """Return the lines of a class list that comes with the library.

    An installed wheel has the file inside the package, a checkout next to it.
    """
    package = Path(__file__).parent.parent
    for path in (package / filename, package.parent / filename):
        if path.is_file():
            return tuple(path.read_text(encoding="utf-8").splitlines())
    raise FileNotFoundError(f"{filename} is missing from {package}: the installation is incomplete, install again")


def _imgclsmob(release: str, model: str, top5_error: float, sha1: str) -> Source:
    name = f"{model}-{100 * top5_error:04.0f}-{sha1[:8]}.pth.zip"
    url = f"https://github.com/osmr/imgclsmob/releases/download/{release}/{name}"
    return Source(url, Digest("sha1", sha1))


def _by_authors(
    model: str, top1_error: float, top5_error: float, *, git: str | None = None, archive: str, host: str
) -> WeightsRecord:
    sources = [_imgclsmob("v0.0.435", model, top5_error, archive)]
    if git is not None:
        folder = "https://raw.githubusercontent.com/PingoLH/Pytorch-HarDNet/de9662f30ffa7474c8a24b4bceb38b49be0903a0/"
        sources.insert(0, Source(f"{folder}{model}.pth", Digest("git-blob-sha1", git)))
    url = f"https://ping-chao.com/hardnet/{model}-{host}.pth"
    sources.append(Source(url, Digest("sha256-prefix", host)))
    provenance = "trained and published by the HarDNet authors (PingoLH/Pytorch-HarDNet)"
    reported_by = "the HarDNet authors (PyTorch Hub page)"
    return WeightsRecord(model, "IMAGENET1K_V1", tuple(sources), provenance, top1_error, top5_error, reported_by)


def _by_osmr(
    model: str, top1_error: float, top5_error: float, release: str, sha1: str, activation: Activation = "relu6"
) -> WeightsRecord:
    provenance = "retrained and published by osmr (imgclsmob)"
    provenance += ", with plain ReLU inside the HarDBlocks" if activation == "relu" else ""
    source = _imgclsmob(release, model, top5_error, sha1)
    return WeightsRecord(
        model, "IMAGENET1K_V2", (source,), provenance, top1_error, top5_error, "osmr (imgclsmob)",
        block_activation=activation,
    )  # fmt: skip


_FASHION_MNIST = Source(
    f"{PACKAGE}weights/hardnet39ds-fashion-mnist.pth",
    Digest("sha256", "6f0a910f1e5a50bc35cc0d21aadb6308b649015d4dabdd353aa08ad1820af180"),
)
_RECORDS = (
    _by_authors(
        "hardnet39ds", 27.92, 9.57, git="5b99f2587b2f28687aef03f8cf1c00dbb7c73294",
        archive="9479e9ad0de538e80f7b2b73e5f19795994addce", host="0e6c6fa9",
    ),
    _by_osmr("hardnet39ds", 26.83, 8.81, "v0.0.485", "ea47fc939a130a70c5fa3326c3af6ba049a99f92"),
    WeightsRecord(
        "hardnet39ds", "FASHION_MNIST", (_FASHION_MNIST,),
        "trained by this project on Fashion-MNIST with `hardnet train`, see benchmarks/NOTES.md",
        5.59, 0.06, "this project (measured)", "Fashion-MNIST test", classes="weights/fashion_mnist_classes.txt",
        preprocessing=Preprocessing(resize=64, crop=64, mean=(0.286, 0.286, 0.286), std=(0.353, 0.353, 0.353)),
    ),
    _by_authors(
        "hardnet68ds", 25.71, 8.13, git="f036deac5ad828a7838dc8101cd66112bcb55ec0",
        archive="7187522dd301ce82b5272df29ffb3b37473e122c", host="632474d2",
    ),
    _by_osmr("hardnet68ds", 24.55, 7.56, "v0.0.487", "e0da07508c1eb92fee49df42243836892fe2f4c8"),
    _by_authors(
        "hardnet68", 23.52, 6.99, git="1cf247ba4935866c16d0f02c886797f860fb1366",
        archive="2e207f79a1995f5f30d5b9fca3391bb8e7b8594f", host="5d684880",
    ),
    _by_authors("hardnet85", 21.96, 6.11, archive="ae85d8af40610e08765f1bfc25b8414ac70d7451", host="a28faa00"),
    _by_osmr("hardnet85", 22.00, 5.86, "v0.0.495", "39d80e9361844e8ba02b08e93a7440eac14d2eda", "relu"),
)  # fmt: skip

CATALOG: dict[tuple[str, str], WeightsRecord] = {(record.model, record.tag): record for record in _RECORDS}

DEFAULT_MODEL, PACKAGED_TAG = "hardnet39ds", "FASHION_MNIST"
"""Weights if neither a model nor weights are named: the checkpoint in this package, which needs no download."""
DEFAULT, DEFAULT_TAG = "DEFAULT", "IMAGENET1K_V1"
"""The tag that means a model's default weights, and which they are."""


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the classifiers that match a shell pattern, such as ``"*ds"``."""
    return fnmatch.filter(CONFIGS, pattern)


def list_weights(name: str | None = None) -> list[str]:
    """Return the tags of the weights of a model, or of all models without a name.

    Raises:
        ValueError: there is no such model.
    """
    if name is not None:
        get_config(name)
    return list(dict.fromkeys(tag for model, tag in CATALOG if name in (None, model)))


def get_weights(name: str | None = None, tag: str = DEFAULT) -> WeightsRecord:
    """Return the record of one checkpoint: its sources, digests, classes, preprocessing and reported errors.

    Args:
        name: a model. None means hardnet39ds, and without a tag the packaged weights.
        tag: one of :func:`list_weights`, or "DEFAULT" for a model's ``IMAGENET1K_V1``.

    Raises:
        ValueError: there is no such model, or the model has no such weights.
    """
    if tag == DEFAULT:
        tag = PACKAGED_TAG if name is None else DEFAULT_TAG
    name = name or DEFAULT_MODEL
    tags = list_weights(name)
    if not tags:
        raise ValueError(f"the catalogue has no weights of {name}: give the path of a file")
    if tag not in tags:
        raise ValueError(f"{name} has no weights {tag!r}; known: {known_names(tag, [*tags, DEFAULT])}")
    return CATALOG[name, tag]


def get_config(name: str) -> HarDNetConfig:
    """Return the configuration of a model.

    Raises:
        ValueError: there is no such model.
    """
    try:
        return NETWORKS[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown model {name!r}; known: {known_names(str(name), NETWORKS)}") from None
