"""The same image in two places where it must not be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from seguro.data.inspection import Inspection
from seguro.data.layouts import Problem
from seguro.data.layouts.naming import Person


@dataclass(frozen=True)
class Leak:
    """Two cases with equal voxels; the problem is attached to the one that should go."""

    problem: Problem
    severe: bool
    """True: scores would be wrong. False: worth knowing."""


def find_leaks(inspections: Sequence[Inspection], people: Mapping[str, Person]) -> Iterator[Leak]:
    """Yield every repeated image: an error across splits or patients, a warning within a patient.

    Args:
        inspections: of all cases; those with errors are passed over.
        people: patient and site by case id.
    """
    same: dict[str, list[Inspection]] = defaultdict(list)
    for inspection in inspections:
        if inspection.content and not inspection.errors:
            same[inspection.content].append(inspection)
    for group in same.values():
        # a test case stays and the others go; otherwise the first by name stays
        keep, *others = sorted(group, key=lambda i: (i.found.split != "test", i.found.id))
        for other in others:
            yield _leak(keep, other, people)


def _labels_differ(a: Inspection, b: Inspection) -> str:
    both = any(a.labels) and any(b.labels)
    return ", but other labels" if both and a.label_content != b.label_content else ""


def _leak(keep: Inspection, other: Inspection, people: Mapping[str, Person]) -> Leak:
    a, b = people[keep.found.id], people[other.found.id]
    text = f"the same image as {keep.found.id} (equal voxels{_labels_differ(keep, other)})"
    if keep.found.split != other.found.split:
        text = f"{text}, in two splits ({keep.found.split} and {other.found.split}); remove one of them"
        return Leak(Problem("leak", other.found.id, text), True)
    if a.patient != b.patient:
        text = (
            f"{text}, under two patients ({a.patient} and {b.patient}); remove one, or say in patients.csv "
            "that they are one patient"
        )
        return Leak(Problem("duplicate", other.found.id, text), True)
    if a.site != b.site:
        return Leak(Problem("leak", other.found.id, f"{text}, at two sites ({a.site} and {b.site})"), False)
    return Leak(Problem("leak", other.found.id, f"{text}, of the same patient"), False)
