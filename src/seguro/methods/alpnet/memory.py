"""Values kept for as long as the tensors that they were computed from stay as they were."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

LIMIT = 256 << 20
"""Bytes of results that `Recent` keeps."""


class Memory(Generic[T]):
    """Keeps the last value computed; a copy of it, or one sent to another process, begins empty."""

    def __init__(self) -> None:
        self._of: tuple[weakref.ref[Tensor], ...] = ()
        self._state: object = None
        self._value: T | None = None

    def get(self, of: Sequence[Tensor], compute: Callable[[], T], *, constant: Callable[[T], bool]) -> T:
        """Return `compute()`, or what it returned last if nothing has changed since.

        Changed is: another tensor object, a write to one, another device, type or mode of computation.
        Tensors made under inference mode do not tell of writes: with one of them nothing is kept.

        Args:
            of: what the value depends on.
            compute: makes it.
            constant: whether a value may be kept, which one with gradients may not.
        """
        if any(t.is_inference() for t in of):
            return compute()
        state = _state(of)
        same = len(of) == len(self._of) and all(r() is t for r, t in zip(self._of, of, strict=True))
        if self._value is None or not same or state != self._state:
            value = compute()
            if not constant(value):
                return value
            self._of, self._state, self._value = tuple(weakref.ref(t) for t in of), state, value
        return self._value

    def __reduce__(self) -> tuple[type[Memory[T]], tuple[()]]:
        return Memory, ()


class Recent:
    """Keeps what was computed of the last images, each found again by its content; copies begin empty.

    Args:
        limit: bytes of results to keep.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._state: object = None
        self._values: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    def get(self, image: Tensor, of: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Return `compute()`, or what it returned for an image of the same content.

        Nothing is kept where gradients may be asked for, nor of weights made under inference mode.

        Args:
            image: of any shape.
            of: weights; a change of them (as in `Memory`) forgets everything.
            compute: makes the result.
        """
        if torch.is_grad_enabled() or any(t.is_inference() for t in of):
            return compute()
        state = _state(of)
        if state != self._state:
            self._values.clear()
            self._state = state
        content = image.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
        key = (image.shape, image.dtype, image.device, hashlib.sha256(content).digest())
        if key not in self._values:
            self._values[key] = compute()
        self._values.move_to_end(key)
        while sum(v.nbytes for v in self._values.values()) > self._limit:
            oldest, value = self._values.popitem(last=False)
            if oldest == key:
                return value
        return self._values[key]

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self._limit,)


def _state(of: Sequence[Tensor]) -> object:
    """Return what tells whether tensors, or the mode of computation, have changed."""
    kinds = sorted({t.device.type for t in of})
    modes = [(torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(k) for k in kinds))]
    return modes, [(t.data_ptr(), t.dtype, t._version) for t in of]
