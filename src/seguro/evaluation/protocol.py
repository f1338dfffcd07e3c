"""How one-annotated-scan segmentation is scored: the folds, slice ranges and baselines of SSL-ALPNet.

Ouyang et al., ECCV 2020 (arXiv 2007.09886) with the official code's constants; EP1 and EP2 as named by ADNet
(Hansen et al., Medical Image Analysis 2022). Nothing here knows a network: a `Segment` is passed in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError
from seguro.evaluation.overlap import Overlap, overlap

Mask = NDArray[np.bool_]
REFERENCES = (Fraction(1, 6), Fraction(1, 2), Fraction(5, 6))
"""Where the support's reference slices lie among its slices with the organ; one part of the query each."""

Segment = Callable[[Sequence[int], Sequence[int]], Mask]
"""(query slices, support slices) -> mask (query slices, Y, X) made from those support slices alone."""


@dataclass(frozen=True)
class Split:
    """One fold: who trains, who is the annotated scan, who is segmented."""

    name: str
    train: tuple[str, ...]
    support: str
    queries: tuple[str, ...]


def splits(ids: Sequence[str], n: int = 5) -> tuple[Split, ...]:
    """Return the papers' folds of sorted ids: equal parts in order; the support is the next id, circularly.

    So scans 0-3 of 20 are the queries of fold 0, scan 4 its support, and the other 15 train; the last fold's
    support is the first id. Ids are taken in the order given, which must be that of the data set.

    Raises:
        ConfigError: not more scans than folds, fewer than two folds, or repeated ids.

    Example:
        >>> s = splits([str(i) for i in range(20)])[4]
        >>> s.queries, s.support, len(s.train)
        (('16', '17', '18', '19'), '0', 15)
    """
    if len(set(ids)) != len(ids) or n < 2 or len(ids) < n + 1:
        raise ConfigError(
            f"{n} folds of {len(ids)} scans: expected two or more, and more distinct scans than that"
        )
    bounds = [round(k * len(ids) / n) for k in range(n + 1)]
    out = []
    for k in range(n):
        queries = tuple(ids[bounds[k] : bounds[k + 1]])
        support = ids[bounds[k + 1] % len(ids)]
        train = tuple(i for i in ids if i != support and i not in queries)
        out.append(Split(str(k), train, support, queries))
    return tuple(out)


def references(slices: Sequence[int], at: Sequence[Fraction] = REFERENCES) -> tuple[int, ...]:
    """Return the slices Z[int(p len(Z))] for p of 1/6, 1/2, 5/6, of the support's slices Z with the organ.

    Raises:
        DataError: no slice at all.
    """
    if not slices:
        raise DataError("the support scan does not show the organ; choose another")
    return tuple(slices[int(p * len(slices))] for p in at)


def part(z: int, first: int, last: int, n: int = len(REFERENCES)) -> int:
    """Return which of `n` parts of first..last slice z lies in: floor((z - first) / ((last - first) / n)).

    Clipped to 0 ... n - 1, so that the last slice is of the last part; a range of one slice is of the first.

    Example:
        >>> [part(z, 10, 19) for z in (10, 12, 13, 15, 16, 19, 25)]
        [0, 0, 1, 1, 2, 2, 2]
    """
    if last == first:
        return 0
    return min(max((z - first) * n // (last - first), 0), n - 1)


def shown(mask: Mask) -> list[int]:
    """Return the slices of a mask (Z, Y, X) with at least one voxel."""
    return [int(z) for z in np.flatnonzero(mask.any(axis=(1, 2)))]


def ep1(segment: Segment, support: Mask, truth: Mask, *, nearest: int = 0) -> Overlap:
    """Return the overlap by the official rule: slice range and thirds are taken from the query's TRUTH.

    Each third of the query's range is segmented from one reference slice of the support; slices outside the
    range are not scored. It tells more than is known in use; compare methods with it, not what to expect.

    Args:
        segment: what is tested.
        support: (Z, Y, X) the organ in the support scan.
        truth: (Z, Y, X) the organ in the query scan.
        nearest: instead of one reference for each third, so many of all slices that show the organ, those at
            the nearest share of its range. 0: the official rule.

    Raises:
        DataError: the organ is in none of the support's, or of the query's, slices.
    """
    given = shown(support)
    reference = references(given)
    first, last = _range(truth)
    parts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for z in range(first, last + 1):
        share = Fraction(z - first, max(last - first, 1))
        chosen = _near(given, share, nearest) if nearest else (reference[part(z, first, last)],)
        parts[chosen].append(z)
    counts = np.zeros(3, np.int64)
    for chosen, slices in parts.items():
        found = overlap(truth[slices], segment(slices, chosen))
        counts += (found.both, found.prediction_only, found.truth_only)
    return Overlap(*(int(c) for c in counts))


def _near(slices: Sequence[int], share: Fraction, n: int) -> tuple[int, ...]:
    """Return the `n` of rising slices nearest to a share of their range, in order."""
    at = slices[0] + share * (slices[-1] - slices[0])
    return tuple(sorted(sorted(slices, key=lambda z: abs(z - at))[:n]))


def within(prediction: Mask, truth: Mask) -> Overlap:
    """Return the overlap on the slices of the truth's range alone: EP1's range for a whole volume's mask."""
    first, last = _range(truth)
    return overlap(truth[first : last + 1], prediction[first : last + 1])


def ep2(prediction: Mask, truth: Mask) -> Overlap:
    """Return the overlap on every slice: nothing of the query is known beforehand."""
    return overlap(truth, prediction)


def everywhere(segment: Segment, support: Mask, n_slices: int) -> Mask:
    """Return the mask of the 3-reference rule without the truth: every slice, by its third of the scan.

    The floor that knowing nothing of where the organ lies starts from.
    """
    reference = references(shown(support))
    parts = [[z for z in range(n_slices) if part(z, 0, n_slices - 1) == k] for k in range(len(reference))]
    return np.concatenate([segment(p, [r]) for p, r in zip(parts, reference, strict=True) if p])


def copied(support: Mask) -> Segment:
    """Return the baseline without any model: the support's own mask is the answer.

    A query slice takes the mask of the given support slice; of several, of the one at the nearest share of
    their number.
    """

    def segment(slices: Sequence[int], given: Sequence[int]) -> Mask:
        share = np.linspace(0, len(given) - 1, len(slices)).round().astype(int)
        return support[[given[int(i)] for i in share]]

    return segment


def copied_volume(support: Mask, n_slices: int) -> Mask:
    """Return the same baseline for EP2: slices at equal share of the scan, (n_slices, Y, X)."""
    at = ((np.arange(n_slices) + 0.5) * len(support) / n_slices).astype(int)
    return np.asarray(support[np.minimum(at, len(support) - 1)])


def excluded(label: NDArray[np.integer], values: Sequence[int]) -> list[int]:
    """Return the slices that setting 2 leaves out of training: with ANY of the values (OR, not AND).

    Args:
        label: (Z, Y, X).
        values: label values of the organs to be found later.
    """
    return shown(np.isin(label, list(values)))


def _range(truth: Mask) -> tuple[int, int]:
    slices = shown(truth)
    if not slices:
        raise DataError("the organ is not in the query scan, so that EP1 has no slice range; leave it out")
    return slices[0], slices[-1]
