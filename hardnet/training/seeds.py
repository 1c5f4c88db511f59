"""Random numbers as a function of the position in a run, not of what was drawn before.

The order of an epoch, the augmentation of an image and the dropout of a step each get a seed of their own, made from
the run's seed and the position. Hence a resumed run repeats the run that was not interrupted, whatever the number of
data workers, and a checkpoint need not carry the state of every generator of every rank.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) that depends on every part."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Draw from torch's CPU generator as if seeded with the parts; its state is given back afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(derive_seed(*parts))
    try:
        yield
    finally:
        generator.set_state(state)


def permutation(count: int, *parts: object) -> Tensor:
    """Return the numbers below ``count`` in a random order, (count,) of int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*parts)))
