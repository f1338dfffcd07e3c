"""One call of a predictor: device, precision and test-time flips, the same for every tiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import Classes
from seguro.methods.contract import Predictor

Autocast = Callable[[], AbstractContextManager[Any]]
_TINY = 1e-7


class Forward:
    """Calls a predictor on (N, C, Z, Y, X) and returns float32 logits, averaged over flips where wanted.

    The mean over flips is taken over probabilities and returned as logits of that mean, so that
    softmax (or sigmoid, for regions) of the result is the mean.

    Args:
        predictor: what is called; its `classes` say which classes swap when left and right do.
        device: where windows are moved before the call.
        flips: input axes (0=z, 1=y, 2=x); the mean goes over all their combinations.
        autocast: context of the call; none by default.
        lateral: which of the three input axes runs from left to right; None where none does.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        device: torch.device | str = "cpu",
        flips: Sequence[int] = (),
        autocast: Autocast | None = None,
        lateral: int | None = 2,
    ) -> None:
        self.predictor = predictor
        self.device = torch.device(device)
        self.autocast: Autocast = autocast or nullcontext
        axes = sorted(set(flips))
        self._flips = [c for n in range(1, len(axes) + 1) for c in combinations(axes, n)]
        self._swap = swapped(predictor.classes)
        self._lateral = lateral

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, Z, Y, X) float32 of x (N, C, Z, Y, X)."""
        x = x.to(self.device)
        logits = self._once(x)
        if not self._flips:
            return logits
        exclusive = not self.predictor.classes.regions
        total = _probabilities(logits, exclusive)
        for axes in self._flips:
            dims = [a + 2 for a in axes]
            flipped = self._once(x.flip(dims)).flip(dims)
            if self._lateral in axes:
                flipped = flipped[:, self._swap]
            total = total + _probabilities(flipped, exclusive)
        mean = (total / (1 + len(self._flips))).clamp(_TINY, 1 - _TINY)
        return mean.log() if exclusive else torch.logit(mean)

    def _once(self, x: Tensor) -> Tensor:
        with self.autocast():
            logits: Tensor = self.predictor(x)
        return logits.float()


def _probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    return F.softmax(logits, dim=1) if exclusive else torch.sigmoid(logits)


def swapped(classes: Classes) -> list[int]:
    """Return for each class the index of its partner across the midline, or its own."""
    order = list(range(classes.n))
    for left, right in classes.pairs:
        i, j = classes.names.index(left), classes.names.index(right)
        order[i], order[j] = j, i
    return order
