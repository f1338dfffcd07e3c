"""Correct and refine: a corrected slice of a query joins the support, and the query is predicted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seguro.api.support import support_root
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, write_json
from seguro.core.types import ThreeF, Warnings
from seguro.data import support
from seguro.data.formats import read_label
from seguro.data.geometry import file_index
from seguro.data.support import Bank

if TYPE_CHECKING:
    from seguro.core.types import Volume
    from seguro.inference.inputs import Item
    from seguro.inference.predict import PredictionReport

FOLDER = "refined"
"""Folder of the refined queries, below the predictions; those themselves stay as they were."""
HISTORY = "history.json"
CARRIED = ("flips", "overlap", "batch", "precision", "snap", "largest")
"""Options of the first prediction that a refined one is made with too."""


@dataclass(frozen=True)
class Refined:
    """What `refine` did."""

    report: PredictionReport
    support: str
    """Hash of the support that the query is now predicted with."""
    corrected: tuple[int, ...]
    """Slices that were taken over, as the file counts them; none after undo."""
    following: tuple[tuple[int, float], ...]
    """(slice as the file counts it, voxels expected to be wrong), most first: what to correct next."""
    steps: int
    """Corrections that are in force."""


def refine(
    models: Sequence[Path],
    query: Path | Sequence[Path],
    corrected: Path | None = None,
    *,
    predictions: Path | None = None,
    slices: Sequence[int] | None = None,
    undo: bool = False,
    device: str = "cpu",
    spacing: ThreeF | None = None,
    warnings: Warnings | None = None,
) -> Refined:
    """Add corrected slices of a predicted query to its support and predict it again, or take the last back.

    Nothing is trained. The refined prediction lies in `PREDICTIONS/refined/<id>/`, with `doubt.csv`;
    corrected slices are in it as they were corrected.

    Args:
        models: the run, or runs, that predicted the query.
        query: its image file, or one per channel.
        corrected: a label on the query's grid, or of one of its slices alone.
        predictions: folder of the first prediction; found below the first run when not given.
        slices: which slices of `corrected` were corrected, as the file counts them; those that differ from
            the prediction when not given.
        undo: take the last correction back instead; the result is exactly the one before.
        device: auto, cpu, cuda, cuda:N.
        spacing: (z, y, x) for files that state none.
        warnings: collects notes for the end of the command.

    Raises:
        ConfigError: nothing to correct or to undo, other models, none or several predictions of the query.
        DataError: a file that cannot be used, or values that are no class of the support.
        GeometryError: a correction on another grid.
    """
    from seguro.inference.inputs import from_paths
    from seguro.inference.predict import predict

    if undo == (corrected is not None):
        raise ConfigError("refine: give either --corrected SLICE or --undo")
    plan, shas = _models(models)
    item = _one(from_paths(query if isinstance(query, Path) else list(query), channels=len(plan.channels),
                           spacing=spacing))  # fmt: skip
    first = predictions or _predictions_of(models[0], item.id)
    listing = _listing(first, item.id, shas)
    folder = first / FOLDER / item.id
    history = _history(folder, listing["options"]["support"])
    root = support_root(models[0], first)
    options = {k: v for k, v in listing["options"].items() if k in CARRIED}

    def predicted(support_hash: str, notes: Warnings | None = None) -> PredictionReport:
        bank = support.load(root, support_hash)
        made = predict(
            models, [item], folder, support=bank, doubt=True, device=device, warnings=notes, **options
        )
        if made.failed:
            raise DataError(f"{item.id}: {made.failed[item.id]}")
        return made

    taken: list[int] = []
    if undo:
        if len(history) == 1:
            raise ConfigError(f"{folder}: no correction is in force, nothing to undo")
        history = history[:-1]
    else:
        before = first / listing["cases"][item.id]["file"]
        if len(history) > 1:
            predicted(history[-1])  # there already, unless a stopped command left one of another support
            before = folder / before.name
        volume = item.read()
        label = read_label(before, like=volume.grid).array
        bank = support.load(root, history[-1])
        key, taken = _added(root, bank, volume, Path(str(corrected)), label, slices, plan.slice_axis)
        history = [*history, key]
    report = predicted(history[-1], warnings)
    write_json(folder / HISTORY, {"supports": history})
    rows = sorted((r for r in report.cases[0].slices or () if not r[3]), key=lambda r: (-r[1], r[0]))
    following = tuple((int(r[0]), float(r[1])) for r in rows)
    return Refined(report, history[-1], tuple(taken), following, len(history) - 1)


def _models(models: Sequence[Path]) -> tuple[Any, list[str]]:
    """Return the plan of the first model and the hashes of all."""
    from seguro.engine.model import load_model

    loaded = [load_model(m) for m in models]
    return loaded[0].plan, [m.sha256 for m in loaded]


def _one(items: Sequence[Item]) -> Item:
    if len(items) != 1:
        raise ConfigError(f"refine works on one image at a time, found {', '.join(i.id for i in items)}")
    return items[0]


def _predictions_of(model: Path, case: str) -> Path:
    """Return the one folder below a run that holds a prediction of `case` with a support."""
    root = support_root(model, model)
    found = []
    for path in sorted((root / "predictions").glob("*/predictions.json")):
        content = read_json(path)
        if case in content.get("cases", {}) and content.get("options", {}).get("support"):
            found.append(path.parent)
    if len(found) != 1:
        raise ConfigError(
            f"{root / 'predictions'}: {len(found)} predictions of {case} with a support"
            + (f" ({', '.join(f.name for f in found)})" if found else "")
            + "; predict it first with --support, or name the folder with --predictions"
        )
    return found[0]


def _listing(folder: Path, case: str, models: Sequence[str]) -> Mapping[str, Any]:
    """Return predictions.json of a folder that holds `case`, made with a support and these models."""
    content = read_json(folder / "predictions.json")
    if case not in content["cases"]:
        raise ConfigError(
            f"{folder}: no prediction of {case}; it holds {', '.join(content['cases']) or 'none'}"
        )
    if not content["options"].get("support"):
        raise ConfigError(f"{folder}: predicted without a support, which a correction would join")
    if list(content["models"]) != list(models):
        raise ConfigError(
            f"{folder}: predicted by {len(content['models'])} model(s), other than the {len(models)} given; "
            "name the same, in the same order"
        )
    return dict(content)


def _history(folder: Path, base: str) -> list[str]:
    """Return the supports so far; they begin anew where the query was predicted with another one since."""
    path = folder / HISTORY
    supports = list(read_json(path)["supports"]) if path.exists() else [base]
    return supports if supports[0] == base else [base]


def _added(
    root: Path,
    bank: Bank,
    volume: Volume,
    path: Path,
    before: np.ndarray,
    slices: Sequence[int] | None,
    axis: int,
) -> tuple[str, list[int]]:
    """Return the support with the corrected slices, and these as the file counts them."""
    from seguro.inference.fewshot import corrected_slices, shot_of

    n = volume.grid.shape[axis]
    if outside := [z for z in slices or () if not 0 <= z < n]:
        raise ConfigError(f"slice {outside[0]} is not among the {n} of the query (0 to {n - 1})")
    chosen = None if slices is None else [file_index(volume.source, axis, z) for z in slices]
    try:
        label, canonical = corrected_slices(read_label(path), volume, before, axis, chosen)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{path}: {error}") from error
    known = {v[0] for v in bank.classes.values}
    if unknown := sorted({int(v) for v in np.unique(label.take(canonical, axis=axis))} - known):
        raise DataError(
            f"{path}: value {unknown[0]} is no class of the support, which has "
            + ", ".join(f"{n}={v[0]}" for n, v in zip(bank.classes.names, bank.classes.values, strict=True))
        )
    key = support.add(
        root, shot_of(volume, label, canonical, bank.classes, axis), bank.classes, parent=bank.hash
    )
    return key, [file_index(volume.source, axis, z) for z in canonical]
