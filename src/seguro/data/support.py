"""The support artefact: annotated examples in an append-only chain, each entry named by its content.

`ROOT/support/<hash>/` holds one example: `support.json` (classes, grid, hashes, the entry before it) and
`label.npy`; images lie in `ROOT/support/images/<hash>.npy`, once however often they are corrected. Nothing is
ever changed or removed: undo is to go on from the entry before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import atomic, read_checked, read_json, sha256_json, write_json
from seguro.core.types import IGNORE, Classes, Grid, Record, Three, Unit

FOLDER = "support"
FORMAT = 1
MIN_PREFIX = 6
"""Fewest characters of a hash that name an entry."""


@dataclass(frozen=True)
class Shot:
    """One annotated example on its own canonical grid.

    image: (C, Z, Y, X) float32, raw intensities. label: (Z, Y, X) uint8 class indices of the bank, IGNORE
    where nobody looked.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    grid: Grid
    sources: tuple[str, ...] = ()
    """SHA-256 of the files it was read from."""


class Entry(Record):
    """What `support.json` says."""

    format: int = FORMAT
    parent: str | None
    """The entry before it; None for the first."""
    image: str
    """SHA-256 of the stored image, which is also its name."""
    label: str
    classes: Classes
    shape: Three
    affine: tuple[tuple[float, ...], ...]
    unit: Unit
    sources: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Name of the entry: over its content and, through `parent`, over all before it."""
        return sha256_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Bank:
    """All examples up to one entry; those of one image are one, the later annotation over the earlier."""

    hash: str
    classes: Classes
    shots: tuple[Shot, ...]
    chain: tuple[str, ...]
    """Entries from the first to this one."""

    @property
    def parent(self) -> str | None:
        """The entry before this one."""
        return self.chain[-2] if len(self.chain) > 1 else None


def add(root: Path, shot: Shot, classes: Classes, *, parent: str | None = None) -> str:
    """Append an example to the chain that ends in `parent` and return its hash; the same one is kept once.

    Args:
        root: folder in which `support/` lies.
        shot: the example.
        classes: of its label; those of the whole chain.
        parent: entry that it follows; None begins a chain.

    Raises:
        ConfigError: other classes than the chain's.
        DataError: no such parent, or a damaged one.
    """
    if parent is not None:
        _refuse_other(_entry(root, parent).classes, classes, parent)
    entry = _entry_of(shot, classes, parent)
    folder = root / FOLDER / entry.hash
    if not (folder / "support.json").exists():
        image = _image_path(root, entry)
        if not image.exists():
            _save(image, shot.image)
        _save(folder / "label.npy", shot.label)
        write_json(folder / "support.json", entry.model_dump(mode="json"))
    return entry.hash


def load(root: Path, name: str) -> Bank:
    """Return the examples of the chain that ends in `name`, checked against their hashes.

    Raises:
        DataError: an entry is missing or damaged.
    """
    chain: list[tuple[str, Entry]] = []
    at: str | None = name
    while at is not None:
        entry = _entry(root, at)
        chain.append((at, entry))
        at = entry.parent
    chain.reverse()
    images: dict[str, NDArray[np.float32]] = {}
    shots: tuple[Shot, ...] = ()
    for key, entry in chain:
        if entry.image not in images:
            images[entry.image] = _load(_image_path(root, entry), entry.image)
        label = _load(root / FOLDER / key / "label.npy", entry.label)
        grid = Grid(entry.shape, np.array(entry.affine), entry.unit)
        shots = _joined(shots, Shot(images[entry.image], label, grid, entry.sources))
    return Bank(name, chain[-1][1].classes, shots, tuple(k for k, _ in chain))


def extended(bank: Bank | None, shot: Shot, classes: Classes) -> Bank:
    """Return a bank with one more example, in memory; named as `add` would name it.

    The bank before is unchanged: to undo is to go on with it.

    Raises:
        ConfigError: other classes than the bank's.
    """
    if bank is not None:
        _refuse_other(bank.classes, classes, bank.hash)
    before = bank or Bank("", classes, (), ())
    key = _entry_of(shot, classes, bank.hash if bank else None).hash
    return Bank(key, classes, _joined(before.shots, shot), (*before.chain, key))


def same_image(a: Shot, b: Shot) -> bool:
    """Return whether two examples are of one image."""
    return a.image is b.image or (a.image.shape == b.image.shape and bool((a.image == b.image).all()))


def _joined(shots: tuple[Shot, ...], shot: Shot) -> tuple[Shot, ...]:
    """Return the examples and one more; on an image that is there the later annotation wins."""
    for i, before in enumerate(shots):
        if same_image(before, shot):
            label = np.where(shot.label == IGNORE, before.label, shot.label).astype(np.uint8)
            sources = (*before.sources, *(s for s in shot.sources if s not in before.sources))
            return (*shots[:i], replace(before, label=label, sources=sources), *shots[i + 1 :])
    return (*shots, shot)


def _refuse_other(ours: Classes, theirs: Classes, name: str) -> None:
    if ours != theirs:
        raise ConfigError(
            f"support {name[:12]} annotates {', '.join(ours.foreground)}, the new example "
            f"{', '.join(theirs.foreground)}; begin another support with --support"
        )


def _entry_of(shot: Shot, classes: Classes, parent: str | None) -> Entry:
    return Entry(
        parent=parent,
        image=_digest(shot.image),
        label=_digest(shot.label),
        classes=classes,
        shape=shot.grid.shape,
        affine=tuple(tuple(float(v) for v in row) for row in shot.grid.affine),
        unit=shot.grid.unit,
        sources=shot.sources,
    )


def find(root: Path, prefix: str) -> str:
    """Return the one entry whose hash begins with `prefix`.

    Raises:
        DataError: none, or several.
    """
    folder = root / FOLDER
    known = sorted(p.parent.name for p in folder.glob("*/support.json"))
    found = [k for k in known if len(prefix) >= MIN_PREFIX and k.startswith(prefix)]
    if len(found) != 1:
        raise DataError(
            f"{folder}: {len(found) or 'no'} support{'s' * (len(found) > 1)} named {prefix!r} "
            f"({len(known)} there); give an image with --support and --support-label, or {MIN_PREFIX} or "
            "more characters of a hash"
        )
    return found[0]


def _entry(root: Path, name: str) -> Entry:
    path = root / FOLDER / name / "support.json"
    if not path.exists():
        raise DataError(f"{path}: no such support; give an image with --support and --support-label")
    try:
        entry = Entry.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path}: not a support that this version reads ({error})") from error
    if entry.hash != name:
        raise DataError(f"{path}: its content does not give its name; it was changed: restore it")
    return entry


def _image_path(root: Path, entry: Entry) -> Path:
    return root / FOLDER / "images" / f"{entry.image}.npy"


def _digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 over type, shape and values of an array."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _save(path: Path, array: NDArray[Any]) -> None:
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)


def _load(path: Path, digest: str) -> NDArray[Any]:
    from io import BytesIO

    try:
        array: NDArray[Any] = np.load(BytesIO(read_checked(path).data), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path}: not an array ({error}); restore it or give the support again") from error
    if _digest(array) != digest:
        raise DataError(f"{path}: its content is not what support.json says; restore it")
    return array


def summary(bank: Bank, axis: int) -> Mapping[str, Any]:
    """Return what a listing says of a bank, as JSON values: hash, classes, slices annotated per example."""
    return {
        "hash": bank.hash,
        "classes": list(bank.classes.foreground),
        "annotated_slices": [len(annotated_slices(s.label, axis)) for s in bank.shots],
    }


def annotated_slices(label: NDArray[np.uint8], axis: int) -> list[int]:
    """Return the slices along `axis` of a label (Z, Y, X) in which somebody looked at any voxel."""
    plane = tuple(a for a in range(3) if a != axis)
    return [int(z) for z in np.flatnonzero((label != IGNORE).any(axis=plane))]
