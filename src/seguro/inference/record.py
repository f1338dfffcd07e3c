"""A predicted case as it is recorded, so that a stopped command can go on, and as a row of volumes.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.files import read_json

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


@dataclass(frozen=True)
class CaseProgress:
    """Where a prediction stands."""

    done: int
    total: int
    case: str
    fraction: float
    """Of the current case."""


@dataclass(frozen=True)
class Predicted:
    """One predicted case."""

    id: str
    key: str
    """Hash over input, models and options."""
    inputs: tuple[str, ...]
    """SHA-256 of the input files."""
    files: Mapping[str, str]
    """Output path relative to the folder -> SHA-256; the label file first."""
    voxels: Mapping[str, int]
    """Per foreground class."""
    ml: Mapping[str, float] | None
    """None where spacing is in pixels."""
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    cycle: Mapping[str, float | None] | None = None
    """Cycle Dice per class; None without a support."""
    slices: Sequence[Sequence[float]] | None = None
    """(slice as the file counts, voxels expected to be wrong, foreground voxels, annotated 0 or 1)."""


def plain(case: Predicted) -> dict[str, Any]:
    """Return the case as JSON values."""
    return {
        "id": case.id,
        "key": case.key,
        "inputs": list(case.inputs),
        "files": dict(case.files),
        "voxels": dict(case.voxels),
        "ml": None if case.ml is None else dict(case.ml),
        "flags": list(case.flags),
        "notes": list(case.notes),
        "seconds": case.seconds,
        "cycle": None if case.cycle is None else dict(case.cycle),
        "slices": None if case.slices is None else [list(s) for s in case.slices],
    }


def load(path: Path) -> Predicted | None:
    """Return a recorded case, or None where there is no usable record."""
    if not path.exists():
        return None
    try:
        v = read_json(path)
        return Predicted(
            v["id"], v["key"], tuple(v["inputs"]), v["files"], v["voxels"], v["ml"],
            tuple(v["flags"]), tuple(v["notes"]), v["seconds"], v.get("cycle"), v.get("slices"),
        )  # fmt: skip
    except (DataError, KeyError, TypeError):
        return None


def volumes_csv(cases: Sequence[Predicted]) -> str:
    """Return a table of case, class, ml and voxels; ml is empty where spacing is in pixels."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("case", "class", "ml", "voxels"))
    for case in cases:
        for name, count in case.voxels.items():
            ml = "" if case.ml is None else f"{case.ml[name]:.6g}"
            table.writerow((_cell(case.id), _cell(name), ml, count))
    return text.getvalue()


def quality_csv(cases: Sequence[Predicted]) -> str:
    """Return a table of case, class and cycle Dice, worst first; empty text where there is none."""
    rows = [(c.id, n, d) for c in cases for n, d in (c.cycle or {}).items()]
    rows.sort(key=lambda r: (-1.0 if r[2] is None else r[2], r[0], r[1]))
    return _table(
        ("case", "class", "cycle_dice"),
        [(_cell(c), _cell(n), "" if d is None else f"{d:.4f}") for c, n, d in rows],
    )


def doubt_csv(cases: Sequence[Predicted]) -> str:
    """Return a table of slices, most voxels expected to be wrong first; empty where there is none."""
    rows = [(c.id, s) for c in cases for s in c.slices or ()]
    rows.sort(key=lambda r: (r[1][3], -r[1][1], r[0], r[1][0]))
    return _table(
        ("case", "slice", "expected_wrong_voxels", "foreground_voxels", "annotated"),
        [(_cell(c), int(z), f"{wrong:.1f}", int(n), int(a)) for c, (z, wrong, n, a) in rows],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    return text.getvalue()


def _cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
