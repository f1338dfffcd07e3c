"""Episodes without labels: two views of one superpixel, one as support and one as query (section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.data.store import Cases, Stored
from seguro.data.superpixels import Regions
from seguro.methods.alpnet.config import Transforms
from seguro.methods.alpnet.raster import Raster
from seguro.methods.alpnet.transforms import apply, draw_transform

DRAWS = 20
"""A transform that moves the superpixel out of view is drawn again so often, then left out."""


@dataclass(frozen=True)
class Episode:
    """Two views with the mask of one superpixel; stacked along a first axis they are the batch."""

    support: NDArray[np.float32]
    """(C, H, W)."""
    support_mask: NDArray[np.uint8]
    """(H, W) 0 or 1, never empty."""
    query: NDArray[np.float32]
    """(C, H, W)."""
    query_mask: NDArray[np.uint8]
    """(H, W) 0 or 1, never empty."""


def draw(
    cases: Cases,
    rng: np.random.Generator,
    *,
    raster: Raster,
    size: tuple[int, int],
    transforms: Transforms,
    adjacent: bool = False,
    excluded: Mapping[str, Sequence[int]] | None = None,
) -> Episode:
    """Return one episode: a slice, uniform over all that have superpixels, and one of these.

    Args:
        cases: with `regions`; no label is read.
        rng: the only source of randomness.
        raster: of the network.
        size: (H, W) of the views.
        transforms: of the views, drawn for each by itself.
        adjacent: whether support and query are neighboring slices instead of the same.
        excluded: case id -> slices that are not shown.

    Raises:
        DataError: no case has a superpixel (or none that neighboring slices share).
    """
    found = _chosen(cases, rng, adjacent=adjacent, excluded=excluded or {})
    z = found.z
    pair = [z, z + 1] if adjacent else [z, z]
    if rng.random() < 0.5:
        pair.reverse()
    changed = transforms if transforms.views == "both" else None
    support, support_mask = _view(found, pair[0], rng, raster, size, changed)
    query, query_mask = _view(found, pair[1], rng, raster, size, transforms)
    return Episode(support, support_mask, query, query_mask)


@dataclass(frozen=True)
class _Found:
    case: Stored
    regions: Regions
    z: int
    region: int


def _chosen(
    cases: Cases, rng: np.random.Generator, *, adjacent: bool, excluded: Mapping[str, Sequence[int]]
) -> _Found:
    """Return a case, a slice and an id that exists there."""
    every = [_regions(case) for case in cases.view()]  # so that only the chosen case counts as read
    rows = [r.shared if adjacent else r.ids for r in every]
    for i, case in enumerate(cases.facts if excluded else ()):
        hidden = np.isin(rows[i][:, 0], excluded.get(case.id, ()))
        if adjacent:
            hidden |= np.isin(rows[i][:, 0] + 1, excluded.get(case.id, ()))
        rows[i] = rows[i][~hidden]
    slices = [np.unique(r[:, 0]) for r in rows]
    ends = np.cumsum([len(s) for s in slices])
    if not len(ends) or not ends[-1]:
        raise DataError(
            f"none of the {len(cases)} training cases has a superpixel"
            f"{' that neighboring slices share' if adjacent else ''}: "
            "lower superpixels.min_size or superpixels.foreground"
        )
    at = int(rng.integers(ends[-1]))
    index = int(np.searchsorted(ends, at, side="right"))
    z = int(slices[index][at - (ends[index - 1] if index else 0)])
    ids = rows[index][rows[index][:, 0] == z, 1]
    return _Found(cases[index], every[index], z, int(rng.choice(ids)))


def _regions(case: Stored) -> Regions:
    if case.regions is None:
        raise DataError(f"{case.id}: no superpixels; compute them before training")
    return case.regions


def _view(
    found: _Found,
    z: int,
    rng: np.random.Generator,
    raster: Raster,
    size: tuple[int, int],
    transforms: Transforms | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return one view (C, H, W) with its mask (H, W), which holds at least one pixel."""
    image, mask = _slice(found, z, raster)
    low = float(image.min())
    image, mask = _fitted(image, mask, size, low)
    if transforms is not None:
        for _ in range(DRAWS):
            drawn = draw_transform(rng, transforms, size)
            seen, moved = apply(image, mask, drawn, outside=low if transforms.outside == "minimum" else 0.0)
            if (moved > 0.5).any():
                return seen, (moved > 0.5).astype(np.uint8)
    return image, (mask >= min(0.5, float(mask.max()))).astype(np.uint8)


def _slice(found: _Found, z: int, raster: Raster) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return slice z (C, a, b) and how much of a pixel the region covers (a, b), as the network sees it."""
    box = [slice(None)] * 3
    box[raster.axis] = slice(z, z + 1)
    where = (box[0], box[1], box[2])
    image = torch.from_numpy(found.case.patch(where)).squeeze(raster.axis + 1)
    mask = torch.from_numpy(np.asarray(found.regions.map[where] == found.region)).squeeze(raster.axis)
    return raster.seen(image[None])[0].numpy(), raster.seen(mask[None, None].float())[0, 0].numpy()


def _fitted(
    image: NDArray[np.float32], mask: NDArray[np.float32], size: tuple[int, int], low: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both at (H, W): larger slices are cut around the region, smaller ones padded with `low`."""
    for axis, n in enumerate(size):
        have = mask.shape[axis]
        if have > n:
            weight = mask.sum(1 - axis)
            middle = float((weight * np.arange(have)).sum() / weight.sum())
            start = int(np.clip(round(middle - n / 2), 0, have - n))
            index = np.arange(start, start + n)
            image, mask = image.take(index, axis + 1), mask.take(index, axis)
        elif have < n:
            pad = [(0, 0)] * 2
            pad[axis] = ((n - have) // 2, n - have - (n - have) // 2)
            image, mask = np.pad(image, [(0, 0), *pad], constant_values=low), np.pad(mask, pad)
    return image, mask
