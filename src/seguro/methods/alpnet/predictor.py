"""What is deployed: an encoder that segments whatever a support shows, a whole volume in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE
from seguro.data.plan import Plan
from seguro.methods.alpnet.config import AlpnetConfig
from seguro.methods.alpnet.height import describe, farness, heights, presence
from seguro.methods.alpnet.memory import Memory, Recent
from seguro.methods.alpnet.raster import Raster, raster
from seguro.methods.contract import Predictor, Support, Whole
from seguro.networks.encoders import Encoder
from seguro.networks.prototype import Bank, Pooling, prototypes, scores

CHUNK = 8
"""Slices per pass of the encoder and of the comparison."""
LEAST = 1e-4
"""Presence below this counts as this: about 9 off the logit."""
TIE = 1e-4
"""Heights that differ by less, in slices, are equally near."""


@dataclass(frozen=True)
class Shown:
    """What a support shows, of all its shots."""

    bank: Bank
    """Of the annotated slices, shot after shot."""
    descriptions: tuple[Tensor, ...]
    """Per shot, (Zs, F) of all its slices."""
    annotated: tuple[Tensor, ...]
    """Per shot, (Zs,) bool."""
    shows: tuple[Tensor, ...]
    """Per shot, (Zs, n) bool: which slices show which class."""


class FewShot(Predictor):
    """Segments the classes of a support by local and global prototypes (ALPNet).

    Every class is looked for at once; all share one background, what is annotated as none of them. Logits are
    20 cosines, so their softmax is the published one. Nothing is known of the query but its image.

    Args:
        encoder: of slices.
        plan: slice axis and raster.
        config: of the method.
    """

    def __init__(self, encoder: Encoder, plan: Plan, config: AlpnetConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.axis = plan.slice_axis
        self.classes = plan.classes
        self.tiling = Whole((1, 1, 1))
        self.raster = raster(plan, config.size, encoder.stride)
        self.pooling = pooling(config, self.raster, config.test_window)
        self._shown: Memory[Shown] = Memory()
        self._seen = Recent()

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, support.classes.n, Z, Y, X) of volumes (N, C, Z, Y, X) in the planned grid.

        Raises:
            ConfigError: without a support, or one of overlapping classes.
            DataError: a class of which the support shows nothing.
        """
        if support is None:
            raise ConfigError(
                "this model segments what an annotated example shows and was given none: "
                "add --support IMAGE --support-label MASK"
            )
        shown = self.show(support)
        return torch.stack([self._segment(sample, shown) for sample in x])

    def show(self, support: Support) -> Shown:
        """Return the prototypes of a support, kept while it and the weights stay; raises as `forward`."""
        of = [*support.images, *support.labels, *self._weights()]

        def constant(shown: Shown) -> bool:
            return not any(v.requires_grad for v in shown.bank.vectors)

        return self._shown.get(of, lambda: self._show(support), constant=constant)

    def _show(self, support: Support) -> Shown:
        if support.classes.regions:
            raise ConfigError(f"support with overlapping classes {support.classes.names}: give one per voxel")
        shows = [showing(label.movedim(self.axis, 0), support.classes.n) for label in support.labels]
        for c, name in enumerate(support.classes.names):
            if c and not any(bool(s[:, c].any()) for s in shows):
                raise DataError(
                    f"the support shows no voxel of {name!r}: annotate it on some slice or leave it out"
                )
        banks, descriptions, annotated = [], [], []
        for image, label in zip(support.images, support.labels, strict=True):
            planes, values = image.movedim(self.axis + 1, 0), label.movedim(self.axis, 0)
            known = (values != IGNORE).flatten(1).any(1)
            cells = self.features(planes)
            hot = torch.stack([values[known] == c for c in range(support.classes.n)], dim=1).float()
            masks = F.interpolate(hot, cells.shape[2:], mode="bilinear", align_corners=False)
            where = self._coordinates(planes, cells)
            descriptions.append(describe(cells))
            annotated.append(known)
            banks.append(
                prototypes(
                    cells[known], masks, self.pooling, coordinates=None if where is None else where[known]
                )
            )
        return Shown(joined(banks), tuple(descriptions), tuple(annotated), tuple(shows))

    def features(self, slices: Tensor) -> Tensor:
        """Return features (Z, D, h, w) of planned slices (Z, C, A, B), a few at a time.

        Those of the last scans are kept: a query is a support too when its result is checked, and the support
        a query.
        """

        def encoded() -> Tensor:
            return torch.cat([self.encoder(self.raster.seen(part)) for part in torch.split(slices, CHUNK)])

        return self._seen.get(slices, self._weights(), encoded)

    def _weights(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.encoder.buffers()]

    def presence(self, x: Tensor, support: Support) -> Tensor:
        """Return how likely each class is on each slice by its height alone, (N, n, slices) in [0, 1]."""
        shown = self.show(support)
        out = []
        for sample in x:
            described = describe(self.features(sample.movedim(self.axis + 1, 0)))
            out.append(self._presence(self._heights(described, shown), shown))
        return torch.stack(out)

    def _segment(self, image: Tensor, shown: Shown) -> Tensor:
        """Return logits (n, Z, Y, X) of one image (C, Z, Y, X)."""
        slices = image.movedim(self.axis + 1, 0)
        features = self.features(slices)
        at = self._heights(describe(features).detach(), shown)
        chosen = self._chosen(at, shown)
        where = self._coordinates(slices, features)
        parts = []
        for i in range(0, len(features), CHUNK):
            part = scores(
                features[i : i + CHUNK],
                shown.bank,
                [c[i : i + CHUNK] for c in chosen],
                coordinates=None if where is None else where[i : i + CHUNK],
                position_weight=self.config.position_weight,
            )
            parts.append(F.interpolate(part, slices.shape[2:], mode="bilinear", align_corners=False))
        logits = torch.cat(parts).movedim(0, self.axis + 1)
        if self.config.prior == "none":
            return logits
        likely = self._presence(at, shown).clamp(min=LEAST).log()  # (n, Zq)
        shape = [len(likely), 1, 1, 1]
        shape[self.axis + 1] = likely.shape[1]
        return logits + likely.reshape(shape)

    def _heights(self, described: Tensor, shown: Shown) -> list[Tensor]:
        """Return per shot where each query slice lies in it, (Zq,)."""
        return [heights(described, shot, self.config.prior) for shot in shown.descriptions]

    def _chosen(self, at: list[Tensor], shown: Shown) -> list[Tensor]:
        """Return per class which annotated slices each query slice is compared with, (Zq, k); -1 for none.

        Of each shot the nearest in height: for the background of all, for a class of those that show it. A
        shot that has none about as near as another's says nothing there: of its own scan's tissue, which is
        most alike, it would know the background alone. Where all slices are compared (nearest 0), all are.
        """
        out = []
        for c in range(shown.shows[0].shape[1]):
            parts, apart, before = [], [], 0
            for heights_of, known, shows in zip(at, shown.annotated, shown.shows, strict=True):
                z = known.nonzero().flatten()
                of = shows[z, c] if c else torch.ones_like(z, dtype=torch.bool)
                index = before + of.nonzero().flatten()
                before += len(z)
                if len(index):
                    distance = (heights_of[:, None] - z[of]).abs()
                    parts.append(nearest(distance, index, self.config.nearest))
                    apart.append(farness(heights_of, z[of], len(known)))
            far = torch.stack(apart)  # (shots, Zq)
            if self.config.nearest:
                silent = (far > far.amin(0) + self.config.reach) & (far < 1)
                parts = [p.masked_fill(s[:, None], -1) for p, s in zip(parts, silent, strict=True)]
            out.append(torch.cat(parts, dim=1))
        return out

    def _presence(self, at: list[Tensor], shown: Shown) -> Tensor:
        """Return (n, Zq) in [0, 1], 1 of the background: what the shots that show a class say.

        A shot counts the less the farther its annotated slices are, against those of the others.
        """
        rows = [torch.ones_like(at[0])]
        for c in range(1, shown.shows[0].shape[1]):
            votes, far = [], []
            for shows, known, where in zip(shown.shows, shown.annotated, at, strict=True):
                if bool(shows[:, c].any()):
                    margin = round(self.config.margin * len(known))
                    votes.append(presence(shows[:, c], known, where, margin))
                    far.append(farness(where, known.nonzero().flatten(), len(known)))
            weights = (-0.5 * (torch.stack(far) / self.config.reach).square()).softmax(0)
            rows.append((weights * torch.stack(votes)).sum(0))
        return torch.stack(rows)

    def _coordinates(self, slices: Tensor, cells: Tensor) -> Tensor | None:
        """Return (Z, 2, h, w): places of the cells in radii from the middle of each slice's body."""
        if not self.config.position_weight:
            return None
        level = slices.min() + self.config.superpixels.foreground * (slices.max() - slices.min())
        body = (slices.detach().mean(1, keepdim=True) > level).float()
        body = F.interpolate(body, cells.shape[2:], mode="bilinear", align_corners=False) + LEAST
        axes = [torch.linspace(-1, 1, n, device=slices.device) for n in cells.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, h, w)
        area = body.sum((2, 3), keepdim=True)
        away = grid - (body * grid).sum((2, 3), keepdim=True) / area
        radius = ((body * away.square().sum(1, keepdim=True)).sum((2, 3), keepdim=True) / area).sqrt()
        return away / radius.clamp(min=LEAST)


def showing(label: Tensor, n: int) -> Tensor:
    """Return (slices, n) bool: which slices of a label (slices, A, B) show which of n classes."""
    return torch.stack([(label == c).flatten(1).any(1) for c in range(n)], dim=1)


def pooling(config: AlpnetConfig, seen: Raster, window: float) -> Pooling:
    """Return windows and modes in feature cells, of `window` and the config's gate."""
    cell = 1.0 if config.window_unit == "cells" else seen.cell
    sides = [max(round(w / cell), 1) for w in (window, config.gate)]
    return Pooling(sides[0], sides[1], config.foreground, config.background)


def joined(banks: list[Bank]) -> Bank:
    """Return the slices of several banks of the same classes as one."""

    def rows(parts: list[Tensor]) -> Tensor:
        most = max(p.shape[1] for p in parts)
        behind = [[0, 0] * (p.ndim - 2) + [0, most - p.shape[1]] for p in parts]
        return torch.cat([F.pad(p, pad) for p, pad in zip(parts, behind, strict=True)])

    fields = [zip(*(getattr(b, f) for b in banks), strict=True) for f in ("vectors", "valid", "places")]
    vectors, valid, places = (tuple(rows(list(parts)) for parts in field) for field in fields)
    return Bank(vectors, valid, places)


def nearest(distance: Tensor, index: Tensor, n: int) -> Tensor:
    """Return the `n` entries of `index` (m,) with the smallest distance (Q, m), and what is as near.

    (Q, k), -1 where a row has fewer than k. `n` 0, or not below m: all.
    """
    if n == 0 or n >= len(index):
        return index.expand(len(distance), -1)
    last = distance.kthvalue(n, dim=1, keepdim=True).values
    keep = distance <= last + TIE
    order = distance.topk(int(keep.sum(1).max()), dim=1, largest=False).indices
    return torch.where(keep.gather(1, order), index[order], -1)
