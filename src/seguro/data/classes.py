"""The classes of a task, from a description or from the label values that occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Classes
from seguro.data.inspection import Inspection
from seguro.data.layouts import Listing, Problem
from seguro.data.layouts.msd import make_classes
from seguro.data.layouts.naming import lateral_pairs
from seguro.data.manifest import MAX_MASKS, regions_of_masks

MAX_VALUES = 254
"""Largest number of classes; a label map with more values is an image."""


def decide(
    listing: Listing, inspections: Sequence[Inspection], names: tuple[str, ...]
) -> tuple[Classes | None, list[Problem]]:
    """Return the classes of the task, None without labels, and warnings on how they were found.

    Args:
        listing: of the folder.
        inspections: of its cases.
        names: foreground names from --classes: "name", in rising order of the values, or "value=name".

    Raises:
        ConfigError: names where the data set has its own, or not as many as there are classes.
        DataError: more values than a label map can have, or too many overlapping masks.
    """
    if listing.classes is not None:
        if names:
            raise ConfigError("--classes: dataset.json names the classes already; change them there")
        return listing.classes, []
    labelled = [i for i in inspections if i.labels and any(i.labels)]
    if not labelled:
        return None, []
    values: Counter[int] = Counter()
    for inspection in labelled:
        values.update(inspection.values)
    if listing.masks:
        return _of_masks(listing, dict(values), names)
    return _of_values(listing.root, values, names)


def _of_values(
    root: Path, values: Counter[int], names: tuple[str, ...]
) -> tuple[Classes | None, list[Problem]]:
    present = sorted(v for v in values if v != 0)
    if any("=" in n for n in names):
        return make_classes(root, [(0, "background"), *sorted(_parse(n) for n in names)]), []
    if len(present) > MAX_VALUES:
        raise DataError(f"{root}: the labels hold {len(present)} different values; are these images?")
    if not present:
        return None, [Problem("label", "", "all labels are empty (0 everywhere)")]
    if names and len(names) != len(present):
        raise ConfigError(
            f"--classes names {len(names)} classes ({', '.join(names)}), the labels hold the "
            f"values {present}; "
            "give one name per value, or value=name"
        )
    chosen = names or (("foreground",) if len(present) == 1 else tuple(f"class {v}" for v in present))
    pairs = [(0, "background"), *zip(present, chosen, strict=True)]
    if names:
        return make_classes(root, pairs), []
    text = (
        f"class names are not given; label values {present} are called {', '.join(chosen)} "
        "(--classes names them)"
    )
    return make_classes(root, pairs), [Problem("label", "", text)]


def _parse(text: str) -> tuple[int, str]:
    value, name = text.split("=", 1)
    if not value.strip().isdigit() or not name.strip():
        raise ConfigError(f"--classes: {text!r} is not value=name, as in 1=liver")
    return int(value), name.strip()


def _of_masks(
    listing: Listing, combinations: dict[int, int], names: tuple[str, ...]
) -> tuple[Classes, list[Problem]]:
    """Return exclusive classes where no masks overlap, else regions and a warning with the overlaps."""
    if names and len(names) != len(listing.masks):
        raise ConfigError(
            f"--classes names {len(names)} classes, there are masks of {', '.join(listing.masks)}"
        )
    names = names or listing.masks
    overlaps = _overlaps(names, combinations)
    if not overlaps:
        pairs = list(enumerate(("background", *names)))
        return make_classes(listing.root, pairs), []
    if len(names) > MAX_MASKS:
        raise DataError(
            f"{listing.root}: {len(names)} mask folders that overlap ({overlaps[0]}); at most "
            f"{MAX_MASKS} may: "
            "join them into one label map"
        )
    classes = regions_of_masks(names, combinations)
    warning = Problem("label", "", f"masks overlap, treated as regions: {'; '.join(overlaps)}")
    return classes.model_copy(update={"pairs": lateral_pairs(classes.names)}), [warning]


def _overlaps(names: tuple[str, ...], combinations: dict[int, int]) -> list[str]:
    out = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            n = sum(c for v, c in combinations.items() if v >> i & 1 and v >> j & 1)
            if n:
                out.append(f"{names[i]} and {names[j]} share {n} voxels")
    return out


def known_values(classes: Classes) -> set[int]:
    """Return every label value that a file of this task may hold."""
    known = {v for values in classes.values for v in values} | ({0} if classes.regions else set())
    return known if classes.ignore is None else known | {classes.ignore}


def present(inspection: Inspection, mask_names: tuple[str, ...], classes: Classes) -> list[str]:
    """Return the foreground classes that occur in a case; `mask_names`: of its mask files, if any."""
    if mask_names:
        return [n for i, n in enumerate(mask_names) if any(v >> i & 1 for v in inspection.values)]
    values = classes.values if classes.regions else classes.values[1:]
    return [
        n
        for n, vs in zip(classes.foreground, values, strict=True)
        if any(inspection.values.get(v) for v in vs)
    ]
