"""Preprocessed cases on disk, memory-mapped: what training reads.

Per case three uncompressed arrays and a JSON file that is written last and marks the case as complete. Names
are content hashes, so runs share them; two processes that prepare the same case write the same bytes
atomically.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError, SeguroError
from seguro.core.files import atomic, read_json, write_json
from seguro.core.seeds import generator
from seguro.core.stage import Stage
from seguro.core.types import IGNORE, Case, Classes, Grid, Manifest
from seguro.data.manifest import read_case, read_case_label
from seguro.data.plan import Plan
from seguro.data.preprocess import label_to_planned, to_planned
from seguro.data.superpixels import Regions, Superpixels, read_regions

MAX_LOCATIONS = 2000
"""Foreground voxels remembered per class and case, for class-balanced crops."""
CT_STEP = 1 / 4096
"""Resolution at which scaled CT is kept as int16, in standard deviations."""


@dataclass(frozen=True)
class Stored:
    """One prepared case, memory-mapped; indexing `image` reads only what is asked for."""

    id: str
    image: NDArray[Any]
    """(C, Z, Y, X) float32, or int16 in steps of `step`."""
    step: float | None
    label: NDArray[np.uint8] | None
    """(Z, Y, X) stored labels, None when unlabelled or not to be seen."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for; zeros when unlabelled."""
    locations: NDArray[np.int32]
    """(n, 4) of (foreground class, z, y, x)."""
    grid: Grid
    regions: Regions | None = None
    """Superpixels, where the method asked for some."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planned (Z, Y, X)."""
        return self.grid.shape

    def patch(self, where: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """Return image[:, where] as float32."""
        part = np.array(self.image[(slice(None), *where)], dtype=np.float32)  # a copy: the map is read-only
        return part if self.step is None else part * np.float32(self.step)


class Cases(Sequence[Stored]):
    """Prepared cases in a fixed order; `touched` lists the ids read since it was last cleared.

    Args:
        folder: the store.
        cases: which ones, in this order.
        classes: the task.
        hide_labels: whether labels are kept from the method (`needs.labels == "none"`).
        hidden: ids of cases whose labels are kept from the method: unlabelled for it, their files not opened.
        regions: superpixels that were computed and are read along.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[Case],
        classes: Classes,
        *,
        hide_labels: bool = False,
        hidden: Collection[str] = (),
        regions: Superpixels | None = None,
    ) -> None:
        self.folder = folder
        self.regions = regions
        self.classes = classes
        self.touched: list[str] = []
        self._cases = tuple(cases)
        self._hidden = frozenset(c.id for c in self._cases if hide_labels or c.id in hidden)
        self._open: dict[int, Stored] = {}
        self.labelled = tuple(
            i for i, c in enumerate(self._cases) if c.label is not None and c.id not in self._hidden
        )
        known = set(self.labelled)
        self.unlabelled = tuple(i for i in range(len(self._cases)) if i not in known)

    @property
    def facts(self) -> tuple[Case, ...]:
        """What the manifest says of each case."""
        return self._cases

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("cases are read one at a time")
        index = int(index)
        self.touched.append(self._cases[index].id)
        if index not in self._open:
            case = self._cases[index]
            hide = case.id in self._hidden
            self._open[index] = open_case(
                self.folder, case, self.classes, hide_label=hide, regions=self.regions
            )
        return self._open[index]

    def __iter__(self) -> Iterator[Stored]:
        for i in range(len(self)):
            yield self[i]

    def view(self) -> Cases:
        """Return a copy that shares the open files and has its own `touched`."""
        other = copy.copy(self)
        other.touched = []
        return other


def open_case(
    folder: Path,
    case: Case,
    classes: Classes,
    *,
    hide_label: bool = False,
    regions: Superpixels | None = None,
) -> Stored:
    """Return the stored case, its arrays memory-mapped.

    Raises:
        DataError: the case was never prepared here, or not with these superpixels.
    """
    stem = folder / case.hash
    if not stem.with_suffix(".json").exists():
        raise DataError(f"{case.id}: not in the store {folder}; run `seguro prepare`")
    facts = read_json(stem.with_suffix(".json"))
    labelled = facts["labelled"] and not hide_label
    grid = Grid(tuple(facts["shape"]), np.array(facts["affine"]), facts["unit"])
    return Stored(
        id=case.id,
        image=np.load(stem.with_suffix(".image.npy"), mmap_mode="r", allow_pickle=False),
        step=facts["step"],
        label=np.load(stem.with_suffix(".label.npy"), mmap_mode="r", allow_pickle=False)
        if labelled
        else None,
        annotated=np.array([labelled and n in case.annotated for n in classes.foreground], dtype=np.float32),
        locations=_locations_file(stem) if labelled else np.zeros((0, 4), np.int32),
        grid=grid,
        regions=None if regions is None else read_regions(stem, regions),
    )


def _locations_file(stem: Path) -> NDArray[np.int32]:
    return np.asarray(np.load(stem.with_suffix(".locations.npy"), allow_pickle=False))


def prepare_case(folder: Path, case: Case, manifest: Manifest, plan: Plan) -> list[Path]:
    """Write one case into the store and return its files; does nothing when it is already there.

    Raises:
        DataError: a file that cannot be used; the message names the case.
    """
    stem = folder / case.hash
    facts = stem.with_suffix(".json")
    files = [stem.with_suffix(".image.npy"), facts]
    if case.label is not None:
        files += [stem.with_suffix(".label.npy"), stem.with_suffix(".locations.npy")]
    if all(f.exists() for f in files):
        return files
    try:
        volume = read_case(case, manifest)
        image, grid = to_planned(volume, plan)
        native = read_case_label(case, manifest, like=volume.grid)
        label = None if native is None else label_to_planned(native.array, grid, plan)
    except SeguroError as error:
        raise type(error)(f"{case.id}: {error}") from error
    step = CT_STEP if all(c.scheme == "ct" for c in plan.channels) else None
    if step is not None:
        if np.abs(image).max() > 32767 * step:
            raise DataError(
                f"{case.id}: scaled intensities reach {np.abs(image).max():.1f} standard deviations, at most "
                f"{32767 * step:.1f} can be stored; widen low and high of the channels in plan.json"
            )
        image = np.rint(image / step).astype(np.int16)  # type: ignore[assignment]
    _save(stem.with_suffix(".image.npy"), image)
    if label is not None:
        _save(stem.with_suffix(".label.npy"), label)
        _save(stem.with_suffix(".locations.npy"), locations(label, plan.classes, seed=0))
    write_json(
        facts,
        {
            "shape": grid.shape,
            "affine": grid.affine.tolist(),
            "unit": grid.unit,
            "step": step,
            "labelled": label is not None,
        },
    )
    return files


def locations(label: NDArray[np.uint8], classes: Classes, *, seed: int) -> NDArray[np.int32]:
    """Return up to MAX_LOCATIONS voxels of each foreground class, (n, 4) of (class, z, y, x)."""
    rows = []
    for index, name in enumerate(classes.foreground):
        values = classes.values[index] if classes.regions else (index + 1,)
        found = np.argwhere(np.isin(label, values) & (label != IGNORE))
        if len(found) > MAX_LOCATIONS:
            found = found[np.sort(generator(seed, name).choice(len(found), MAX_LOCATIONS, replace=False))]
        rows.append(np.column_stack([np.full(len(found), index), found]))
    return np.concatenate(rows).astype(np.int32)


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def predicted_bytes(cases: Sequence[Case], plan: Plan) -> int:
    """Return the size that the store of `cases` will have."""
    total = 0
    for case in cases:
        voxels = 1.0
        for axis in range(3):
            keep = plan.dims == 2 and axis == plan.slice_axis
            factor = 1.0 if keep else case.spacing[axis] / plan.spacing[axis]
            voxels *= max(1, round(case.shape[axis] * factor))
        per_voxel = 2 if all(c.scheme == "ct" for c in plan.channels) else 4
        total += int(voxels * (len(plan.channels) * per_voxel + (case.label is not None)))
    return total


def prepare(
    workspace: Path,
    manifest: Manifest,
    plan: Plan,
    *,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Prepare every training and unlabelled case and return the store's folder.

    A case that cannot be read does not stop the others; all failures are reported together at the end.

    Raises:
        DataError: at least one case failed; nothing of it is in the store.
    """
    import joblib

    folder = workspace / "store" / plan.preprocessing_hash
    folder.mkdir(parents=True, exist_ok=True)
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    stage = Stage(
        folder,
        "prepare",
        reads={f"case/{c.id}": c.hash for c in cases},
        config=plan.preprocessing(),
    )
    if stage.done():
        return folder
    results = joblib.Parallel(n_jobs=jobs, return_as="generator", prefer="threads")(
        joblib.delayed(_attempt)(folder, case, manifest, plan) for case in cases
    )
    files: list[Path] = []
    failed: list[str] = []
    for done, (written, problem) in enumerate(results, start=1):
        files += written
        if problem:
            failed.append(problem)
        if progress:
            progress(done, len(cases))
    if failed:
        raise DataError("cases could not be prepared:\n  " + "\n  ".join(failed))
    before = stage.previous()
    stage.finish(set(files), known=before["outputs"] if before else None)  # names are content hashes
    return folder


def _attempt(folder: Path, case: Case, manifest: Manifest, plan: Plan) -> tuple[list[Path], str]:
    try:
        return prepare_case(folder, case, manifest, plan), ""
    except SeguroError as error:
        return [], str(error)
