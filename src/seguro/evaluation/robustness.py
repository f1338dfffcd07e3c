"""Robustness as numbers: Dice(epsilon) curves, areas under them, sizes, smallest epsilons, corruption scores.

Every case and class with a Dice anywhere in a file counts at every epsilon of it: where an absent class is
rightly left empty at one epsilon and falsely found at another, the first is perfect (1). So the points of a
curve differ by the attack and never by their cases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seguro.core.errors import DataError
from seguro.core.files import write_json
from seguro.core.seeds import generator
from seguro.evaluation.attacked import (
    AreaRow,
    CaseRow,
    CurveRow,
    MinimumRow,
    MinimumSummary,
    PairedArea,
    RobustRow,
    SizeRow,
    WeightedRow,
    checked,
    checked_minimum,
    common,
    epsilons,
    read_csv,
    read_minimum,
    write_csv,
    write_minimum,
)
from seguro.evaluation.statistics import ALL, FAILURES, MEAN, Floats, cluster_interval, holm, sign_flip

__all__ = [
    "AreaRow", "CaseRow", "CurveRow", "MinimumRow", "MinimumSummary", "PairedArea", "RobustRow", "SizeRow",
    "WeightedRow", "areas", "auc", "by_case", "by_size", "common", "curves", "minimum_summary",
    "paired_areas", "pooled", "read_csv", "read_minimum", "summary", "weighted_score", "write_csv",
    "write_minimum", "write_summary",
]  # fmt: skip

ALPHA = 2 / 3
"""Weight of a corruption's severity s is ALPHA ** s (ROOD-MRI): mild ones, which are common, count most."""
STRATA = ("small", "medium", "large")
SUMMARY = "curves.json"


@dataclass(frozen=True)
class _Table:
    """Dice by (attack, class), case and eps; class "mean" too."""

    eps: dict[str, tuple[float, ...]]
    classes: tuple[str, ...]
    values: dict[tuple[str, str], dict[str, Floats]]
    patients: dict[str, str]

    def stacked(self, attack: str, cls: str) -> tuple[Floats, list[str]]:
        """Return (cases, eps) and the patient of each row, cases by name."""
        of_cases = self.values.get((attack, cls), {})
        cases = sorted(of_cases)
        values = np.array([of_cases[c] for c in cases], np.float64).reshape(len(cases), len(self.eps[attack]))
        return values, [self.patients[c] for c in cases]


def auc(eps: Sequence[float], values: Sequence[float] | Floats) -> float:
    """Return the area under values(eps) by trapezoids divided by the range: the mean value over the range.

    Args:
        eps: rising; a single one gives its value.
        values: finite, one per eps.

    Raises:
        DataError: eps that do not rise, other lengths, or a value that is not finite.

    Example:
        >>> auc([0, 5, 8, 16], [0.5, 0.5, 0.5, 0.5])
        0.5
    """
    x, y = np.asarray(eps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise DataError(f"area: {x.size} eps and {y.size} values, expected as many, at least one")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise DataError(f"area: expected rising eps and finite values, found {x.tolist()} and {y.tolist()}")
    return float(y[0]) if x.size == 1 else float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def curves(rows: Iterable[RobustRow], seed: int = 0) -> list[CurveRow]:
    """Return the points of each attack's curve for each class and "mean", with intervals by patient.

    A missed class counts as 0, a false alarm too. Independent of the order of `rows`.

    Raises:
        DataError: rows are missing, repeated or out of range.
    """
    ordered = checked(rows)
    table, out = _table(ordered, _defined(ordered)), []
    failures: dict[tuple[str, str, float], int] = defaultdict(int)
    for row in ordered:
        for cls in (row.cls, MEAN):
            failures[row.attack, cls, row.eps] += row.note in FAILURES
    for attack, cls, values, patients in _blocks(table):
        for i, eps in enumerate(table.eps[attack]):
            column = values[:, i]
            point = _interval(column, patients, seed, "curve", attack, cls, repr(eps))
            failed = failures[attack, cls, eps]
            out.append(CurveRow(attack, cls, eps, *point, len(column), len(set(patients)), failed))
    return out


def areas(rows: Iterable[RobustRow], seed: int = 0) -> list[AreaRow]:
    """Return the mean over cases of the area under each case's curve, per attack and class.

    Raises:
        DataError: rows are missing, repeated or out of range.
    """
    ordered = checked(rows)
    table, out = _table(ordered, _defined(ordered)), []
    for attack, cls, values, patients in _blocks(table):
        per_case = _per_case(table.eps[attack], values)
        point = _interval(per_case, patients, seed, "area", attack, cls)
        out.append(AreaRow(attack, cls, *point, len(per_case), len(set(patients))))
    return out


def by_size(rows: Iterable[RobustRow], seed: int = 0) -> list[SizeRow]:
    """Return the curves of small, medium and large cases: thirds by the size of the class in the truth.

    Only cases where the class is there count. Equal sizes fall into one third, so a third may be empty; with
    fewer than three cases of a class there are none.

    Raises:
        DataError: rows are missing, repeated or out of range.
    """
    ordered = checked(rows)
    table, out = _table(ordered, _defined(ordered)), []
    sizes = {(r.case, r.cls): r.size_ml for r in ordered if r.size_ml}
    for attack, cls in table.values:
        kept = sorted(c for c in table.values[attack, cls] if (c, cls) in sizes)
        if len(kept) < len(STRATA):
            continue
        size = np.array([sizes[c, cls] for c in kept], np.float64)
        place = np.searchsorted(np.quantile(size, (1 / 3, 2 / 3)), size)  # at the edge: the smaller third
        for k, stratum in enumerate(STRATA):
            chosen = [c for c, p in zip(kept, place, strict=True) if p == k]
            if not chosen:
                continue
            ends = float(size[place == k].min()), float(size[place == k].max())
            patients = [table.patients[c] for c in chosen]
            for i, eps in enumerate(table.eps[attack]):
                values = np.array([table.values[attack, cls][c][i] for c in chosen], np.float64)
                mean, low, high = _interval(values, patients, seed, "size", attack, cls, stratum, repr(eps))
                n = len(chosen), len(set(patients))
                out.append(SizeRow(attack, cls, stratum, *ends, eps, mean, low, high, *n))
    return out


def minimum_summary(rows: Iterable[MinimumRow]) -> list[MinimumSummary]:
    """Return the distribution of the smallest epsilon per attack; a case that never broke counts as infinite.

    Raises:
        DataError: a case twice, or an epsilon out of range.
    """
    groups: dict[str, list[MinimumRow]] = defaultdict(list)
    for row in checked_minimum(rows):
        groups[row.attack].append(row)
    out = []
    for attack in sorted(groups, key=lambda a: (a != "worst", a)):
        own = groups[attack]
        found = sorted(r.eps for r in own if r.eps is not None)
        every = [*found, *[math.inf] * (len(own) - len(found))]
        q1, median, q3 = (_quantile(every, q) for q in (0.25, 0.5, 0.75))
        patients = len({r.patient for r in own})
        out.append(
            MinimumSummary(attack, len(own), patients, len(own) - len(found), median, q1, q3, tuple(found))
        )
    return out


def paired_areas(
    rows_a: Iterable[RobustRow], rows_b: Iterable[RobustRow], *, intersect: bool = False, seed: int = 0
) -> list[PairedArea]:
    """Return the difference b - a of the areas over the same cases, with interval and sign-flip p by patient.

    Args:
        rows_a: the reference.
        rows_b: what is compared with it.
        intersect: compare on the common attacks, classes, cases and eps instead of refusing others.
        seed: of bootstrap and permutation.

    Raises:
        DataError: other attacks, classes, cases or eps, another patient of a case, or nothing in common.
    """
    a, b = common(checked(rows_a), checked(rows_b), intersect=intersect)
    tables = [_table(rows, _defined([*a, *b])) for rows in (a, b)]
    out = []
    for attack, eps in tables[0].eps.items():
        of_attack = []
        for cls in (*tables[0].classes, MEAN):
            (values_a, patients), (values_b, _) = (t.stacked(attack, cls) for t in tables)
            if not len(values_a):
                continue
            mean_a, mean_b = _per_case(eps, values_a), _per_case(eps, values_b)
            p = sign_flip(mean_b - mean_a, patients, rng=generator(seed, "flip area", attack, cls))
            point = _interval(mean_b - mean_a, patients, seed, "area difference", attack, cls)
            row = PairedArea(
                attack,
                cls,
                len(patients),
                len(set(patients)),
                float(mean_a.mean()),
                float(mean_b.mean()),
                point[0],
                point[1],
                point[2],
                p,
                p,
            )
            of_attack.append(row)
        tested = [r for r in of_attack if r.cls != MEAN]
        corrected = dict(zip([r.cls for r in tested], holm([r.p for r in tested]), strict=True))
        out += [r._replace(p_holm=corrected.get(r.cls, r.p)) for r in of_attack]
    return out


def pooled(rows: Iterable[RobustRow]) -> list[RobustRow]:
    """Return rows of one attack "all": the mean Dice over the attacks of each case, class and eps.

    For corruptions. A class absent everywhere stays without a value; found falsely by one, it is 1 elsewhere.

    Raises:
        DataError: rows are missing, repeated or out of range, or the attacks have other eps.
    """
    ordered = checked(rows)
    if len(set(epsilons(ordered).values())) > 1:
        raise DataError("the mean over attacks needs the same eps of each")
    groups: dict[tuple[str, str, float], list[RobustRow]] = defaultdict(list)
    for row in ordered:
        groups[row.case, row.cls, row.eps].append(row)
    out = []
    for own in groups.values():
        values = [r.dice for r in own if r.dice is not None]
        known = [1.0 if r.dice is None else r.dice for r in own] if values else []
        note = next((r.note for r in own if r.note in FAILURES), "") if values else own[0].note
        out.append(
            own[0]._replace(attack=ALL, dice=math.fsum(known) / len(known) if known else None, note=note)
        )
    return out


def weighted_score(rows: Iterable[RobustRow], seed: int = 0) -> list[WeightedRow]:
    """Return per corruption (and "all") and class the severity-weighted Dice and its loss against clean.

    Args:
        rows: `eps` is the severity: 0 (clean) and whole numbers above it.
        seed: of the bootstrap.

    Raises:
        DataError: severities other than that, or rows missing, repeated or out of range.
    """
    ordered = checked(rows)
    table, out = _table([*ordered, *pooled(ordered)], _defined(ordered)), []
    for attack, cls, values, patients in _blocks(table):
        severities = np.array(table.eps[attack])
        if severities[0] != 0 or len(severities) < 2 or (severities != severities.round()).any():
            raise DataError(
                f"{attack}: severities {table.eps[attack]}, expected 0 and whole numbers above it"
            )
        weights = ALPHA ** severities[1:]
        score = values[:, 1:] @ weights / weights.sum()
        point = _interval(score, patients, seed, "weighted", attack, cls)
        loss = _interval(values[:, 0] - score, patients, seed, "degradation", attack, cls)
        n = len(score), len(set(patients))
        out.append(WeightedRow(attack, cls, float(values[:, 0].mean()), *point, *loss, *n))
    return out


def by_case(rows: Iterable[RobustRow], attack: str = "worst") -> list[CaseRow]:
    """Return each case's mean Dice over its classes at every eps of one attack, the worst first.

    Raises:
        DataError: rows are missing, repeated or out of range.
    """
    ordered = checked(rows)
    table = _table(ordered, _defined(ordered))
    site = {r.case: r.site for r in ordered}
    found = table.values.get((attack, MEAN), {})
    order = sorted(found, key=lambda c: (found[c][-1], c))
    return [CaseRow(c, table.patients[c], site[c], attack, tuple(found[c].tolist())) for c in order]


def summary(
    rows: Iterable[RobustRow],
    minimum_rows: Iterable[MinimumRow] = (),
    seed: int = 0,
    *,
    corruptions: bool = False,
) -> dict[str, Any]:
    """Return what curves.json holds, see `write_summary`."""
    rows = checked(rows)
    content: dict[str, list[Any]] = {
        "curves": curves(rows, seed),
        "areas": areas(rows, seed),
        "by_size": by_size(rows, seed),
        "minimum": minimum_summary(minimum_rows),
        "cases": [] if corruptions else by_case(rows),
        "weighted": weighted_score(rows, seed) if corruptions else [],
    }
    return {name: [_json(row) for row in part] for name, part in content.items()}


def write_summary(
    folder: Path,
    rows: Iterable[RobustRow],
    minimum_rows: Iterable[MinimumRow] = (),
    seed: int = 0,
    *,
    corruptions: bool = False,
) -> Path:
    """Write `folder/curves.json` and return its path.

    {"curves", "areas", "by_size", "minimum", "cases", "weighted"}: lists of the rows of `curves`, `areas`,
    `by_size`, `minimum_summary`, `by_case` ("worst"; empty with `corruptions`) and `weighted_score` (only
    with `corruptions`), each an object with the fields of its row type, `cls` under "class".

    Raises:
        DataError: rows are missing, repeated or out of range.
    """
    path = folder / SUMMARY
    write_json(path, summary(rows, minimum_rows, seed, corruptions=corruptions))
    return path


def _defined(rows: Sequence[RobustRow]) -> set[tuple[str, str]]:
    """Return the (case, class) pairs that count: with a Dice somewhere, and annotated everywhere."""
    found = {(r.case, r.cls) for r in rows if r.dice is not None}
    return found - {(r.case, r.cls) for r in rows if r.note == "not annotated"}


def _table(rows: Sequence[RobustRow], defined: set[tuple[str, str]]) -> _Table:
    """Return the Dice of checked `rows` over the (case, class) pairs `defined`."""
    eps = epsilons(rows)
    values: dict[tuple[str, str], dict[str, Floats]] = defaultdict(dict)
    for row in rows:
        if (row.case, row.cls) in defined:
            found = values[row.attack, row.cls].setdefault(row.case, np.empty(len(eps[row.attack])))
            found[eps[row.attack].index(row.eps)] = 1.0 if row.dice is None else row.dice
    for attack in eps:
        per_case: dict[str, list[Floats]] = defaultdict(list)
        for (of, _), cases in list(values.items()):
            for case, found in cases.items() if of == attack else ():
                per_case[case].append(found)
        for case, parts in per_case.items():
            values[attack, MEAN][case] = np.mean(parts, axis=0)
    return _Table(eps, tuple(sorted({r.cls for r in rows})), values, {r.case: r.patient for r in rows})


def _blocks(table: _Table) -> Iterator[tuple[str, str, Floats, list[str]]]:
    """Yield attack, class, (cases, eps) Dice and the cases' patients, where there is any case."""
    for attack in table.eps:
        for cls in (*table.classes, MEAN):
            values, patients = table.stacked(attack, cls)
            if len(values):
                yield attack, cls, values, patients


def _per_case(eps: Sequence[float], values: Floats) -> Floats:
    return np.array([auc(eps, v) for v in values], np.float64)


def _interval(
    values: Floats, patients: Sequence[str], seed: int, *key: str
) -> tuple[float, float | None, float | None]:
    """Return mean, low and high; the draws depend on seed and key alone."""
    found = cluster_interval(values, patients, rng=generator(seed, *key))
    return float(values.mean()), *(found or (None, None))


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    """Return the quantile by linear interpolation; None where it needs an infinite value."""
    place = q * (len(ordered) - 1)
    i = math.floor(place)
    value = ordered[i] if place == i else ordered[i] + (place - i) * (ordered[i + 1] - ordered[i])
    return value if math.isfinite(value) else None


def _json(row: Any) -> dict[str, Any]:
    return {("class" if k == "cls" else k): v for k, v in row._asdict().items()}
