"""Pictures of predictions: PNG files beside the labels, `pictures/<case>/<slice>.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seguro.core.errors import DataError
from seguro.core.files import write_bytes
from seguro.core.types import Grid, Manifest, Volume, Warnings

if TYPE_CHECKING:
    from seguro.inference.predict import PredictionReport

FOLDER = "pictures"


def write_pictures(
    report: PredictionReport, manifest: Manifest | None, *, every: int | None, warnings: Warnings
) -> list[Path]:
    """Draw every predicted case of a report, with the truth where the data set has it; returns the files.

    Args:
        report: of `predict`; its items are read again.
        manifest: of the data set whose cases these are, None for files.
        every: every n-th slice; None for the middle ones.
        warnings: told of a truth that cannot be drawn.
    """
    from seguro.data.formats import read_label
    from seguro.report.browse import sheets

    names = [n for n in report.classes.names if n in report.classes.foreground]
    values = dict(zip(report.classes.names, report.classes.values, strict=True))
    items = {item.id: item for item in report.items}
    out = []
    for case in report.cases:
        image = items[case.id].read()
        label = read_label(report.out / next(iter(case.files)), spacing=_spacing(image))
        truth = _truth(case.id, manifest, image.grid, [values[n] for n in names], names, warnings)
        folder = report.out / FOLDER / case.id
        drawn = sheets(
            image.array[0],
            label.array,
            None if truth is None else truth.array,
            image.grid.spacing,
            [values[name] for name in names],
            every=every,
            oriented=image.source.kind == "nifti",
        )
        new = {sheet.name: sheet.data for sheet in drawn}
        for old in folder.glob("*.png"):
            if old.name not in new:
                old.unlink()  # of an earlier call that drew other slices
        for name, data in new.items():
            write_bytes(folder / name, data)
            out.append(folder / name)
    return out


def write_made(folder: Path, prefix: str, *, most: int) -> list[Path]:
    """Draw the first volumes of a folder that `seguro generate` wrote, with their labels; returns the files.

    Args:
        folder: an MSD folder.
        prefix: of the made cases.
        most: volumes.
    """
    from seguro.core.files import read_object
    from seguro.data.formats import read_image, read_label
    from seguro.report.browse import sheets

    told = read_object(folder / "dataset.json")
    values = [[int(v)] for v in told["labels"] if int(v)]
    out = []
    for path in sorted((folder / "imagesTr").glob(f"{prefix}*"))[:most]:
        image = read_image([path], channels=len(told["modality"]))
        label = read_label(folder / "labelsTr" / path.name)
        drawn = sheets(
            image.array[0], label.array, None, image.grid.spacing, values, every=None, oriented=True
        )
        for sheet in drawn:
            out.append(folder / FOLDER / path.name.split(".")[0] / sheet.name)
            write_bytes(out[-1], sheet.data)
    return out


def _spacing(image: Volume) -> tuple[float, float, float] | None:
    return None if image.grid.unit == "px" else image.grid.spacing


def _truth(
    case: str,
    manifest: Manifest | None,
    grid: Grid,
    values: Sequence[Sequence[int]],
    names: Sequence[str],
    warnings: Warnings,
) -> Volume | None:
    """Return the reference label, None where there is none or it speaks of other classes."""
    from seguro.data.manifest import read_case_label

    known = next((c for c in manifest.cases if c.id == case), None) if manifest else None
    if manifest is None or manifest.classes is None or known is None or known.label is None:
        return None
    theirs = dict(zip(manifest.classes.names, manifest.classes.values, strict=True))
    if [theirs.get(n) for n in names] != [tuple(v) for v in values]:
        warnings.add(f"pictures without truth: {manifest.name} has other classes than the model")
        return None
    try:
        return read_case_label(known, manifest, like=grid)
    except DataError as error:
        warnings.add(f"pictures without truth: {case}: {error}")
        return None
