"""The perturbation that adversarial training adds: its ball, its box, its step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ball:
    """Per sample and channel the valid values and the largest change, shaped to broadcast over the batch."""

    low: Tensor
    high: Tensor
    eps: Tensor

    @classmethod
    def around(cls, x: Tensor, epsilon: float) -> Ball:
        """Return the ball of `epsilon` times the range of each sample and channel of x (N, C, *size)."""
        dims = tuple(range(2, x.ndim))
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        return cls(low, high, (high - low) * epsilon)

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return x + noise inside the box."""
        return torch.minimum(torch.maximum(x + noise, self.low), self.high)

    def step(self, noise: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Return the noise moved by `length` epsilons along the gradient's sign, inside the ball.

        A gradient that is not finite, as after an overflow, moves nothing.
        """
        sign = torch.nan_to_num(gradient, 0.0, 0.0, 0.0).sign()
        moved = noise + length * self.eps * sign
        return torch.minimum(torch.maximum(moved, -self.eps), self.eps)
