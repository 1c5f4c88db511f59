"""Turn the result of a training run into the small checkpoint that ships inside the package.

    python tools/pack_checkpoint.py runs/fashion-mnist/model.pt hardnet/weights/hardnet39ds-fashion-mnist.pth

Weights of convolutions and of the linear layer are stored in half precision, normalisation in single: it is small, and
running variances can lie below what half precision resolves. Prints size and SHA-256, which the catalogue pins.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch


def main() -> None:
    """Read the checkpoint named first and write the one named second."""
    source, target = map(Path, sys.argv[1:])
    state = torch.load(source, map_location="cpu", weights_only=True)["model"]
    packed = {
        key: (value.half() if value.is_floating_point() and value.dim() > 1 else value).contiguous()
        for key, value in state.items()
    }
    temporary = target.with_suffix(".part")
    torch.save(packed, temporary)
    temporary.replace(target)
    content = target.read_bytes()
    print(f"{target}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
