"""Superpixels: what methods without labels learn from, computed once per prepared case and kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from seguro.core.errors import DataError, ExtraMissing
from seguro.core.files import atomic, sha256_json
from seguro.core.types import UNKNOWN, Case, Record, ThreeF

if TYPE_CHECKING:
    from seguro.data.store import Cases

SCHEMA = 1
"""Raised when the same options give other superpixels."""
INTENSITIES = 255.0
"""Images are scaled to 0 ... 255 first, so that the smallest area alone sets the partition, as published."""
SLIC_SIGMA = 1.0
"""Smoothing before SLIC, in pixels."""
SLIC_AREA = 3.0
"""Area that SLIC aims at, in smallest areas: as large as the median one of the published superpixels."""
WORTH_PROCESSES = 64
"""Slices from which starting processes pays."""


class Superpixels(Record):
    """How superpixels are made; defaults are those of SSL-ALPNet (Ouyang et al., ECCV 2020)."""

    kind: Literal["felzenszwalb", "slic", "supervoxels"] = "felzenszwalb"
    """felzenszwalb, slic: slice by slice. supervoxels: SLIC in three dimensions, so that neighboring slices
    share ids (as for ADNet, Hansen et al. 2022, who merge by the rule of Felzenszwalb)."""
    min_size: float = Field(400.0, gt=0)
    """Smallest area of a superpixel on a slice, in `unit`; SLIC aims at three times that."""
    unit: Literal["px", "mm2", "share"] = "px"
    """Of `min_size`: pixels of the planned grid, square millimeters, or a share of the slice."""
    scale: float = Field(1.0, gt=0)
    """Of felzenszwalb: larger ones give larger superpixels."""
    sigma: float = Field(1.0, ge=0)
    """Of felzenszwalb: Gaussian smoothing before, in pixels."""
    compactness: float = Field(0.1, gt=0)
    """Of slic and supervoxels: how much closeness counts beside intensity."""
    thickness: float = Field(4.0, ge=1)
    """Of supervoxels: slices that one is aimed to span."""
    foreground: float = Field(10 / 255, ge=0, lt=1)
    """The body is what is brighter than this share of the volume's range (ADNet's rule, without units)."""
    contiguous: bool = False
    """Whether every piece (8-connected) that the body mask has cut off is a superpixel of its own; of
    supervoxels, whose ids slices share, the largest piece of each slice stays. Published: all share an id."""

    @property
    def name(self) -> str:
        """Name of the files of these options, between the case and the ending."""
        said = self.model_dump()
        if not self.contiguous:  # files from before there was this option keep their name
            del said["contiguous"]
        return f"superpixels-{sha256_json({**said, 'schema': SCHEMA})[:16]}"


@dataclass(frozen=True)
class Regions:
    """Superpixels of one case."""

    map: NDArray[np.int32]
    """(Z, Y, X), 0 where there is none; memory-mapped."""
    ids: NDArray[np.int32]
    """(n, 2) of (slice, id), sorted: every id that really exists on that slice."""

    @cached_property
    def shared(self) -> NDArray[np.int32]:
        """The rows of `ids` whose id the next slice shows too; of supervoxels, elsewhere a coincidence."""
        known = {tuple(row) for row in self.ids.tolist()}
        kept = [(z, i) for z, i in self.ids.tolist() if (z + 1, i) in known]
        return np.array(kept, np.int32).reshape(-1, 2)


def read_regions(stem: Path, how: Superpixels) -> Regions:
    """Return the superpixels kept for the stored case `stem`.

    Raises:
        DataError: they were never computed here.
    """
    files = _files(stem, how)
    if not all(f.exists() for f in files):
        raise DataError(f"{files[0]}: no superpixels of these options; training computes them first")
    found = np.load(files[0], mmap_mode="r", allow_pickle=False)
    return Regions(found, np.load(files[1], allow_pickle=False))


def compute(
    cases: Cases,
    how: Superpixels,
    *,
    axis: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute the superpixels of every case that has none yet and write them into the store.

    Args:
        cases: prepared ones; their labels are not opened.
        how: options.
        axis: canonical axis that slices are cut along.
        jobs: processes.
        progress: called with (done, total).

    Raises:
        ExtraMissing: scikit-image is not installed.
    """
    import joblib

    stems = [cases.folder / c.hash for c in cases.facts]
    left = [i for i, s in enumerate(stems) if not all(f.exists() for f in _files(s, how))]
    if left:
        _skimage()
    n_slices = sum(cases.facts[i].shape[axis] for i in left)
    jobs = jobs if n_slices >= WORTH_PROCESSES else 1
    todo = (joblib.delayed(_compute_case)(cases.folder, cases.facts[i], how, axis) for i in left)
    for done, _ in enumerate(joblib.Parallel(n_jobs=jobs, return_as="generator")(todo), start=1):
        if progress:
            progress(len(stems) - len(left) + done, len(stems))


def _compute_case(folder: Path, case: Case, how: Superpixels, axis: int) -> None:
    from seguro.data.store import open_case

    stored = open_case(folder, case, UNKNOWN, hide_label=True)
    found = superpixels(stored.patch((slice(None),) * 3), how, spacing=stored.grid.spacing, axis=axis)
    for path, array in zip(_files(folder / case.hash, how), (found, existing(found, axis)), strict=True):
        with atomic(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)


def _files(stem: Path, how: Superpixels) -> tuple[Path, Path]:
    return stem.with_suffix(f".{how.name}.npy"), stem.with_suffix(f".{how.name}.ids.npy")


def superpixels(
    image: NDArray[np.float32], how: Superpixels, *, spacing: ThreeF = (1.0, 1.0, 1.0), axis: int = 0
) -> NDArray[np.int32]:
    """Return the superpixels of an image (C, Z, Y, X), (Z, Y, X) int32: 0 outside the body, else ids from 1.

    Of 2-D kinds ids begin anew on each slice along `axis`; none is missing. Every superpixel has on each
    slice at least the smallest area, also after the body mask has cut it; what is smaller belongs to none.
    Where that mask has cut it into pieces, these share its id unless `how.contiguous`.

    Args:
        image: on the planned grid, any intensities.
        how: options.
        spacing: (z, y, x) in mm.
        axis: canonical axis that slices are cut along.

    Raises:
        ExtraMissing: scikit-image is not installed.
    """
    slices = np.moveaxis(_scaled(image), axis + 1, 0)  # (n, C, A, B)
    sides = [s for a, s in enumerate(spacing) if a != axis]
    smallest = least_area(how, slices.shape[2:], sides)
    body = np.stack([body_mask(s.mean(0), INTENSITIES * how.foreground) for s in slices])
    if how.kind == "supervoxels":
        found = _supervoxels(slices, body, how, smallest)
    else:
        cut = _felzenszwalb if how.kind == "felzenszwalb" else _slic
        parts = (
            cut(s, b, how, smallest) if b.any() else np.zeros(b.shape, int)
            for s, b in zip(slices, body, strict=True)
        )
        found = np.stack([_renumbered(p, b, how, smallest) for p, b in zip(parts, body, strict=True)])
    return np.ascontiguousarray(np.moveaxis(found, 0, axis)).astype(np.int32)


def existing(found: NDArray[np.int32], axis: int = 0) -> NDArray[np.int32]:
    """Return (n, 2) rows (slice along `axis`, id) of every superpixel of a map (Z, Y, X), sorted."""
    slices = np.moveaxis(found, axis, 0)
    rows = [(z, i) for z, s in enumerate(slices) for i in np.unique(s) if i]
    return np.array(rows, np.int32).reshape(-1, 2)


def least_area(how: Superpixels, shape: Sequence[int], sides: Sequence[float]) -> int:
    """Return the smallest area in pixels of a slice of `shape` with pixels of `sides` (mm); at least 1."""
    unit = {"px": 1.0, "mm2": 1.0 / float(np.prod(sides)), "share": float(np.prod(shape))}[how.unit]
    return max(round(how.min_size * unit), 1)


def body_mask(image: NDArray[np.float32], level: float) -> NDArray[np.bool_]:
    """Return the largest connected part of a slice (A, B) above `level`, holes filled; empty if none is."""
    parts, n = ndimage.label(image > level)
    if n == 0:
        return np.zeros(image.shape, bool)
    sizes = np.bincount(parts.ravel())[1:]
    return np.asarray(ndimage.binary_fill_holes(parts == 1 + int(sizes.argmax())), bool)


def _scaled(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image with each channel's range over the volume mapped to 0 ... INTENSITIES."""
    low = image.min(axis=(1, 2, 3), keepdims=True)
    high = image.max(axis=(1, 2, 3), keepdims=True)
    return np.asarray((image - low) * (INTENSITIES / np.maximum(high - low, 1e-12)), np.float32)


def _renumbered(
    parts: NDArray[Any], body: NDArray[np.bool_], how: Superpixels, smallest: int
) -> NDArray[np.int32]:
    """Return ids 1, 2, ... of those `parts` that keep the smallest area inside the body; 0 elsewhere."""
    inside = np.where(body, parts - parts.min() + 1, 0)  # an id 0 of the cut would be lost in the background
    if how.contiguous:
        inside = pieces(inside)
    sizes = np.bincount(inside.ravel())
    kept = sizes >= smallest
    kept[0] = False
    return np.asarray(np.where(kept, np.cumsum(kept), 0)[inside], np.int32)


def pieces(parts: NDArray[Any]) -> NDArray[Any]:
    """Return a map (A, B) with an id for every 8-connected piece of an id of `parts`; 0 stays.

    Raises:
        ExtraMissing: scikit-image is not installed.
    """
    _skimage()
    from skimage import measure

    label: Any = measure.label  # untyped
    found: NDArray[Any] = label(parts, background=0, connectivity=2)
    return found


def largest_pieces(parts: NDArray[Any]) -> NDArray[Any]:
    """Return `parts` (A, B) with nothing but the largest 8-connected piece of each id."""
    found = pieces(parts)
    sizes = np.bincount(found.ravel())
    owner = np.zeros(len(sizes), parts.dtype)
    owner[found] = parts
    best = {int(owner[i]): int(i) for i in np.argsort(sizes, kind="stable")}  # the last of an id: its largest
    return np.where(np.isin(found, list(best.values())), parts, 0)


def _felzenszwalb(
    image: NDArray[np.float32], body: NDArray[np.bool_], how: Superpixels, smallest: int
) -> NDArray[Any]:
    cut: NDArray[Any] = _skimage().felzenszwalb(
        np.moveaxis(image, 0, -1), scale=how.scale, sigma=how.sigma, min_size=smallest, channel_axis=-1
    )
    return cut


def _slic(
    image: NDArray[np.float32], body: NDArray[np.bool_], how: Superpixels, smallest: int
) -> NDArray[Any]:
    cut: NDArray[Any] = _skimage().slic(
        np.moveaxis(image, 0, -1) / INTENSITIES,
        n_segments=max(int(body.sum() / (SLIC_AREA * smallest)), 1),
        compactness=how.compactness,
        sigma=SLIC_SIGMA,
        mask=body,
        channel_axis=-1,
    )
    return cut


def _supervoxels(
    slices: NDArray[np.float32], body: NDArray[np.bool_], how: Superpixels, smallest: int
) -> NDArray[np.int32]:
    """Return supervoxels (n, A, B) of slices (n, C, A, B); a slice shows those large enough on it."""
    if not body.any():
        return np.zeros(body.shape, np.int32)
    thick = min(how.thickness, len(slices))
    side = np.sqrt(SLIC_AREA * smallest)
    parts = _skimage().slic(
        np.moveaxis(slices, 1, -1) / INTENSITIES,
        n_segments=max(int(body.sum() / (thick * side**2)), 1),
        compactness=how.compactness,
        sigma=(0.0, SLIC_SIGMA, SLIC_SIGMA),
        spacing=(side / thick, 1.0, 1.0),
        mask=body,
        channel_axis=-1,
    )
    for part in parts:
        if how.contiguous:
            part[...] = largest_pieces(part)
        sizes = np.bincount(part.ravel())
        part[(sizes < smallest)[part]] = 0
    table = np.zeros(int(parts.max()) + 1, np.int32)
    there = np.unique(parts[parts > 0])
    table[there] = np.arange(1, len(there) + 1)
    return np.asarray(table[parts], np.int32)


def _skimage() -> Any:
    try:
        from skimage import segmentation
    except ImportError as error:
        raise ExtraMissing("scikit-image", "fewshot", "superpixels") from error
    return segmentation
