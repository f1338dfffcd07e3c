"""Boundary refinement: probabilities drawn to the mean of the superpixel that a voxel lies in."""

from __future__ import annotations

import torch
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.data.superpixels import Superpixels, superpixels
from seguro.methods.contract import Predictor, Slices, Support

SMALL = Superpixels(min_size=0.0006, unit="share")
"""Superpixels finer than those of training: they are to follow edges, not to be organs (39 px of 256x256)."""
_TINY = 1e-7


class Snapped(Predictor):
    """A predictor whose edges follow those of the image.

    Within each superpixel of the input, p becomes (1 - weight) p + weight mean(p); outside all superpixels it
    stays. Few-shot logits come from features several pixels wide, the image knows the edge better. Gradients
    pass through the probabilities, not through where superpixels lie. A predictor that works in windows or
    slices is given one at a time, so that each has superpixels of its own.

    Args:
        predictor: of exclusive classes.
        weight: 0 leaves everything as it is, 1 makes each superpixel of one class.
        axis: canonical axis that slices are cut along; what a slice-wise predictor is given is cut already.
        how: superpixels of one volume; its first axis counts.

    Raises:
        ConfigError: a weight outside [0, 1], or overlapping regions.
    """

    def __init__(
        self, predictor: Predictor, weight: float, *, axis: int = 0, how: Superpixels = SMALL
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ConfigError(f"snapping weight {weight}: expected 0 to 1")
        if predictor.classes.regions:
            raise ConfigError(
                "snapping to superpixels works on exclusive classes, not on overlapping regions"
            )
        self.predictor = predictor
        self.classes = predictor.classes
        self.tiling = predictor.tiling
        self._weight, self._how = weight, how
        self._axis = 0 if isinstance(predictor.tiling, Slices) else axis  # slices come as (N, C, 1, A, B)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, Z, Y, X) of x (N, C, Z, Y, X)."""
        logits = self.predictor(x) if support is None else self.predictor(x, support)
        p = logits.softmax(dim=1)
        return torch.stack([self._one(q, image) for q, image in zip(p, x, strict=True)])

    def _one(self, p: Tensor, image: Tensor) -> Tensor:
        """Return logits (n, Z, Y, X) of probabilities p of one image (C, Z, Y, X)."""
        found = superpixels(image.detach().cpu().numpy(), self._how, axis=self._axis)
        ids = torch.from_numpy(found.astype("int64")).to(p.device).movedim(self._axis, 0)  # (slices, A, B)
        q = p.movedim(self._axis + 1, 1)  # (n, slices, A, B)
        step = int(ids.max()) + 1
        flat = (ids + step * torch.arange(len(ids), device=ids.device).view(-1, 1, 1)).flatten()
        size = step * len(ids)
        count = torch.zeros(size, dtype=p.dtype, device=p.device).index_add_(
            0, flat, torch.ones_like(q[0]).flatten()
        )
        total = torch.zeros(len(q), size, dtype=p.dtype, device=p.device).index_add(1, flat, q.flatten(1))
        mean = (total / count.clamp(min=1))[:, flat].view_as(q)
        mixed = torch.where(ids > 0, (1 - self._weight) * q + self._weight * mean, q)
        return mixed.clamp(min=_TINY).log().movedim(1, self._axis + 1)
