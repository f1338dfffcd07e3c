"""From the sites' updates to new weights: what is accepted, and how it is averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.federated.message import Arrays

ROUNDING = 1e-9
"""A share of .29 of 100 is 28.999999999999996 in binary, and 29 is meant."""
BLOCK = 1 << 14
"""Numbers that are averaged at a time."""


def check(site: str, arrays: Arrays, like: Arrays) -> float:
    """Return the distance of arrays from `like`; refuse other names, shapes or types, and what is not finite.

    Args:
        site: whose arrays they are.
        arrays: as received.
        like: all of its values are finite.

    Raises:
        DataError: what is wrong with which array of which site.
    """
    missing, further = sorted(set(like) - set(arrays)), sorted(set(arrays) - set(like))
    if missing or further:
        raise DataError(
            f"site {site}: {len(missing)} arrays missing (first {missing[:1]}), {len(further)} not asked for "
            f"(first {further[:1]}); all sites need the same version of seguro"
        )
    for name, expected in like.items():
        array = arrays[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise DataError(
                f"site {site}: {name} is {array.dtype} {array.shape}, "
                f"expected {expected.dtype} {expected.shape}"
            )
    far = distance(arrays, like)
    if not np.isfinite(far):  # as every value is where it is finite: one pass is enough for both
        for name, array in arrays.items():
            odd = int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
            if odd:
                raise DataError(f"site {site}: {name} has {odd} values not finite")
    return far


def mean(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, NDArray[Any]]:
    """Return the weighted mean of each array; integers are rounded and keep their type.

    Sums are taken in float64 in the order given. Where all weights are zero every update counts the same.
    """
    total = sum(weights)
    w = [x / total for x in weights] if total > 0 else [1 / len(updates)] * len(updates)
    out = {}
    for name, first in updates[0].items():
        flat = [u[name].reshape(-1) for u in updates]
        found = np.empty(first.size, first.dtype)
        whole, parts = np.empty((2, min(first.size, BLOCK)))  # one place for all blocks: new ones cost more
        for at in _blocks(first.size):
            n = min(first.size - at.start, BLOCK)
            sums, part = whole[:n], parts[:n]
            np.copyto(sums, flat[0][at])  # first to float64, then times the weight: faster than both in one
            sums *= w[0]
            for x, values in zip(w[1:], flat[1:], strict=True):
                np.copyto(part, values[at])
                part *= x
                sums += part
            found[at] = sums if first.dtype.kind == "f" else _as(sums, first.dtype)
        out[name] = found.reshape(first.shape)
    return out


def trimmed(updates: Sequence[Arrays], share: float) -> dict[str, NDArray[Any]]:
    """Return per number the mean without the `share` of the sites that is lowest and highest.

    Coordinate-wise trimmed mean (Yin et al. 2018, ICML, definition 2); of n sites the whole part of share * n
    is dropped at either end, and at least one when share > 0 and there are three or more sites.
    """
    n = len(updates)
    k = int(share * n + ROUNDING)
    if share > 0 and n > 2:
        k = max(k, 1)
    k = min(k, (n - 1) // 2)
    out = {}
    for name, first in updates[0].items():
        stacked = np.sort(np.stack([u[name] for u in updates]), axis=0)
        out[name] = _as(stacked[k : n - k].mean(axis=0, dtype=np.float64), first.dtype)
    return out


def change(new: Arrays, old: Arrays) -> dict[str, NDArray[Any]]:
    """Return new - old, by name and in the type of each array."""
    return {k: np.asarray(v - old[k], dtype=v.dtype) for k, v in new.items()}


def moved(old: Arrays, by: Arrays) -> dict[str, NDArray[Any]]:
    """Return old + by, by name and in the type of each array."""
    return {k: np.asarray(v + by[k], dtype=v.dtype) for k, v in old.items()}


def length(arrays: Arrays) -> float:
    """Return the Euclidean length over all floating-point arrays together."""
    flat = [a.reshape(-1) for a in arrays.values() if a.dtype.kind == "f"]
    return float(np.sqrt(sum(float(np.einsum("i,i->", a, a, dtype=np.float64)) for a in flat)))


def distance(new: Arrays, old: Arrays) -> float:
    """Return the Euclidean length of new - old over all floating-point arrays together.

    float32 within blocks, float64 over them; in float64 throughout where that is too little.
    """
    total = _squares(new, old, np.dtype(np.float32))
    return float(np.sqrt(total if np.isfinite(total) else _squares(new, old, np.dtype(np.float64))))


def _squares(new: Arrays, old: Arrays, dtype: np.dtype[Any]) -> float:
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in new.items():
            if array.dtype.kind != "f":
                continue
            a, b = array.reshape(-1), old[name].reshape(-1)
            fine = np.promote_types(array.dtype, dtype)
            place = np.empty(min(a.size, BLOCK), fine)
            for at in _blocks(a.size):
                moved_by = np.subtract(a[at], b[at], out=place[: min(a.size - at.start, BLOCK)], dtype=fine)
                total += float(moved_by @ moved_by)
    return total


def bounded(changes: Sequence[Arrays], bound: float) -> list[dict[str, NDArray[Any]]]:
    """Return the changes, those longer than `bound` times the median length shortened to it."""
    lengths = [length(c) for c in changes]
    limit = bound * float(np.median(lengths))
    return [_scaled(c, min(1.0, limit / n) if n else 1.0) for c, n in zip(changes, lengths, strict=True)]


def _scaled(arrays: Arrays, factor: float) -> dict[str, NDArray[Any]]:
    return {
        k: np.asarray(a * factor, dtype=a.dtype) if a.dtype.kind == "f" else np.asarray(a)
        for k, a in arrays.items()
    }


def _blocks(size: int) -> Iterator[slice]:
    """Yield slices of so many numbers that what is computed of them stays in a processor's cache."""
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `values` in the type of the arrays that they were made of."""
    return np.asarray(np.rint(values) if dtype.kind in "iub" else values).astype(dtype)
