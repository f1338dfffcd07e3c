"""What names and tables tell: patients and sites of cases, left and right of classes."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from seguro.core.errors import DataError
from seguro.core.files import MAX_JSON_BYTES, read_checked, read_json
from seguro.core.types import Split

PATIENTS_FILE = "patients.csv"
ANNOTATED_FILE = "annotated.json"

_PATIENT = (
    re.compile(r"^(patient\d+)_frame\d+$", re.I),  # ACDC: two phases of one heart
    re.compile(r"^(vol\d+)_", re.I),  # slices of a volume
    re.compile(r"^(image_\d+)[LR]$", re.I),  # CHASE: two eyes
)
_SITE = re.compile(r"^(site[^_]+)_", re.I)
_SIDES = (("left", "right"), ("lh", "rh"), ("l", "r"))
_TWINS = frozenset(
    """accumbens, accumbens area, acetabulum, adrenal, adrenal gland, amygdala, ankle, arm, autochthon,
    breast, caudate, caudate nucleus, cerebellar hemisphere, cerebellum cortex, cerebellum exterior,
    cerebellum white matter, cerebral cortex, cerebral hemisphere, cerebral white matter, clavicle, clavicula,
    cochlea, ear, elbow, eye, eyeball, femoral head, femur, fibula, foot, globe, gluteus maximus,
    gluteus medius, gluteus minimus, hand, hemisphere, hip, hip bone, hippocampus, humeral head, humerus,
    iliopsoas, ilium, inner ear, kidney, knee, lacrimal gland, lateral ventricle, leg, lens, lung, mandible,
    mastoid, nucleus accumbens, optic nerve, ovary, pallidum, parotid, parotid gland, patella, psoas, putamen,
    radius, retina, rib, scapula, shoulder, submandibular gland, temporal lobe, testicle, testis, thalamus,
    thalamus proper, tibia, tmj, tonsil, ulna, ureter, ventral dc, wrist""".replace("\n    ", " ").split(", ")
)
"""Organs of which the left one is the mirror image of the right one. Ventricles and atria of the heart, lobes
of lung and liver, and most vessels are not: there the sides differ in more than place."""


@dataclass(frozen=True)
class Person:
    """Patient and site of a case, and its split where the table says so."""

    patient: str
    site: str
    split: Split | None = None


def person(case: str, site: str | None, table: dict[str, Person]) -> Person:
    """Return patient and site of a case: from the table, else from its name, else the case itself at site1.

    Example:
        >>> person("patient007_frame01", None, {})
        Person(patient='patient007', site='site1', split=None)
    """
    prefix = _SITE.match(case)
    named = site or (prefix.group(1) if prefix else "site1")
    if case in table:
        entry = table[case]
        return Person(entry.patient, entry.site or named, entry.split)
    for pattern in _PATIENT:
        if match := pattern.match(case):
            return Person(match.group(1), named)
    return Person(case, named)


def read_patients(path: Path) -> dict[str, Person]:
    """Return patient, site and split by case id from a CSV file.

    Its columns are id, patient and, if wanted, site, split.

    Raises:
        DataError: unreadable, other columns, an id twice, an empty cell, or a split that is not known.
    """
    try:
        text = read_checked(path, limit=MAX_JSON_BYTES).data.decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    columns = set(rows[0]) if rows else set()
    if not {"id", "patient"} <= columns:
        raise DataError(
            f"{path}: columns {sorted(str(c) for c in columns)}, expected id,patient and perhaps site, split"
        )
    out: dict[str, Person] = {}
    for number, row in enumerate(rows, start=2):
        case, patient = (row["id"] or "").strip(), (row["patient"] or "").strip()
        if not case or not patient:
            raise DataError(f"{path}: line {number} has an empty id or patient")
        if case in out:
            raise DataError(f"{path}: line {number} names case {case!r} a second time")
        split = (row.get("split") or "").strip() or None
        if split is not None and split not in get_args(Split):
            raise DataError(
                f"{path}: line {number} has split {split!r}, expected {', '.join(get_args(Split))}"
            )
        out[case] = Person(patient, (row.get("site") or "").strip(), cast(Split | None, split))
    return out


def read_annotated(path: Path, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the annotated foreground classes by case id, in class order.

    Raises:
        DataError: not an object of lists, or a class that the task does not have.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise DataError(f'{path}: expected an object such as {{"case_01": ["liver"]}}')
    for case, listed in content.items():
        unknown = sorted({str(n) for n in listed} - set(names))
        if unknown:
            raise DataError(
                f"{path}: case {case!r} names unknown classes {unknown}; the task has {list(names)}"
            )
    return {case: tuple(n for n in names if n in listed) for case, listed in content.items()}


def lateral_pairs(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the (left, right) pairs among class names: equal but for left and right, lh and rh, l and r.

    Only organs that are known to be mirror twins are paired, since mirroring exchanges the two of a pair.

    Example:
        >>> lateral_pairs(("liver", "right kidney", "left kidney", "left ventricle", "right ventricle"))
        (('left kidney', 'right kidney'),)
    """
    words = {name: _words(name) for name in names}
    pairs = []
    for left, right in _SIDES:
        for a in names:
            if left not in words[a] or _organ(words[a]) not in _TWINS:
                continue
            swapped = [right if w == left else w for w in words[a]]
            pairs += [(a, b) for b in names if words[b] == swapped]
    return tuple(pairs)


def has_side(name: str) -> bool:
    """Return whether a class name says left or right, lh or rh, l or r, as a word of its own."""
    return any(side in _words(name) for pair in _SIDES for side in pair)


def _words(name: str) -> list[str]:
    return re.split(r"[\s_\-.]+", name.lower())


def _organ(words: list[str]) -> str:
    """Return the words without sides and numbers: "rib" of rib_left_1."""
    sides = {side for pair in _SIDES for side in pair}
    kept = " ".join(w for w in words if w not in sides and not w.isdigit())
    singular = kept.removesuffix("s")
    return singular if singular in _TWINS else kept
