"""Losses of an episode: the query segmented by the support, and the support by that guess (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.networks.prototype import Pooling, prototypes, scores


@dataclass(frozen=True)
class Objective:
    """Segmentation and alignment loss, each a mean over episodes."""

    pooling: Pooling
    background_weight: float = 0.05
    """Of background pixels in the segmentation loss; the superpixel's weigh 1."""
    align: float = 1.0
    """Weight of the alignment loss, whose pixels all weigh the same; 0 leaves it out."""

    def __call__(
        self, support: Tensor, support_mask: Tensor, query: Tensor, query_mask: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            support: (B, D, h, w) features.
            support_mask: (B, H, W) 0 or 1.
            query: (B, D, h, w) features.
            query_mask: (B, H, W) 0 or 1.
        """
        hot = torch.stack([support_mask == 0, support_mask == 1], dim=1).float()
        masks = F.interpolate(hot, support.shape[2:], mode="bilinear", align_corners=False)
        found = self._segment(support, masks, query)
        weights = torch.tensor([self.background_weight, 1.0], device=query.device)
        losses = {"segmentation": _cross_entropy(found, query_mask, weights)}
        if self.align:
            # an empty guess is not skipped: its zero prototype costs something, "to avoid laziness"
            guess = F.one_hot(found.argmax(1), 2).movedim(-1, 1).float()
            back = self._segment(query, guess, support)
            losses["alignment"] = self.align * _cross_entropy(back, support_mask, torch.ones_like(weights))
        return losses

    def _segment(self, shown: Tensor, masks: Tensor, features: Tensor) -> Tensor:
        """Return scores (B, 2, h, w) of features, each episode by its own support."""
        bank = prototypes(shown, masks, self.pooling, keep_empty=True)
        own = torch.arange(len(features), device=features.device)[:, None]
        return scores(features, bank, [own, own])


def _cross_entropy(found: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over episodes of the weighted mean over pixels, at the mask's own size."""
    logits = F.interpolate(found, mask.shape[1:], mode="bilinear", align_corners=False)
    target = mask.long()
    each = F.cross_entropy(logits, target, weights, reduction="none").sum((1, 2))
    return (each / weights[target].sum((1, 2))).mean()
