"""Addressed randomness: a seed is computed from where it is used, never consumed from a shared stream.

Two calls with the same address give the same seed in any process, so results do not depend on the number of workers,
on the order in which actors answer, or on restarts.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

SIMULATOR_SEEDS = 2**31
"""Gymnasium takes seeds below this."""


def seed_at(*address: int | str) -> int:
    """Return the 63-bit seed of an address such as `(experiment_seed, "pretrain", step)`.

    Raises:
        ValueError: A part holds the separator "/", which would let two addresses meet.
    """
    if any("/" in str(part) for part in address):
        raise ValueError(f"no part of an address may hold '/', got {address}")
    text = "/".join(str(part) for part in address)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*address: int | str) -> np.random.Generator:
    """Return a numpy generator seeded at an address."""
    return np.random.default_rng(seed_at(*address))


def torch_generator(*address: int | str) -> torch.Generator:
    """Return a CPU torch generator seeded at an address; draw on CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(seed_at(*address))


@contextmanager
def seeded_at(device: torch.device, *address: int | str) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of a GPU `device` at an address, and restore them after.

    For what takes no generator of its own, such as dropout.
    """
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if is_gpu else []):
        torch.default_generator.manual_seed(seed_at(*address))
        if is_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_at(*address))
        yield


def normal_rows(num_rows: int, shape: Sequence[int], *address: int | str) -> Tensor:
    """Return standard normal numbers (num_rows, *shape) on the CPU, each row drawn at an address of its own.

    So a row does not depend on how many there are: the first 10 of 16 are the 10.
    """
    return torch.stack([torch.randn(shape, generator=torch_generator(*address, row)) for row in range(num_rows)])
