"""One seed for everything: whatever is drawn is a function of the run's seed and of what it is drawn for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from, for instance, ``(cfg.SEED, "step", task, iteration, rank)``.

    Nothing random is carried from step to step, so a run resumed at iteration i draws what the unbroken run drew, and
    the number of loader workers changes nothing.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_torch(seed: int) -> None:
    """``torch.manual_seed`` for the devices in use.

    Torch's own also formats a stack trace for every kind of device that is absent, which in a loader takes longer than
    decoding a small image.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator begins at ``seed`` inside, and goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
