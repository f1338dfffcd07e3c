"""Which patients of a fold keep their labels: the labelled fraction of semi-supervised training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seguro.core.errors import ConfigError
from seguro.core.files import MAX_JSON_BYTES, read_checked
from seguro.core.seeds import generator
from seguro.core.types import Case

if TYPE_CHECKING:
    from seguro.data.store import Cases

Labelled = str | int | float | Sequence[str]
"""A number of patients (3, "3"), a share of them (0.1, "0.1"), numbers by site ("A=all,B=3"; of other sites
none), or ids (a sequence, "id1,id2", "id1,", or the name of a file with one id per line)."""
MORE = "add images without labels (imagesUn), keep labels from part of the patients (--labelled 3)"
"""How a data set gets unlabelled cases."""
OTHER_SPACING = 1.1
"""Ratio of median spacings from which labelled and unlabelled cases are said to differ."""


def labelled_patients(
    wanted: Labelled, train: Sequence[Case], validation: Sequence[Case] = (), *, seed: int
) -> tuple[str, ...]:
    """Return the patients of a fold that keep their labels, sorted; all scans of a patient go together.

    They are drawn among the patients with a labelled training case. Under one seed the draws are nested: the
    three patients of "3" are among the seven of "7".

    Args:
        wanted: a number, a share in (0, 1], numbers by site, or ids.
        train: the fold's training cases.
        validation: its validation cases, only to say where an id lies.
        seed: of the draw.

    Raises:
        ConfigError: none, more than there are, or ids that are not among the fold's labelled patients.
    """
    known = sorted({c.patient for c in train if c.label is not None})
    amount = _parsed(wanted)
    if isinstance(amount, tuple):
        return _named(amount, known, train, validation)
    if isinstance(amount, dict):
        return _by_site(amount, train, seed)
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise ConfigError(f"--labelled {wanted}: a share lies above 0 and at most at 1")
        amount = max(1, round(amount * len(known)))
    if not 1 <= amount <= len(known):
        raise ConfigError(
            f"--labelled {wanted}: expected 1 to {len(known)}, the patients with labels that this fold "
            "trains on"
        )
    return _drawn(known, amount, seed)


def _drawn(known: Sequence[str], amount: int, seed: int) -> tuple[str, ...]:
    order = generator(seed, "labelled").permutation(len(known))
    return tuple(sorted(known[i] for i in order[:amount]))


def _by_site(amounts: dict[str, str], train: Sequence[Case], seed: int) -> tuple[str, ...]:
    """Return the patients of every site that is named, so many of each."""
    found: set[str] = set()
    for site, amount in amounts.items():
        known = sorted({c.patient for c in train if c.label is not None and c.site == site})
        told = f"--labelled {site}={amount}"
        if not known:
            sites = sorted({c.site for c in train if c.label is not None})
            raise ConfigError(f"{told}: no labelled patient of that site; the sites are {', '.join(sites)}")
        if amount != "all" and not (amount.isdecimal() and int(amount) <= len(known)):
            raise ConfigError(f"{told}: expected all, or 0 to {len(known)} patients")
        found.update(known if amount == "all" else _drawn(known, int(amount), seed))
    if not found:
        raise ConfigError("--labelled: no patient at all; give one site some")
    return tuple(sorted(found))


def _parsed(wanted: Labelled) -> int | float | tuple[str, ...] | dict[str, str]:
    """Return a number of patients, a share, amounts by site, or ids."""
    if isinstance(wanted, bool):
        raise ConfigError(f"--labelled {wanted}: expected a number of patients, a share, or ids")
    if isinstance(wanted, int | float):
        return wanted
    if not isinstance(wanted, str):
        return tuple(map(str, wanted))
    text = wanted.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text and all(part.count("=") == 1 for part in text.split(",")):
        return {site.strip(): amount.strip() for site, amount in (p.split("=") for p in text.split(","))}
    path = Path(text)
    if "," not in text and path.is_file():
        try:
            text = read_checked(path, limit=MAX_JSON_BYTES).data.decode("utf-8-sig").replace("\n", ",")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"--labelled {path}: not UTF-8 text; expected one patient id per line"
            ) from error
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _named(
    ids: Sequence[str], known: Sequence[str], train: Sequence[Case], validation: Sequence[Case]
) -> tuple[str, ...]:
    """Return the ids, sorted, if each is a patient with labels in the fold's training part."""
    if not ids:
        raise ConfigError("--labelled: no patient at all; name at least one")
    for name in ids:
        if name in known:
            continue
        if any(c.patient == name for c in train):
            why = "has no label"
        elif any(c.patient == name for c in validation):
            why = "is one that this fold validates on"
        elif found := next((c for c in (*train, *validation) if c.id == name), None):
            why = f"is a case of patient {found.patient}; name patients, all their scans go together"
        else:
            why = "is no patient of this fold" + (f"; it has {_some(known)}" if known else "")
        raise ConfigError(f"--labelled: {name} {why}")
    return tuple(sorted(set(ids)))


def hidden_cases(train: Sequence[Case], patients: Sequence[str]) -> frozenset[str]:
    """Return the ids of the labelled cases of other patients: their labels are kept from the run."""
    return frozenset(c.id for c in train if c.label is not None and c.patient not in patients)


def doubts(cases: Cases, *, helped: str = "") -> list[str]:
    """Return what is to be said of the training cases: classes nobody labelled, unlabelled ones unlike them.

    Opens the labels' tables of the labelled cases only.

    Args:
        cases: those of a run.
        helped: name of a method that unlabelled cases would help; it is said when there are none.
    """
    if not cases.labelled:
        return []
    found: set[int] = set()
    for i in cases.labelled:
        found |= {int(k) for k in np.unique(cases[i].locations[:, 0])}
    cases.touched.clear()
    n = len(cases.labelled)
    where = f"{n} labelled training case{'s' * (n != 1)}"
    lines = [
        f"class {name} is in none of the {where}: it cannot be learned"
        for k, name in enumerate(cases.classes.foreground)
        if k not in found
    ]
    if helped and not cases.unlabelled:
        lines.append(
            f"no unlabelled case: {helped} learns from the labelled ones alone, fully supervised; for more, "
            f"{MORE}"
        )
    if cases.unlabelled:
        ours, theirs = (
            np.median([cases.facts[i].spacing for i in part], axis=0)
            for part in (cases.labelled, cases.unlabelled)
        )
        if np.maximum(ours / theirs, theirs / ours).max() > OTHER_SPACING:
            lines.append(
                f"unlabelled cases have another spacing than labelled ones: (z, y, x) {_numbers(theirs)}, "
                f"labelled {_numbers(ours)} (medians)"
            )
    return lines


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
