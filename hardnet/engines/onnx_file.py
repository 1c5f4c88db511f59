"""A model as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..utils.optional import require
from .base import quiet_exporter

OPSET = 18
"""The opset of the files: the oldest that torch's present exporter writes, so that most runtimes read them."""


def write_onnx(model: nn.Module, path: Path, example: Tensor, metadata: dict[str, str] | None = None) -> None:
    """Write a model in evaluation mode, for any number of images of any size; the weights are within the file.

    Args:
        model: (N, C, H, W) -> one tensor or a list of them.
        path: where to write.
        example: images of the kind that the model takes.
        metadata: texts that are stored in the file, read back by any ONNX library.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    require("onnx", "1.17", extra="onnxruntime")
    require("onnxscript", "0.2", extra="onnxruntime")
    if example.shape[0] < 2 or example.shape[2] == example.shape[3]:  # equal sizes would be taken for one and the same
        example = example.new_zeros(2, example.shape[1], 64, 96)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad(), quiet_exporter():
        count = len(output) if isinstance(output := model(example), (list, tuple)) else 1
        names = ["logits"] if count == 1 else [f"features_{index}" for index in range(count)]
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=sizes,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - what the exporter returns with dynamo=True
    for key, value in (metadata or {}).items():
        program.model.metadata_props[key] = value
    program.save(str(path))
