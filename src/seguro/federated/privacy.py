"""Differential privacy of a site: its change is clipped, the sum is made noisy, the cost is counted.

What is protected is a whole site: with it or without it, the weights that are given out have nearly the same
law (McMahan et al. 2018, algorithm 1, with a fixed denominator). The order is clip at the site, sum, noise,
divide. Secure aggregation has its place at the sum: `summed` is all that it would replace, since `released`
needs nothing but the total. Limits: noise is drawn in floating point (Mironov 2012 says what that can give
away), and the weight of a site does not enter, since it would multiply what one site can move.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from seguro.core.errors import ConfigError, RunError
from seguro.core.types import Record
from seguro.federated.aggregate import length
from seguro.federated.message import Arrays

_SHRINK = 1 - 2.0**-22
_VARIANCE = "running_var"
"""End of the names of variances, which noise must not make negative."""


class PrivacyOptions(Record):
    """How much of a site may show in the weights."""

    clip: float = Field(gt=0)
    """Largest L2 norm of a site's change over all its floating arrays together (S in McMahan et al.)."""
    noise: float = Field(1.0, ge=0)
    """Standard deviation of the noise on the sum, in units of `clip` (z)."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability with which epsilon may fail; well below one over the number of sites."""
    budget: float | None = Field(None, gt=0)
    """Largest epsilon: the run stops before the round that would exceed it."""

    @model_validator(mode="after")
    def _fits(self) -> PrivacyOptions:
        if self.budget is not None and not self.noise:
            raise ValueError("without noise no budget can be kept: set noise, or leave budget out")
        return self


@dataclass(frozen=True)
class Clipped:
    """A change of bounded norm, and what its norm was."""

    arrays: dict[str, NDArray[Any]]
    norm: float
    clipped: bool


def clip(step: Arrays, bound: float) -> Clipped:
    """Return the change scaled down to norm `bound` if it is longer; integer arrays become zero.

    Counters in integer arrays would tell how much a site trained and cannot be made noisy: they do not leave.

    Raises:
        RunError: the change is not finite.
    """
    norm = length(step)
    if not math.isfinite(norm):
        raise RunError(f"a change of norm {norm} cannot be clipped; lower the learning rate")
    factor = min(1.0, bound / norm) if norm > 0 else 1.0
    while True:
        arrays = {k: (v * v.dtype.type(factor)) if _moves(v) else np.zeros_like(v) for k, v in step.items()}
        if length(arrays) <= bound:  # rounding in float32 may end above it
            return Clipped(arrays, norm, norm > bound)
        factor *= _SHRINK


def perturb(step: Arrays, options: PrivacyOptions, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return the change plus Gaussian noise of standard deviation `noise * clip` in every floating entry."""
    deviation = options.noise * options.clip
    out = {}
    for name in sorted(step):
        value = step[name]
        drawn = rng.standard_normal(value.shape) * deviation if _moves(value) else 0
        out[name] = np.asarray(value + drawn, dtype=value.dtype)
    return out


def summed(changes: Sequence[Arrays], options: PrivacyOptions) -> dict[str, NDArray[Any]]:
    """Return the sum of the sites' changes in float64, each clipped again; the place of secure aggregation.

    A site clips what it sends; rounding on the way, a kept residual or a site that did not clip must not make
    its part of the sum longer than what the noise is made for.
    """
    clipped = [clip(one, options.clip).arrays for one in changes]
    first = clipped[0] if clipped else {}
    return {
        name: sum((np.asarray(c[name], np.float64) for c in clipped), np.zeros(value.shape))
        for name, value in first.items()
        if _moves(value)
    }


def released(
    old: Arrays, total: Arrays, options: PrivacyOptions, expected: float, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return the new weights: old + (total + noise) / expected, in the dtypes of `old`.

    Args:
        old: weights that the round began with; integer arrays stay as they are.
        total: of `summed`, float64.
        options: clip and noise.
        expected: number of sites that a round expects, sites times fraction; fixed, since the number that
            answered would itself tell who was there.
        rng: of the noise; `generator` gives one.
    """
    if expected <= 0:
        raise ConfigError(f"{expected} sites expected in a round; there must be some")
    noisy = perturb(total, options, rng)
    out = {}
    for name, value in old.items():
        new = value + noisy[name] / expected if name in noisy else value
        if name.endswith(_VARIANCE):
            new = np.maximum(new, 0.0)
        out[name] = np.asarray(new, dtype=value.dtype)
    return out


def generator(seed: int | None, number: int) -> np.random.Generator:
    """Return the generator of a round's noise; None draws it from the system, as any real run must.

    Noise that follows from a seed protects only from those who do not know the seed: it is for tests and for
    simulations that must come out the same.
    """
    return np.random.default_rng(secrets.randbits(128) if seed is None else (seed, number, 0x5EC))


def _moves(value: NDArray[Any]) -> bool:
    return bool(np.issubdtype(value.dtype, np.floating))
