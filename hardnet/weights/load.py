"""Load weights of any kind: a tag, a record, a file, a training run, a saved folder or a repository of the Hub."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..images.preprocess import Preprocessing
from ..models.config import CONFIGS, NETWORKS, HarDNetConfig
from ..models.features import HarDNetFeatures
from ..models.network import HarDNet
from ..models.segmentation import FCHarDNet
from ..utils.errors import WeightsError
from ..utils.files import expand_user
from ..utils.text import known_names, printable
from . import folder, state_dict
from .catalog import CATALOG, DEFAULT, Digest, WeightsRecord, get_config, get_weights, identify, list_weights
from .cityscapes import BGR_PREPROCESSING, CITYSCAPES
from .download import Progress, fetch
from .files import deserialise, read_file, unpack_archive
from .folder import CONFIG, HUB_PREFIX, WEIGHTS
from .state_dict import StateDict, head_classes

RUN_FILES = ("best.pt", "model.pt")
"""The weights of a training run in its folder: of the best validation, else of the last epoch."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """Weights that have been read, and what is known about them."""

    name: str
    """Name for messages, such as "hardnet68 IMAGENET1K_V1", a path or "hf-hub:owner/name"."""
    config: HarDNetConfig
    """The architecture, with the activation that the weights were trained with."""
    state: StateDict
    """State dict of a whole network under the original implementation's keys, on the CPU."""
    categories: tuple[str, ...] | None
    """Names of the classes in the order of the logits; None if unknown."""
    preprocessing: Preprocessing | None
    """Preprocessing that the weights were trained for; None if unknown."""
    record: WeightsRecord | None = None
    """The entry of the catalogue; None for weights from elsewhere."""
    digest: Digest | None = None
    """The digest of the catalogue that the bytes have; None for weights from elsewhere."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the head; None if there is no head."""
        return head_classes(self.state, self.config)

    @property
    def in_chans(self) -> int:
        """Input channels of the stem."""
        return state_dict.stem_channels(self.state) or 3


Network = TypeVar("Network", bound=HarDNet)
Source = str | os.PathLike[str] | WeightsRecord | Loaded
"""Types of a source of weights."""


def load_weights(
    source: Source, *, model: str | None = None, progress: Progress = True, use_ema: bool = True
) -> Loaded:
    """Read weights once, and find out of which model they are, with which classes and preprocessing.

    Args:
        source: a tag of :func:`hardnet.list_weights` or "DEFAULT"; the name of a model, for its default weights; a
            record of :func:`hardnet.get_weights`; the path of a file: ``.pth``/``.pt`` (a state dict, or a training
            checkpoint with one), ``.safetensors``, or a release archive ``.pth.zip``; the folder of a training run, or
            of ``save_pretrained``; or ``hf-hub:owner/name@revision``.
        model: name of the expected model. None takes the one that the source names or whose keys and shapes it has; a
            tag then means hardnet39ds.
        progress: show a progress bar for downloads on a terminal, or a function of the bytes so far and in total (None
            if unknown).
        use_ema: prefer the averaged weights of a training checkpoint.

    Raises:
        WeightsError: the weights could not be downloaded, are damaged, or are not of this model.
        ValueError: an unknown model or tag.
        TypeError: ``source`` is of another type.
    """
    if model is not None:
        get_config(model)
    if isinstance(source, Loaded):
        return _of_model(source, model)
    record = _find_record(source, model)
    if record is not None:
        file = fetch(record, progress=progress)
        content, digest = deserialise(file.content, ".pth"), file.source.digest
        return _loaded(str(record), content, record=record, digest=digest, use_ema=use_ema)
    place = os.fspath(source)  # type: ignore[arg-type]
    try:
        return _of_model(_load_path(place, model, use_ema), model)
    except WeightsError as error:
        raise WeightsError(f"{printable(place)}: {error}") from error


def build_pretrained(kind: type[Network], source: Source) -> Network:
    """Build a HarDNet, or a subclass with the same arguments; see :meth:`hardnet.HarDNet.from_pretrained`."""
    is_path = isinstance(source, (str, os.PathLike)) and expand_user(source).exists()
    if isinstance(source, str) and not is_path and folder.is_repository(source):
        source = HUB_PREFIX + source
    loaded = load_weights(source)
    if loaded.config.decoder:
        name = loaded.config.name
        raise WeightsError(f"{loaded.name}: is {name}: hardnet.{name}(weights=...) loads it")
    model = kind(loaded.config, num_classes=loaded.num_classes or 0, in_chans=loaded.in_chans)
    fill(model, loaded)
    model.categories = loaded.categories
    return model.eval()


def fill(model: HarDNet | HarDNetFeatures | FCHarDNet, loaded: Loaded) -> None:
    """Load weights into a model, with their preprocessing; the names of classes are the caller's to set.

    A WeightsError says that they do not fit; the model is unchanged then.
    """
    try:
        state_dict.load_state(model, loaded.state)
    except WeightsError as error:
        raise WeightsError(f"{loaded.name}: {error}") from error
    model.preprocessing, model.weights_record = loaded.preprocessing, loaded.record


def _of_model(loaded: Loaded, model: str | None) -> Loaded:
    if model not in (None, loaded.config.name):
        raise WeightsError(f"is {loaded.record or loaded.config.name}, it does not fit {model}")
    return loaded


def _find_record(source: Source, model: str | None) -> WeightsRecord | None:
    """Return the record that ``source`` denotes; None if it is a path or a repository."""
    if isinstance(source, WeightsRecord):
        if model not in (None, source.model):
            raise ValueError(f"the weights {source} are not for {model}")
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"weights must be a tag, a record or a path, got {type(source).__name__}")
    if source == DEFAULT or source in list_weights(model):
        return get_weights(model, str(source))
    path, word = Path(source), str(source)
    is_word = path.name == word and not path.suffix and not word.startswith(HUB_PREFIX)
    if isinstance(source, os.PathLike) or not is_word or path.exists():
        return None
    if word in CONFIGS:
        return _find_record(get_weights(word), model)
    names = known_names(word, [*([] if model else CONFIGS), *list_weights(model), DEFAULT])
    problem = f"{model} has no weights {word!r}" if model else f"unknown model, weights or file {word!r}"
    raise ValueError(f"{problem}; known: {names}; nor is there such a file")


def _load_path(source: str, model: str | None, use_ema: bool) -> Loaded:
    if source.startswith(HUB_PREFIX):
        return _loaded(source, *folder.read_folder(folder.download_repository(source.removeprefix(HUB_PREFIX))))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        raise WeightsError("is an address; only weights of the catalogue are downloaded: save the file, give its path")
    path = expand_user(source)
    if path.is_dir():
        if (path / CONFIG).exists():
            return _loaded(source, *folder.read_folder(path))
        files = [path / name for name in (*RUN_FILES, WEIGHTS) if (path / name).is_file()]
        if not files:
            raise WeightsError(f"a folder without {CONFIG} (of save_pretrained) or {' or '.join(RUN_FILES)} (of a run)")
        path = files[0]
    content = read_file(path)
    if path.suffix.lower() == ".zip":
        content = unpack_archive(content)
    record, digest = identify(content, CATALOG.values())
    description = folder.read_description(content)
    checkpoint = deserialise(content, path.name)
    return _loaded(source, checkpoint, description, model=model, record=record, digest=digest, use_ema=use_ema)


def _loaded(
    name: str, content: Any, description: dict[str, Any] | None = None, *, model: str | None = None,
    record: WeightsRecord | None = None, digest: Digest | None = None, use_ema: bool = True,
) -> Loaded:  # fmt: skip
    """Turn the content of a file into weights, described by a record, by :mod:`.folder`, or by the content itself."""
    state = state_dict.find_state(content, use_ema=use_ema)
    facts = content if description is None else description
    if record is not None:
        facts = {"architecture": record.model, "block_activation": record.block_activation}
        facts |= {"classes": record.categories, "preprocessing": record.preprocessing.to_dict()}
    config = _architecture(facts, state, model)
    state = state_dict.rename_imgclsmob(state, config)
    classes = head_classes(state, config)
    categories, preprocessing = None, None
    if config.decoder and "model_state" in facts:  # of the authors' training script
        categories = tuple(CITYSCAPES) if classes == len(CITYSCAPES) else None
        preprocessing = BGR_PREPROCESSING
    elif {"classes", "preprocessing"} <= facts.keys():
        try:
            categories = None if facts["classes"] is None else folder.check_categories(facts["classes"])
            preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        except ValueError as error:
            raise WeightsError(str(error)) from error
    if categories is not None and classes not in (None, len(categories)):
        raise WeightsError(f"has the names of {len(categories)} classes, but a head of {classes}")
    return Loaded(name, config, state, categories, preprocessing, record, digest)


def _architecture(facts: dict[str, Any], state: StateDict, model: str | None) -> HarDNetConfig:
    """Return the architecture that a file names, the expected one, or the one whose keys it has."""
    name = facts.get("architecture")
    if not isinstance(name, str) or name not in NETWORKS:
        name = model or state_dict.identify_model(state)
    if name is None:
        raise WeightsError(f"neither names its model nor has the keys of {', '.join(NETWORKS)}: name the model")
    config = NETWORKS[name]
    activation = facts.get("block_activation", config.block_activation)
    if activation not in ("relu", "relu6"):
        raise WeightsError(f"block_activation must be relu or relu6, got {activation!r:.100}")
    return replace(config, block_activation=activation)
