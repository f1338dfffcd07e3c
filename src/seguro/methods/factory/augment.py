"""How strongly the discriminator's images are augmented: as much as it overfits (ADA, equation 1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Adaptive:
    """A probability that rises while the discriminator is too sure of real images, and falls else.

    Args:
        target: mean sign of the scores on real images that it is held at.
        every: turns from one change to the next.
        images: real images over which the probability may go from 0 to 1.
    """

    def __init__(self, target: float, every: int, images: int) -> None:
        self.target, self.every, self.images = target, every, images
        self._state = torch.zeros(4)
        """Probability, sum of signs, turns and images since the last change."""

    @property
    def p(self) -> Tensor:
        """The probability now, ()."""
        return self._state[0]

    def observe(self, sign: Tensor, images: int) -> None:
        """Take note of the mean sign () of the scores of so many real images, and adapt where it is time."""
        p, signs, turns, seen = self._state.tolist()
        signs, turns, seen = signs + float(sign), turns + 1, seen + images
        if turns >= self.every:
            step = seen / self.images
            p = min(max(p + (step if signs / turns > self.target else -step), 0.0), 1.0)
            signs, turns, seen = 0.0, 0, 0
        self._state = torch.tensor([p, signs, turns, seen])

    def state(self) -> dict[str, Tensor]:
        """Return the probability and what was noted since its last change."""
        return {"augment": self._state}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self._state = state["augment"].detach().cpu().clone()
