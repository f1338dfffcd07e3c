"""Means with intervals over cases, and tests between runs; patients, not cases, are the independent units."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.seeds import generator
from seguro.core.types import ScoreRow
from seguro.evaluation import METRICS

Floats = NDArray[np.float64]
MEAN = "mean"
"""Pseudo-class: the mean over the foreground classes that have a value in a case."""
ALL = "all"
"""Pseudo-site: every site together."""
BOOTSTRAPS = 2000
PERMUTATIONS = 10_000
FAILURES = ("missed", "false alarm", "no prediction")


class SummaryRow(NamedTuple):
    """One metric of one class over the cases of one site; None where there are too few cases or patients."""

    cls: str
    site: str
    metric: str
    n_cases: int
    """Cases with a value."""
    n_patients: int
    mean: float | None
    sd: float | None
    median: float | None
    low: float | None
    high: float | None
    failures: int
    both_empty: int
    not_annotated: int


class PairedRow(NamedTuple):
    """The difference b - a of one metric of one class over the same cases, with its tests."""

    cls: str
    metric: str
    n_cases: int
    n_patients: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    p_permutation: float
    p_wilcoxon: float
    p_holm: float
    """Permutation p, Holm-corrected over the classes of this metric; uncorrected for "mean"."""


def summarize(rows: Iterable[ScoreRow], *, seed: int = 0) -> list[SummaryRow]:
    """Return a row per class (and "mean"), site (and "all") and metric; independent of the order of `rows`.

    Args:
        rows: scores of one run.
        seed: of the bootstrap; each row draws from its own stream.

    Raises:
        DataError: a class called "mean", a site called "all", or a case scored twice.
    """
    ordered = _checked(rows)
    groups: dict[tuple[str, str, str], list[ScoreRow]] = defaultdict(list)
    for row in ordered:
        for site in (ALL, row.site):
            groups[row.metric, site, row.cls].append(row)
            groups[row.metric, site, MEAN].append(row)
    metrics, sites = _metrics(ordered), [ALL, *sorted({r.site for r in ordered})]
    names = [*dict.fromkeys(r.cls for r in ordered), MEAN]
    return [
        _summary(groups[m, site, cls], cls, site, m, seed)
        for m in metrics
        for site in sites
        for cls in names
        if (m, site, cls) in groups
    ]


def paired(
    rows_a: Iterable[ScoreRow], rows_b: Iterable[ScoreRow], *, intersect: bool = False, seed: int = 0
) -> list[PairedRow]:
    """Return the paired comparison of two runs: for each metric both have, each class and "mean".

    A pair is one case and class with a value in both runs. Where exactly one run left a class empty that is
    absent from the truth ("both empty") and the other raised a false alarm, the first counts as perfect: a
    pair with a false alarm is never dropped. Pairs without a value in either run say nothing and are left
    out. Signed errors are compared by their magnitude, so that +5 and -5 ml are equally good.

    Args:
        rows_a: scores of the reference run.
        rows_b: scores of the run compared with it; `difference` is b - a.
        intersect: compare on the common cases and classes instead of refusing runs that differ in them.
        seed: of bootstrap and permutation.

    Raises:
        DataError: the runs differ in cases, classes or patients, or have nothing in common.
    """
    a = {(r.case, r.cls, r.metric): r for r in _checked(rows_a)}
    b = {(r.case, r.cls, r.metric): r for r in _checked(rows_b)}
    _same_cases(a, b, intersect)
    common = [r for key, r in a.items() if key in b]
    result = []
    for metric in _metrics(common):
        pairs: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
        for row in common:
            if row.metric == metric and (pair := _pair(row, b[row.case, row.cls, metric])):
                pairs[row.cls][row.case] = pair
        patient = {r.case: r.patient for r in common}
        tested = [_compared(cls, metric, pairs[cls], patient, seed) for cls in pairs]
        corrected = holm([t.p_permutation for t in tested])
        result += [t._replace(p_holm=p) for t, p in zip(tested, corrected, strict=True)]
        if tested:
            result.append(_compared(MEAN, metric, _mean_pairs(pairs), patient, seed))
    if not result:
        raise DataError("the runs have no score in common: no case and class with a value in both")
    return result


def cluster_interval(
    values: Floats, patients: Sequence[str], *, rng: np.random.Generator, n: int = BOOTSTRAPS
) -> tuple[float, float] | None:
    """Return the BCa bootstrap 95 % interval of the mean of `values`, patients drawn with replacement.

    Args:
        values: (n_cases,) finite.
        patients: the patient of each value; all values of a drawn patient come along.
        rng: source of the draws.
        n: number of bootstrap samples.

    Returns:
        (low, high), or None when fewer than two patients make an interval meaningless.
    """
    sums, counts = _per_patient(values, patients)
    k = len(sums)
    if k < 2:
        return None
    times = rng.multinomial(k, np.full(k, 1 / k), size=n)  # (n, k): how often each patient was drawn
    means = np.sort((times @ sums) / (times @ counts))
    center = sums.sum() / counts.sum()
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    return _bca(means, center, left_out)


def _bca(means: Floats, center: float, left_out: Floats) -> tuple[float, float]:
    """Return the bias-corrected and accelerated 2.5 and 97.5 % quantiles of sorted bootstrap `means`."""
    from scipy.special import ndtr, ndtri

    slack = 1e-12 * max(1.0, abs(center))
    below = (
        (np.count_nonzero(means < center - slack) + np.count_nonzero(means <= center + slack))
        / 2
        / means.size
    )
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum())
    if spread <= slack**2 or not 0 < below < 1:  # every patient alike, or too few for a correction
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)
    bias, acceleration = float(ndtri(below)), float((deviation**3).sum() / (6 * spread**1.5))
    z = bias + np.array([ndtri(0.025), ndtri(0.975)])
    levels = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def sign_flip(
    differences: Floats, patients: Sequence[str], *, rng: np.random.Generator, n: int = PERMUTATIONS
) -> float:
    """Return the two-sided p of a permutation test that swaps the two runs patient by patient.

    All 2^k assignments are enumerated up to 12 patients; above that `n` random ones, counting the observed
    one too, so that p is never 0.
    """
    sums, _ = _per_patient(differences, patients)
    k = len(sums)
    observed = abs(sums.sum()) * (1 - 1e-9)  # ties with the observed one count, whatever the rounding
    if k <= 12:
        signs = np.array(list(product((1.0, -1.0), repeat=k)))
        return float(np.mean(np.abs(signs @ sums) >= observed))
    hits = 1
    for start in range(0, n, 1000):  # in blocks: (1000, k) signs at a time
        signs = rng.integers(0, 2, size=(min(1000, n - start), k)) * 2.0 - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ sums) >= observed))
    return hits / (n + 1)


def wilcoxon(differences: Floats, patients: Sequence[str]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on patients' means; 1 if all are zero."""
    from scipy import stats

    sums, counts = _per_patient(differences, patients)
    means = sums / counts
    return 1.0 if not means.any() else float(stats.wilcoxon(means).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down corrected p-values in the given order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _checked(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    """Return rows in an order that does not depend on the input's, classes by name."""
    ordered = sorted(rows, key=lambda r: (r.cls, r.case, r.metric))
    seen = set()
    for row in ordered:
        if row.cls == MEAN or row.site == ALL:
            raise DataError(
                f'case {row.case}: a class named "{MEAN}" or a site named "{ALL}" is reserved; rename it'
            )
        key = (row.case, row.cls, row.metric)
        if key in seen:
            raise DataError(f"case {row.case}: class {row.cls}, metric {row.metric} is scored twice")
        seen.add(key)
    return ordered


def _metrics(rows: Iterable[ScoreRow]) -> list[str]:
    present = {r.metric for r in rows}
    return [m for m in METRICS if m in present] + sorted(present - set(METRICS))


def _summary(rows: Sequence[ScoreRow], cls: str, site: str, metric: str, seed: int) -> SummaryRow:
    per_case: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.value is not None:
            per_case[row.case].append(row.value)
    cases = sorted(per_case)
    values = np.array([math.fsum(per_case[c]) / len(per_case[c]) for c in cases], np.float64)
    patient = {r.case: r.patient for r in rows}
    patients = [patient[c] for c in cases]
    interval = None
    if cases:
        interval = cluster_interval(values, patients, rng=generator(seed, "summary", cls, site, metric))
    return SummaryRow(
        cls=cls,
        site=site,
        metric=metric,
        n_cases=len(cases),
        n_patients=len(set(patients)),
        mean=float(values.mean()) if cases else None,
        sd=float(values.std(ddof=1)) if len(cases) > 1 else None,
        median=float(np.median(values)) if cases else None,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        failures=sum(r.note in FAILURES for r in rows),
        both_empty=sum(r.note == "both empty" for r in rows),
        not_annotated=sum(r.note == "not annotated" for r in rows),
    )


def _same_cases(
    a: Mapping[tuple[str, str, str], ScoreRow], b: Mapping[tuple[str, str, str], ScoreRow], intersect: bool
) -> None:
    """Refuse runs over other cases or classes (unless told to intersect), or that disagree on a patient."""
    for part, noun in ((0, "case"), (1, "class")):
        in_a, in_b = {key[part] for key in a}, {key[part] for key in b}
        if in_a != in_b and not intersect:
            raise DataError(
                f"the runs differ in their {noun} set: {_some(in_a - in_b)} only in the first, "
                f"{_some(in_b - in_a)} only in the second; evaluate both on the same data, "
                "or compare what they share with --intersect"
            )
    patients_a, patients_b = ({r.case: r.patient for r in rows.values()} for rows in (a, b))
    for case in sorted(set(patients_a) & set(patients_b)):
        if patients_a[case] != patients_b[case]:
            raise DataError(
                f"case {case} belongs to another patient in each run; evaluate both with one manifest"
            )


def _some(names: set[str]) -> str:
    return (
        "none"
        if not names
        else f"{len(names)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
    )


def _pair(a: ScoreRow, b: ScoreRow) -> tuple[float, float] | None:
    """Return both values, magnitudes where zero is best; "both empty" against a false alarm is perfect."""
    perfect = METRICS[a.metric].perfect if a.metric in METRICS else None
    value_a = perfect if a.note == "both empty" and b.value is not None else a.value
    value_b = perfect if b.note == "both empty" and a.value is not None else b.value
    if value_a is None or value_b is None:
        return None
    signed = a.metric in METRICS and METRICS[a.metric].better == "zero"
    return (abs(value_a), abs(value_b)) if signed else (value_a, value_b)


def _mean_pairs(pairs: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Return per case the mean over its classes of each run's values."""
    per_case: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for of_class in pairs.values():
        for case, pair in of_class.items():
            per_case[case].append(pair)
    return {
        c: (math.fsum(p[0] for p in v) / len(v), math.fsum(p[1] for p in v) / len(v))
        for c, v in per_case.items()
    }


def _compared(
    cls: str, metric: str, pairs: Mapping[str, tuple[float, float]], patient: Mapping[str, str], seed: int
) -> PairedRow:
    cases = sorted(pairs)
    patients = [patient[c] for c in cases]
    a, b = np.array([pairs[c] for c in cases], np.float64).T
    p = sign_flip(b - a, patients, rng=generator(seed, "permutation", cls, metric))
    interval = cluster_interval(b - a, patients, rng=generator(seed, "difference", cls, metric))
    low, high = interval or (None, None)
    return PairedRow(
        cls,
        metric,
        len(cases),
        len(set(patients)),
        float(a.mean()),
        float(b.mean()),
        float((b - a).mean()),
        low,
        high,
        p,
        wilcoxon(b - a, patients),
        p,
    )


def _per_patient(values: Floats, patients: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the sum and the number of values per patient, (k,) each, patients by name."""
    names, index = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    return np.bincount(index, weights=values, minlength=len(names)).astype(np.float64), counts
