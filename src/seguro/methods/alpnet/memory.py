"""One value kept for as long as the tensors that it was computed from stay as they were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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
        kinds = sorted({t.device.type for t in of})
        modes = [(torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(k) for k in kinds))]
        state = (modes, [(t.data_ptr(), t.dtype, t._version) for t in of])
        same = len(of) == len(self._of) and all(r() is t for r, t in zip(self._of, of, strict=True))
        if self._value is None or not same or state != self._state:
            value = compute()
            if not constant(value):
                return value
            self._of, self._state, self._value = tuple(weakref.ref(t) for t in of), state, value
        return self._value

    def __reduce__(self) -> tuple[type[Memory[T]], tuple[()]]:
        return Memory, ()
