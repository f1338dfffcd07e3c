"""Folds of the training cases: by patient, by site, or as the data set's own `splits_final.json` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from seguro.core.errors import DataError
from seguro.core.files import read_json
from seguro.core.seeds import generator
from seguro.core.types import Case
from seguro.data.plan import Fold

SPLITS = "splits_final.json"


def by_patient(cases: Sequence[Case], *, n: int, seed: int) -> tuple[Fold, ...]:
    """Return up to `n` folds over the labelled cases; all scans of a patient are on one side of each.

    Unlabelled scans go into training, except those of held-out patients. With one patient there is one fold,
    which validates on its own training cases. Where nothing is labelled the folds are over all cases.
    """
    labelled = [c for c in cases if c.label is not None] or list(cases)
    unlabelled = [c for c in cases if c not in labelled]
    patients = sorted({c.patient for c in labelled})
    order = [patients[i] for i in generator(seed, "folds").permutation(len(patients))]
    if len(patients) < 2:
        everything = tuple(c.id for c in labelled)
        return (Fold(name="0", train=(*everything, *(c.id for c in unlabelled)), validation=everything),)
    folds = []
    for k in range(min(n, len(patients))):
        held_out = set(order[k :: min(n, len(patients))])
        folds.append(_fold(str(k), labelled, unlabelled, partial(_has_patient, held_out)))
    return tuple(folds)


def by_site(cases: Sequence[Case]) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """Return one fold per site that has labels, which validates on that site; none when there is one site.

    A site with a patient who has scans elsewhere too, and so would be on both sides, gets no fold; the second
    value names such a patient for each of these sites.
    """
    labelled = [c for c in cases if c.label is not None]
    unlabelled = [c for c in cases if c.label is None]
    patient = {c.id: c.patient for c in cases}
    folds, skipped = [], {}
    sites = sorted({c.site for c in labelled})
    for site in sites if len(sites) > 1 else []:
        fold = _fold(f"site-{site}", labelled, unlabelled, partial(_is_at, site))
        shared = {patient[i] for i in fold.train} & {patient[i] for i in fold.validation}
        if shared:
            skipped[site] = min(shared)
        else:
            folds.append(fold)
    return tuple(folds), skipped


def _fold(
    name: str, labelled: Sequence[Case], unlabelled: Sequence[Case], held_out: Callable[[Case], bool]
) -> Fold:
    return Fold(
        name=name,
        train=tuple(c.id for c in (*labelled, *unlabelled) if not held_out(c)),
        validation=tuple(c.id for c in labelled if held_out(c)),
    )


def _has_patient(patients: set[str], case: Case) -> bool:
    return case.patient in patients


def _is_at(site: str, case: Case) -> bool:
    return case.site == site


def from_file(path: Path, cases: Sequence[Case]) -> tuple[Fold, ...]:
    """Return the folds of an nnU-Net `splits_final.json`.

    Unlabelled cases that the file does not name go into training, except those of held-out patients.

    Raises:
        DataError: not a list of train/val lists, unknown ids, or a patient on both sides.
    """
    value = read_json(path)
    known = {c.id: c for c in cases}
    if not isinstance(value, list) or not all(
        isinstance(f, dict) and {"train", "val"} <= set(f) for f in value
    ):
        raise DataError(f"{path}: expected a list of objects with 'train' and 'val'")
    named = {str(i) for entry in value for i in (*entry["train"], *entry["val"])}
    more = [c for c in cases if c.label is None and c.id not in named]
    folds = []
    for k, entry in enumerate(value):
        train, validation = tuple(map(str, entry["train"])), tuple(map(str, entry["val"]))
        unknown = sorted({*train, *validation} - set(known))
        if unknown:
            raise DataError(f"{path}: fold {k} names {len(unknown)} unknown cases, first {unknown[0]!r}")
        shared = {known[i].patient for i in train} & {known[i].patient for i in validation}
        if shared:
            raise DataError(f"{path}: fold {k} has patient {sorted(shared)[0]} in training and validation")
        held_out = {known[i].patient for i in validation}
        train = (*train, *(c.id for c in more if c.patient not in held_out))
        folds.append(Fold(name=str(k), train=train, validation=validation))
    return tuple(folds)
