"""Arrays as the bytes of a safetensors file and back, neither way copied one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError

KINDS = {
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "|i1": "I8",
    "|u1": "U8",
    "|b1": "BOOL",
    "<i2": "I16",
    "<i4": "I32",
    "<i8": "I64",
}
"""numpy's types and those of safetensors."""
TYPES = {kind: np.dtype(name) for name, kind in KINDS.items()}


def packed(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Return the parts of a safetensors file with the arrays in the order of their names; none is copied.

    Raises:
        DataError: an array of a type that does not travel.
    """
    head: dict[str, Any] = {}
    parts: list[Any] = []
    at = 0
    for name, array in sorted(arrays.items()):
        value = np.ascontiguousarray(array)
        if value.dtype.str not in KINDS:
            raise DataError(f"{name}: arrays of {value.dtype} do not travel, known are {sorted(KINDS)}")
        head[name] = {
            "dtype": KINDS[value.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [at, at + value.nbytes],
        }
        at += value.nbytes
        parts.append(value.reshape(-1).view(np.uint8).data)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def unpacked(data: memoryview) -> dict[str, NDArray[Any]]:
    """Return the arrays in a safetensors file as read-only views of `data`.

    Nothing in `data` is believed: the arrays must follow each other in the order of the head and fill the
    rest of the file exactly.

    Raises:
        ValueError: it is no such file; the message says what is wrong.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError(f"a head of {size} bytes in {len(data)}")
    head = json.loads(bytes(data[8 : 8 + size]))
    if not isinstance(head, dict):
        raise ValueError("a head that lists no arrays")
    body = data[8 + size :]
    out: dict[str, NDArray[Any]] = {}
    at = 0
    for name, entry in head.items():
        kind, shape = _described(name, entry)
        end = at + math.prod(shape) * kind.itemsize
        if entry["data_offsets"] != [at, end] or end > len(body):
            raise ValueError(f"array {name}: {kind} {shape} at {entry['data_offsets']} of {len(body)} bytes")
        array = np.frombuffer(body[at:end], kind).reshape(shape)
        out[name] = array if array.flags.aligned else array.copy()
        at = end
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes after the last array")
    return out


def _described(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of an entry of the head."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {name}: an entry with other fields")
    kind, shape = entry["dtype"], entry["shape"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"array {name}: type {kind!r}, known are {sorted(TYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise ValueError(f"array {name}: a shape that is none")
    return TYPES[kind], tuple(shape)
