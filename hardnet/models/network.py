"""The network: a stem, HarDBlocks with their transitions, and a head.

The numbering of ``HarDNet.base`` is that of the authors' released code, so that its checkpoints load strictly and code
that slices ``model.base`` keeps working.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from ..utils.validation import check_count
from .config import HarDNetConfig, stage_indices
from .layers import ConvLayer, DWConvLayer, HarDBlock, dense_max_pool

logger = logging.getLogger(__name__)

_Network = TypeVar("_Network", bound="HarDNet")

_BY_NAME = 'to build a model by name: hardnet.create_model("hardnet39ds", weights="DEFAULT", in_chans=1)'
MIN_INPUT_SIZE = 32
"""Pixels: the stride of the deepest feature map, below which it would vanish."""


class ImageModule(nn.Module):
    """Base class of classifier, feature pyramid and segmentation network: configuration and check of the input."""

    min_input_size = MIN_INPUT_SIZE
    __jit_ignored_attributes__ = ("categories", "preprocessing", "weights_record")

    def __init__(self, config: HarDNetConfig, in_chans: int) -> None:
        super().__init__()
        if not isinstance(config, HarDNetConfig):
            raise TypeError(f"{type(self).__name__} takes a HarDNetConfig, got {type(config).__name__}; {_BY_NAME}")
        check_count("in_chans", in_chans, least=1)
        self.config = config
        self.in_chans = in_chans
        self.categories: tuple[str, ...] | None = None
        """Names of the classes in the order of the logits; None if unknown, as for a new head."""
        self.preprocessing: Any = None
        """The :class:`hardnet.images.preprocess.Preprocessing` that the weights were trained for; None if unknown."""
        self.weights_record: Any = None
        """The :class:`hardnet.WeightsRecord` of initial weights of the catalogue; None for other weights."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training: recompute the activations within the HarDBlocks in the backward pass.

        Gradients and running statistics do not change. Under ``torch.compile`` the HarDBlocks then
        run uncompiled.
        """
        for module in self.modules():
            if isinstance(module, HarDBlock):
                module.checkpointing = enable

    def extra_repr(self) -> str:
        """Text that ``print(model)`` shows in parentheses."""
        return f"name={self.config.name}, in_chans={self.in_chans}"

    def _check_input(self, x: Tensor) -> None:
        if not torch.jit.is_scripting():
            check_images(x, self.config.name, self.in_chans, self.min_input_size)


class HarDNet(ImageModule):
    """Image classifier: (N, in_chans, H, W) -> (N, num_classes) logits, for any H and W from 32 pixels up.

    Args:
        config: the variant, a row of ``hardnet.models.config.CONFIGS`` or one of your own.
        num_classes: width of the logits; 0 leaves the linear layer out, and the pooled features come out.
        in_chans: channels of the input image.
        drop_rate: probability of dropout before the linear layer; None takes the variant's own.

    ``base`` is an ``nn.Sequential`` of stem, blocks, transitions and head; its last entry is the head.

    Convolutions are initialised from a Xavier (Glorot) normal distribution, every bias with zero, and batch
    normalisation as the identity: the scheme of the released code.

    Raises:
        ValueError: an argument is out of its range; in ``forward``, an input that is not four-dimensional, has other
            channels than ``in_chans``, is smaller than 32 pixels or is not floating point.
        TypeError: ``config`` is something else, such as a model's name.

    Source: Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019, https://arxiv.org/abs/1909.00948
    """

    def __init__(
        self, config: HarDNetConfig | None = None, *, num_classes: int = 1000, in_chans: int = 3,
        drop_rate: float | None = None, **others: Any,
    ) -> None:  # fmt: skip
        if config is None or others:  # such as the keywords of the original's constructor
            raise TypeError(f"HarDNet takes a HarDNetConfig, got {', '.join(others) or 'nothing'}; {_BY_NAME}")
        super().__init__(config, in_chans)
        check_count("num_classes", num_classes, least=0)
        self.num_classes = num_classes
        self.num_features = config.transition_channels[-1]
        self.base = nn.Sequential(*body(config, in_chans))
        rate = config.drop_rate if drop_rate is None else drop_rate
        if not 0 <= rate < 1:
            raise ValueError(f"drop_rate is from 0 to below 1, got {rate}")
        dropout = nn.Dropout(rate)
        classifier = _classifier(self.num_features, num_classes)
        self.base.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, classifier))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes) logits."""
        self._check_input(x)
        logits: Tensor = self.base(x)
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H/32, W/32): everything but the head."""
        self._check_input(x)
        features: Tensor = self.base[:-1](x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes), or (N, num_features) before the linear layer."""
        head = _head_of(self)
        logits: Tensor = head[:-1](x) if pre_logits else head(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the linear layer; an ``nn.Identity`` if ``num_classes`` is 0."""
        return _head_of(self)[-1]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a new one of ``num_classes``, without names; by an ``nn.Identity`` for 0.

        Raises:
            ValueError: ``num_classes`` is not an integer >= 0.
        """
        check_count("num_classes", num_classes, least=0)
        reference = next(self.base[0].parameters())
        classifier = _classifier(self.num_features, num_classes).to(reference.device, reference.dtype)
        _head_of(self)[-1] = classifier.train(self.training)
        self.num_classes = num_classes
        self.categories = None

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return name patterns for ``timm.optim.param_groups_layer_decay``: stem, stages; the rest is the head."""
        starts = [stage.block for stage in stage_indices(self.config)]
        stages = zip(starts, [*starts[1:], len(self.base) - 1], strict=True)
        entries = ["|".join(map(str, range(start, end))) for start, end in stages]  # empty in a pruned model
        blocks = [(rf"^base\.(?:{numbers})\.", (index,)) for index, numbers in enumerate(entries) if numbers]
        return {"stem": r"^base\.[0-2]\.", "blocks": blocks}

    # The only imports upwards: these methods are the idiom of the field.
    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Save the model with its classes and preprocessing; see :func:`hardnet.weights.folder.save_pretrained`."""
        from ..weights.folder import save_pretrained

        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Save the model to the Hugging Face Hub; see :func:`hardnet.weights.folder.push_to_hub`."""
        from ..weights.folder import push_to_hub

        return push_to_hub(self, repo, **options)

    @classmethod
    def from_pretrained(cls: type[_Network], source: Any) -> _Network:
        """Build the model that a source of weights holds, with its classes and preprocessing, in evaluation mode.

        Args:
            source: any source of :func:`hardnet.load_weights`, such as the folder of a training run or of
                ``save_pretrained``; or "owner/name" or "owner/name@revision" of the Hugging Face Hub, where a
                private repository takes the token of ``hf auth login`` or ``HF_TOKEN``.

        Raises:
            WeightsError: files are missing, could not be downloaded, are damaged, or contradict each other.
            ImportError: huggingface_hub is not installed.
        """
        from ..weights.load import build_pretrained

        return build_pretrained(cls, source)


def warn_if_untrained(model: nn.Module) -> None:
    """Log a warning, once per model, if a HarDNet or its head has the weights that it was built with.

    Training changes the statistics of the normalisation and the bias of the head, which are 0 at first.
    """
    if not isinstance(model, HarDNet) or getattr(model, "_has_warned", False):
        return
    bias = getattr(model.get_classifier(), "bias", None)
    statistics = getattr(getattr(model.base[0], "norm", None), "running_mean", None)
    if statistics is not None and not statistics.any():
        part = "the model has random weights"
    elif bias is not None and not bias.any():
        part = "the head is new and untrained"
    else:
        return
    vars(model)["_has_warned"] = True
    logger.warning("%s: %s, its output means nothing", model.config.name, part)


def body(config: HarDNetConfig, in_chans: int, output_stride: int = 32) -> Iterator[nn.Module]:
    """Build ``base[:-1]`` one entry after the other: stem, then per row a block, its transition and a downsampling.

    (N, in_chans, H, W) -> (N, transition_channels[-1], H/output_stride, W/output_stride). Once the output stride is
    reached, later downsampling layers keep the resolution and the layers after them are dilated: every second pixel of
    the result sees what it saw before, and the same weights load.

    Raises:
        ValueError: another output stride than 32, 16 or 8.
    """
    if output_stride not in (32, 16, 8):
        raise ValueError(f"output_stride must be one of (32, 16, 8), got {output_stride!r}")
    first, second = config.stem_channels
    yield ConvLayer(in_chans, first, kernel_size=3, stride=2)
    yield ConvLayer(first, second, kernel_size=1 if config.depthwise else 3)
    yield DWConvLayer(second, stride=2) if config.depthwise else nn.MaxPool2d(3, stride=2, padding=1)
    channels, stride, dilation = second, 4, 1
    for index, (n_layers, growth_rate, out_channels, downsample) in enumerate(config.rows(), start=1):
        kind = (config.depthwise, config.block_activation, dilation)
        block = HarDBlock(channels, growth_rate, config.growth_multiplier, n_layers, *kind)
        yield block
        if index == len(config.block_layers) and config.last_block_drop_rate is not None:
            yield nn.Dropout(config.last_block_drop_rate)
        yield ConvLayer(block.out_channels, out_channels, kernel_size=1)
        channels = out_channels
        if not downsample:
            continue
        if stride < output_stride:
            stride *= 2
            yield DWConvLayer(channels, stride=2) if config.depthwise else nn.MaxPool2d(2, stride=2)
        else:
            yield DWConvLayer(channels, dilation=dilation) if config.depthwise else dense_max_pool(dilation)
            dilation *= 2


def _head_of(model: HarDNet) -> nn.Sequential:
    return cast(nn.Sequential, model.base[-1])


def _classifier(channels: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    linear = nn.Linear(channels, num_classes)
    nn.init.zeros_(linear.bias)  # as the released code does; the convolutions draw their weights in `layers`
    return linear


def check_images(x: Tensor, name: str, in_chans: int, least: int = MIN_INPUT_SIZE, pixels: bool = False) -> None:
    """Check the input of a model, which may be uint8 if ``pixels``.

    Raises:
        TypeError: not a tensor.
        ValueError: not (N, in_chans, H, W) with H and W of at least ``least`` pixels, or not floating point.
    """
    if isinstance(x, fx.Proxy) or torch.jit.is_tracing():  # type: ignore[no-untyped-call]  # torch has no types for it
        return  # there is no shape to look at, or looking at it would leave a mark in the graph
    if not isinstance(x, Tensor):
        advice = "hardnet.Classifier takes NumPy arrays, pictures and paths"
        raise TypeError(f"{name} takes a tensor (N, {in_chans}, H, W), got {type(x).__name__}: {advice}")
    if x.dim() != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < least:
        advice = ""
        if x.dim() == 3 and x.shape[0] == in_chans:
            advice = ": add the batch dimension with x.unsqueeze(0)"
        elif x.dim() == 4 and x.shape[-1] == in_chans != x.shape[1]:
            advice = ": the channels are last, move them with x.permute(0, 3, 1, 2)"
        size = f"(N, {in_chans}, H, W) with H and W of at least {least} pixels"
        raise ValueError(f"{name} takes images of shape {size}, got {tuple(x.shape)}{advice}")
    if not x.is_floating_point() and not (pixels and x.dtype == torch.uint8):
        advice = "scale them to [0, 1] and normalise them first"
        raise ValueError(f"{name} takes floating-point images, got {x.dtype}: {advice}")
