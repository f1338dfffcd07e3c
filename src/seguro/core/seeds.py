"""Random streams that are functions of a key, so that none needs to be stored."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `key`.

    Args:
        seed: the run's seed.
        key: e.g. `(update, "draw", slot)`; ints and strings only, so that the text is the same everywhere.

    Example:
        >>> derive(0, 5, "draw") == derive(0, 5, "draw"), derive(0, 5, "draw") == derive(0, 6, "draw")
        (True, False)
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return a numpy generator keyed by `(seed, *key)`."""
    return np.random.default_rng(derive(seed, *key))
