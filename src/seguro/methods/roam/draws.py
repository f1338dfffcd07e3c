"""What one update of ROAM draws: the layer, the shares, the partners, the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from seguro.methods.contract import Run


def generator_of(run: Run, *key: int | str) -> np.random.Generator:
    """Return a numpy generator with the key of `run.rng`, the same on every rank."""
    lent = run.rng(*key)
    seed = torch.randint(2**62, (1,), generator=lent, device=lent.device)
    return np.random.default_rng(int(seed))


def draw_layer(rng: np.random.Generator, n: int, weights: Sequence[float] | None) -> int:
    """Return the index of one of `n` layers."""
    if weights is None:
        return int(rng.integers(n))
    chances = np.asarray(weights, dtype=float)
    return int(rng.choice(n, p=chances / chances.sum()))


def draw_lambda(rng: np.random.Generator, alpha: float) -> float:
    """Return a sample's own share, the larger side of a draw from Beta(alpha, alpha): in [0.5, 1]."""
    found = float(rng.beta(alpha, alpha))
    return max(found, 1.0 - found)


def draw_partners(rng: np.random.Generator, n: int, partner: Literal["any", "other"]) -> NDArray[np.int64]:
    """Return (n,) each sample's partner: a permutation, or one in which nobody meets themselves."""
    order = rng.permutation(n)
    if partner == "any":
        return order
    out = np.empty(n, np.int64)
    out[order] = np.roll(order, 1)  # one cycle through all
    return out


def draw_box(rng: np.random.Generator, size: Sequence[int], lam: float) -> NDArray[np.float32]:
    """Return (*size) with 0 in a random box of about 1 - lam of the volume, 1 elsewhere."""
    side = (1.0 - lam) ** (1.0 / len(size))
    mask = np.ones(tuple(size), np.float32)
    where = []
    for n in size:
        length = round(n * side)
        start = int(rng.integers(n - length + 1))
        where.append(slice(start, start + length))
    mask[tuple(where)] = 0.0
    return mask
