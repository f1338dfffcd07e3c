"""Fewer bytes for what a site changed: half precision, or eight bits with error feedback.

A coded message has the names of the model's arrays and no others. What rounding takes away is kept at the
site and added to its next change, so that it is delayed and not lost (error feedback: Seide et al. 2014,
section 3; Karimireddy et al. 2019, algorithm 2). Arrays of integers (counters) are small and pass as they
are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError, RunError
from seguro.federated.message import Arrays

CODECS = ("fp16", "int8")
"""fp16: float16 of the same shape. int8: bytes, which are a float32 step and the deflated multiples of it."""
LEVELS = 127
_STEP = np.dtype("<f4")
_DEFLATE_LEVEL = 6


@dataclass(frozen=True)
class Coded:
    """A coded change, and what was lost in it."""

    arrays: dict[str, NDArray[Any]]
    residual: dict[str, NDArray[np.float32]]
    """Change minus what decoding gives; the site adds it to its next change."""


def encode(step: Arrays, coding: str, residual: Mapping[str, NDArray[Any]] | None = None) -> Coded:
    """Return the change `step` coded, after adding what the last round's coding lost.

    Args:
        step: the change by name, any shape; floating arrays are coded, others pass.
        coding: "fp16" or "int8"; "none" returns the arrays as they are.
        residual: of the round before, by name; arrays that are not in it count as zero.

    Returns:
        Coded: for int8 |residual| is at most half a step, largest change / 127 / 2.

    Raises:
        ConfigError: unknown coding.
        RunError: a change that is not finite, or beyond float16; the array is named.
    """
    _known(coding)
    arrays: dict[str, NDArray[Any]] = {}
    lost: dict[str, NDArray[np.float32]] = {}
    for name, value in step.items():
        if coding == "none" or not np.issubdtype(value.dtype, np.floating):
            arrays[name] = value
            continue
        wanted = value.astype(np.float32)
        if residual is not None and name in residual:
            wanted = np.asarray(wanted + residual[name].astype(np.float32))  # of () numpy makes a scalar
        if not np.isfinite(wanted).all():
            raise RunError(
                f"array {name}: its change is not finite and cannot be coded; lower the learning rate"
            )
        arrays[name] = _half(name, wanted) if coding == "fp16" else _eight(wanted)
        lost[name] = np.asarray(wanted - _decoded(name, arrays[name], coding, wanted.shape))
    return Coded(arrays, lost)


def decode(arrays: Arrays, coding: str, like: Arrays) -> dict[str, NDArray[Any]]:
    """Return the change that `arrays` code, with the shapes and dtypes of `like`.

    Args:
        arrays: as received; nothing of them is believed.
        coding: how they are coded.
        like: the model's arrays, which say names, shapes and dtypes.

    Raises:
        ConfigError: unknown coding.
        DataError: other names, or an array that does not decode to the shape of its namesake.
    """
    _known(coding)
    if set(arrays) != set(like):
        odd = sorted(set(arrays) ^ set(like))
        raise DataError(f"coded arrays with other names than the model's ({', '.join(odd[:4])}); refused")
    out = {}
    for name, model in like.items():
        if coding == "none" or not np.issubdtype(model.dtype, np.floating):
            if arrays[name].shape != model.shape or arrays[name].dtype != model.dtype:
                raise DataError(_other(name, f"{arrays[name].dtype} {arrays[name].shape}", model))
            out[name] = arrays[name]
        else:
            out[name] = _decoded(name, arrays[name], coding, model.shape).astype(model.dtype)
    return out


def largest_bytes(arrays: Arrays, coding: str) -> int:
    """Return the bytes that a coded change of arrays like these has at most, before it is made."""
    _known(coding)
    total = 0
    for value in arrays.values():
        if coding == "none" or not np.issubdtype(value.dtype, np.floating):
            total += int(value.nbytes)
        elif coding == "fp16":
            total += 2 * int(value.size)
        else:  # deflate adds at most 5 bytes to each 16 kB block, and 11 around them
            total += _STEP.itemsize + int(value.size) + 5 * (int(value.size) // 16_000 + 1) + 11
    return total


def _known(coding: str) -> None:
    if coding not in ("none", *CODECS):
        raise ConfigError(f"coding {coding!r}: expected one of none, {', '.join(CODECS)}")


def _half(name: str, wanted: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = wanted.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(wanted).max())
        raise RunError(f"array {name}: a change of {largest:g}, more than float16 holds (65504); use int8")
    return half


def _eight(wanted: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return one step (float32) and the deflated multiples of it (int8), as bytes."""
    largest = float(np.abs(wanted).max()) if wanted.size else 0.0
    step = np.array([largest / LEVELS], _STEP)
    multiples = np.zeros(wanted.size, np.int8)
    if step[0] > 0:
        multiples = np.clip(np.rint(wanted.ravel() / step[0]), -LEVELS, LEVELS).astype(np.int8)
    return np.frombuffer(step.tobytes() + zlib.compress(multiples.tobytes(), _DEFLATE_LEVEL), np.uint8)


def _decoded(name: str, value: NDArray[Any], coding: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if coding == "fp16":
        if value.dtype != np.float16 or value.shape != shape:
            raise DataError(f"array {name}: {value.dtype} {value.shape}, expected float16 {shape}; refused")
        return np.asarray(value, np.float32)
    size = int(np.prod(shape))
    raw = value.tobytes()
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(raw[_STEP.itemsize :], size + 1)  # never more than the model's own size
    except zlib.error as error:
        raise DataError(f"array {name}: damaged int8 coding ({error}); refused") from error
    if value.dtype != np.uint8 or len(raw) < _STEP.itemsize or len(data) != size or not inflate.eof:
        raise DataError(f"array {name}: int8 coding of another size than {shape} ({size} values); refused")
    step = np.float32(np.frombuffer(raw[: _STEP.itemsize], _STEP)[0])
    if not np.isfinite(step):
        raise DataError(f"array {name}: int8 coding with a step of {step}; refused")
    return np.asarray((np.frombuffer(data, np.int8).astype(np.float32) * step).reshape(shape), np.float32)


def _other(name: str, found: str, model: NDArray[Any]) -> str:
    return f"array {name}: {found}, expected {model.dtype} {model.shape}; refused"
