"""Which cases the page shows, and their pictures: the worst first, then a few median and best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seguro.core.errors import DataError
from seguro.core.types import Case, Classes, Grid, Manifest, ScoreRow, Volume
from seguro.report.overlay import views
from seguro.report.page import ClassResult, Shown

Rank = Literal["worst", "median", "best"]
N_WORST, N_MEDIAN, N_BEST = 4, 2, 2


@dataclass(frozen=True)
class Readers:
    """How files are read; passed in, because this part knows nothing of file formats."""

    image: Callable[[Case, Manifest], Volume]
    """The image of a case; array (C, Z, Y, X)."""
    truth: Callable[[Case, Manifest, Grid], Volume | None]
    """The reference label of a case on its image's grid, masks combined; array (Z, Y, X) of file values."""
    label: Callable[[Path], Volume]
    """A predicted label file; array (Z, Y, X) of values as in the file."""
    scores: Callable[[Path], Sequence[ScoreRow]]
    settings: Callable[[str, str, str | None], Mapping[str, Any]]
    """The resolved fields of (method, preset, network) with nothing set by hand."""
    metrics: tuple[str, ...] = ()
    """Those that are computed when none are named."""


def case_means(rows: Sequence[ScoreRow]) -> dict[str, float | None]:
    """Return each case's mean Dice over the classes that are scored in it; None where none is."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == "dice":
            found.setdefault(row.case, []).extend([] if row.value is None else [row.value])
    return {case: sum(v) / len(v) if v else None for case, v in found.items()}


def choose(means: Mapping[str, float | None]) -> list[tuple[Rank, str]]:
    """Return the cases to show: up to 4 worst (worst first), 2 around the median, 2 best.

    None twice, ties by name.
    """
    order = sorted((c for c, m in means.items() if m is not None), key=lambda c: (means[c], c))
    worst = order[:N_WORST]
    rest = order[N_WORST:]
    best = rest[max(len(rest) - N_BEST, 0) :][::-1]
    between = rest[: max(len(rest) - N_BEST, 0)]
    middle = len(order) // 2 - N_WORST
    start = min(max(middle - N_MEDIAN // 2, 0), max(len(between) - N_MEDIAN, 0))
    median = between[start : start + N_MEDIAN]
    ranks: list[tuple[Rank, str]] = [("worst", c) for c in worst]
    ranks += [("median", c) for c in median]
    ranks += [("best", c) for c in best]
    return ranks


def show(
    rows: Sequence[ScoreRow], manifest: Manifest | None, predictions: Mapping[str, Path], readers: Readers
) -> tuple[Shown, ...]:
    """Return the chosen cases with pictures; one that cannot be read is shown with the reason in its place.

    Args:
        rows: all scores.
        manifest: names the images and reference labels; None gives cases without pictures.
        predictions: case id -> predicted label file.
        readers: how files are read.
    """
    means = case_means(rows)
    known = {c.id: c for c in manifest.cases} if manifest else {}
    out = []
    for rank, name in choose(means):
        own = [r for r in rows if r.case == name and r.metric == "dice"]
        case = known.get(name)
        site = own[0].site if len({r.site for r in rows}) > 1 else ""
        plain = Shown(
            name, rank, means[name], tuple(ClassResult(r.cls, r.value, note=r.note) for r in own), site=site
        )
        if manifest is None or case is None or manifest.classes is None:
            out.append(_without_picture(plain, "the manifest does not list this case"))
            continue
        try:
            out.append(_picture(plain, case, manifest, manifest.classes, predictions.get(name), readers))
        except DataError as error:
            out.append(_without_picture(plain, str(error)))
    return tuple(out)


def _without_picture(shown: Shown, why: str) -> Shown:
    return Shown(shown.case, shown.rank, shown.mean, shown.results, site=shown.site, missing=why)


def _picture(
    plain: Shown, case: Case, manifest: Manifest, classes: Classes, predicted: Path | None, readers: Readers
) -> Shown:
    image = readers.image(case, manifest)
    gray = image.array[0]
    truth = readers.truth(case, manifest, image.grid)
    prediction = readers.label(predicted) if predicted and predicted.exists() else None
    for what, volume in (("reference label", truth), ("prediction", prediction)):
        if volume is not None and volume.array.shape != gray.shape:
            raise DataError(f"the {what} has shape {volume.array.shape}, the image {gray.shape}")
    values = dict(zip(classes.names, classes.values, strict=True))
    spacing = image.grid.spacing
    oriented = image.source.kind == "nifti"
    pictures = views(
        gray,
        None if truth is None else truth.array,
        None if prediction is None else prediction.array,
        spacing,
        [values[name] for name in classes.foreground],
        oriented=oriented,
    )
    physical = image.grid.unit != "px"

    def ml(volume: Volume | None, cls: str) -> float | None:
        if volume is None or not physical or cls not in values:
            return None
        return float(np.isin(volume.array, values[cls]).sum() * image.grid.voxel_ml)

    results = tuple(
        ClassResult(r.cls, r.dice, ml(truth, r.cls), ml(prediction, r.cls), r.note) for r in plain.results
    )
    missing = (
        ""
        if prediction is not None
        else "There is no prediction for this case; the contours are the truth alone."
    )
    return Shown(plain.case, plain.rank, plain.mean, results, pictures, plain.site, missing, oriented)
