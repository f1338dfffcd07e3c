"""The rows of an attack: what it leaves, in its files, and what is computed from that."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from seguro.core.errors import DataError
from seguro.evaluation.statistics import ALL, FAILURES, MEAN
from seguro.evaluation.table import number, read_table, write_table

COLUMNS = ("case", "patient", "site", "class", "attack", "eps", "dice", "size_ml", "note")
MINIMUM_COLUMNS = ("case", "patient", "site", "attack", "eps")
UNDEFINED = ("both empty", "not annotated")
"""Notes of rows without a Dice; every other row has one."""


class RobustRow(NamedTuple):
    """The Dice of one class in one case under one attack of one strength."""

    case: str
    patient: str
    site: str
    cls: str
    attack: str
    """"worst", "noise", the name of one attack, or of a corruption."""
    eps: float
    """Largest change in 255ths of the channel's range, or severity 0 to 5 of a corruption; 0 is clean."""
    dice: float | None
    """None only with a note in UNDEFINED."""
    size_ml: float | None
    """Volume of the class in the truth; voxels where there is no physical size."""
    note: str = ""
    """"", "missed", "false alarm", "both empty", "not annotated"."""


class MinimumRow(NamedTuple):
    """The smallest change of one case that brings its mean Dice below the threshold."""

    case: str
    patient: str
    site: str
    attack: str
    eps: float | None
    """None: not up to the largest that was tried."""


class CurveRow(NamedTuple):
    """One point of a curve: the mean over cases; `cls` "mean" is the mean over each case's classes."""

    attack: str
    cls: str
    eps: float
    mean: float
    low: float | None
    high: float | None
    n_cases: int
    n_patients: int
    failures: int


class AreaRow(NamedTuple):
    """The mean over cases of the area under each case's curve, divided by the range of eps."""

    attack: str
    cls: str
    mean: float
    low: float | None
    high: float | None
    n_cases: int
    n_patients: int


class SizeRow(NamedTuple):
    """One point of the curve over a third of the cases by the size of the class in the truth."""

    attack: str
    cls: str
    stratum: str
    size_low: float
    size_high: float
    eps: float
    mean: float
    low: float | None
    high: float | None
    n_cases: int
    n_patients: int


class MinimumSummary(NamedTuple):
    """The distribution of the smallest epsilon; a quantile is None where it exceeds the largest tried."""

    attack: str
    n_cases: int
    n_patients: int
    censored: int
    """Cases that never broke."""
    median: float | None
    q1: float | None
    q3: float | None
    found: tuple[float, ...]
    """The epsilons of the cases that broke, rising."""


class PairedArea(NamedTuple):
    """The difference b - a of the areas over the same cases."""

    attack: str
    cls: str
    n_cases: int
    n_patients: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float
    """Holm-corrected over the classes of this attack; uncorrected for "mean"."""


class WeightedRow(NamedTuple):
    """Dice over the severities of a corruption, sum(a^s Dice_s) / sum(a^s), and its loss against clean."""

    attack: str
    """The corruption; "all": the mean over the corruptions."""
    cls: str
    clean: float
    mean: float
    low: float | None
    high: float | None
    degradation: float
    """Clean minus weighted mean."""
    degradation_low: float | None
    degradation_high: float | None
    n_cases: int
    n_patients: int


class CaseRow(NamedTuple):
    """The mean Dice over the classes of one case at each eps of one attack."""

    case: str
    patient: str
    site: str
    attack: str
    dice: tuple[float, ...]
    """In the order of the attack's eps."""


def write_csv(path: Path, rows: Iterable[RobustRow]) -> None:
    """Write robustness.csv, sorted by case, class, attack and eps.

    Raises:
        DataError: rows that `read_csv` would refuse.
    """
    ordered = checked(rows, what=path)
    write_table(path, COLUMNS, ordered)


def read_csv(path: Path) -> list[RobustRow]:
    """Return the rows of robustness.csv.

    Raises:
        DataError: not such a file, a value out of its range, or a row missing or twice; the message names the
            file and the line or the case.
    """
    rows = []
    for line, cells in read_table(path, COLUMNS, maker="robustness.csv written by seguro attack"):
        eps, dice, size = (
            number(path, line, n, cells[i]) for n, i in (("eps", 5), ("dice", 6), ("size_ml", 7))
        )
        if eps is None:
            raise DataError(f"{path}: line {line}: eps is empty, expected a number of 0 or more")
        case, patient, site, cls, attack = cells[:5]
        rows.append(RobustRow(case, patient, site, cls, attack, eps, dice, size, cells[8]))
    return checked(rows, what=path)


def write_minimum(path: Path, rows: Iterable[MinimumRow]) -> None:
    """Write minimum.csv, sorted by case and attack.

    Raises:
        DataError: rows that `read_minimum` would refuse.
    """
    write_table(path, MINIMUM_COLUMNS, checked_minimum(rows, what=path))


def read_minimum(path: Path) -> list[MinimumRow]:
    """Return the rows of minimum.csv.

    Raises:
        DataError: not such a file, an epsilon below 0, or a case twice.
    """
    rows = []
    for line, cells in read_table(path, MINIMUM_COLUMNS, maker="minimum.csv written by seguro attack"):
        case, patient, site, attack, eps = cells
        rows.append(MinimumRow(case, patient, site, attack, number(path, line, "eps", eps)))
    return checked_minimum(rows, what=path)


def checked(rows: Iterable[RobustRow], *, what: object = "robustness") -> list[RobustRow]:
    """Return rows sorted by case, class, attack and eps.

    Raises:
        DataError: no rows, a reserved name, a value out of its range, a case of two patients, or not exactly
            one row for each case, class, attack and eps of that attack.
    """
    ordered = sorted(rows, key=_key)
    if not ordered:
        raise DataError(f"{what}: no rows; attack at least one case")
    patients: dict[str, str] = {}
    for row in ordered:
        if problem := _problem(row):
            raise DataError(
                f"{what}: case {row.case}, class {row.cls}, {row.attack}, eps {row.eps:g}: {problem}"
            )
        if patients.setdefault(row.case, row.patient) != row.patient:
            raise DataError(
                f"{what}: case {row.case} belongs to patient {patients[row.case]} and {row.patient}"
            )
    _complete(ordered, what)
    return ordered


def checked_minimum(rows: Iterable[MinimumRow], *, what: object = "minimum") -> list[MinimumRow]:
    """Return rows sorted by case and attack.

    Raises:
        DataError: an epsilon that is negative or not finite, or a case twice under one attack.
    """
    ordered = sorted(rows, key=lambda r: (r.case, r.attack))
    seen = set()
    for row in ordered:
        if row.eps is not None and not (math.isfinite(row.eps) and row.eps >= 0):
            raise DataError(
                f"{what}: case {row.case}, {row.attack}: eps {row.eps}, expected 0 or more, or none"
            )
        if (row.case, row.attack) in seen:
            raise DataError(f"{what}: case {row.case}, {row.attack}: two rows, expected one")
        seen.add((row.case, row.attack))
    return ordered


def epsilons(rows: Iterable[RobustRow]) -> dict[str, tuple[float, ...]]:
    """Return the rising epsilons of each attack: "worst" first, "noise" last, others by name between."""
    found: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        found[row.attack].add(row.eps)
    order = {"worst": -1, "noise": 1, ALL: 2}
    return {a: tuple(sorted(found[a])) for a in sorted(found, key=lambda a: (order.get(a, 0), a))}


def _problem(row: RobustRow) -> str:
    """Return what is wrong with a row, "" when nothing is."""
    if row.cls == MEAN or row.attack == "clean":
        return f'a class named "{MEAN}" and an attack named "clean" are reserved; rename it'
    if not (math.isfinite(row.eps) and row.eps >= 0):
        return "eps must be finite and 0 or more"
    if row.size_ml is not None and not (math.isfinite(row.size_ml) and row.size_ml >= 0):
        return f"size_ml is {row.size_ml}, expected 0 or more"
    if row.note and row.note not in (*FAILURES, *UNDEFINED):
        return f"note {row.note[:40]!r}, expected one of {', '.join((*FAILURES, *UNDEFINED))} or none"
    if row.dice is None:
        return "" if row.note in UNDEFINED else f"no dice, expected one unless {' or '.join(UNDEFINED)}"
    if not 0 <= row.dice <= 1:  # false for NaN too
        return f"dice is {row.dice}, expected 0 to 1"
    return f"dice is {row.dice}, expected none for {row.note}" if row.note in UNDEFINED else ""


def _complete(ordered: Sequence[RobustRow], what: object) -> None:
    """Refuse a missing or repeated row: a curve must be over the same cases at every epsilon."""
    seen = set()
    for row in ordered:
        key = (row.case, row.cls, row.attack, row.eps)
        if key in seen:
            raise DataError(
                f"{what}: case {row.case}, class {row.cls}, {row.attack}, eps {row.eps:g}: two rows"
            )
        seen.add(key)
    classes = sorted({r.cls for r in ordered})
    steps = epsilons(ordered)
    for case in dict.fromkeys(r.case for r in ordered):
        for cls in classes:
            for attack, eps in steps.items():
                absent = [e for e in eps if (case, cls, attack, e) not in seen]
                if absent:
                    raise DataError(
                        f"{what}: case {case}, class {cls}, {attack}: no row for eps "
                        f"{', '.join(f'{e:g}' for e in absent)}; expected {', '.join(f'{e:g}' for e in eps)} "
                        "in every case; run the attack again, it goes on where it stopped"
                    )


def _key(row: RobustRow) -> tuple[str, str, str, float]:
    return row.case, row.cls, row.attack, row.eps


def common(
    a: Sequence[RobustRow], b: Sequence[RobustRow], *, intersect: bool
) -> tuple[list[RobustRow], list[RobustRow]]:
    """Return the rows of both that have a partner in the other; both must be `checked`.

    Raises:
        DataError: they differ in eps, attacks, classes or cases and `intersect` is False; a case has another
            patient in each; or no curve is common: two eps of the same case, class and attack.
    """
    for noun, part in _PARTS:
        in_a, in_b = {part(r) for r in a}, {part(r) for r in b}
        if in_a != in_b and not intersect:
            raise DataError(
                f"the attacks differ in their {noun}: {_some(in_a - in_b)} only in the first, "
                f"{_some(in_b - in_a)} only in the second; attack both alike, or compare what they share "
                "with --intersect"
            )
    patients = {r.case: r.patient for r in a}
    other = next((r for r in b if patients.get(r.case, r.patient) != r.patient), None)
    if other:
        raise DataError(f"case {other.case} belongs to another patient in each attack; use one manifest")
    keys = {_key(r) for r in a} & {_key(r) for r in b}
    shared: dict[str, set[float]] = defaultdict(set)
    for _, _, attack, eps in keys:
        shared[attack].add(eps)
    whole = {k for k, eps in epsilons(a).items() if len(shared[k]) > 1 or (shared[k] and len(eps) == 1)}
    kept = [[r for r in rows if _key(r) in keys and r.attack in whole] for rows in (a, b)]
    if not kept[0]:
        raise DataError("the attacks share no curve: no two eps of the same case, class and attack")
    return kept[0], kept[1]


_PARTS: tuple[tuple[str, Callable[[RobustRow], str]], ...] = (
    ("eps", lambda r: f"{r.eps:g}"),
    ("attacks", lambda r: r.attack),
    ("classes", lambda r: r.cls),
    ("cases", lambda r: r.case),
    ("eps of an attack", lambda r: f"{r.attack} {r.eps:g}"),
)


def _some(names: set[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
