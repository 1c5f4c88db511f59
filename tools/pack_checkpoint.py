"""Turn the result of a training run into the small checkpoint that ships inside the package.

    python tools/pack_checkpoint.py runs/fashion/model.pt hardnet/weights/hardnet39ds-fashion-mnist.pth --logit-scale 2

Weights of convolutions and of the linear layer are stored in half precision, normalisation in single: it is small, and
running variances can lie below what half precision resolves. Prints size and SHA-256, which the catalogue pins.
"""

import argparse
import hashlib
import io
from pathlib import Path

import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", type=Path, help="model.pt or best.pt of a run")
parser.add_argument("target", type=Path, help="the file to write")
parser.add_argument("--logit-scale", type=float, default=1.0, help="factor of the logits; a power of two is exact")
arguments = parser.parse_args()
state = torch.load(arguments.source, map_location="cpu", weights_only=True)["model"]
[linear] = [key.removesuffix("weight") for key, value in state.items() if value.dim() == 2]
for name in ("weight", "bias"):
    state[linear + name] *= arguments.logit_scale
for key, value in state.items():
    state[key] = (value.half() if value.is_floating_point() and value.dim() > 1 else value).contiguous()
buffer = io.BytesIO()  # a file's name would become part of its content
torch.save(state, buffer)
content = buffer.getvalue()
arguments.target.write_bytes(content)
print(f"{arguments.target}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
