"""Which files make up which case: single files, lists, folders, or cases of a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import sha256_file
from seguro.core.types import Case, Manifest, ThreeF, Volume, Warnings
from seguro.data.formats import SUFFIXES, read_image, split_name
from seguro.data.formats.dicom.reading import holds_dicom
from seguro.data.manifest import paths as case_paths
from seguro.data.manifest import read_case, repaired

Repair = Literal["nan=min"]
_CHANNEL = re.compile(r"^(?P<stem>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Item:
    """One case to predict."""

    id: str
    files: tuple[Path, ...]
    """One file with all channels, or one per channel in order."""
    read: Callable[[], Volume]
    """Reads and checks the files; DataError where they cannot be used."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What besides the files decides what `read` returns; JSON values."""
    source: str = ""
    """The data set it is of; empty where it is only a file."""


def from_paths(
    inputs: Path | Sequence[Path],
    *,
    channels: int,
    spacing: ThreeF | None = None,
    repair: Repair | None = None,
    warnings: Warnings | None = None,
) -> list[Item]:
    """Return the cases in a file, a list of files, or a folder, sorted by id.

    Files named `<id>_0000`, `<id>_0001`, ... are channels of one case if the model has several channels; for
    a model of one channel the ending is dropped where every file has it.

    Args:
        inputs: what to predict. A folder is not searched below its first level.
        channels: of the model.
        spacing: (z, y, x), for files that state none.
        repair: "nan=min" puts the channel's smallest finite value where a voxel is NaN or infinite.
        warnings: told of files in a folder that are no images.

    Raises:
        ConfigError: two files with the same case id.
        DataError: nothing there, or no image in a folder.
    """
    given = [inputs] if isinstance(inputs, Path) else list(inputs)
    files = [f for path in given for f in (_listed(path, warnings) if path.is_dir() else [path])]
    if not files:
        raise DataError(
            f"{', '.join(map(str, given)) or 'no path given'}: no image; known are {', '.join(SUFFIXES)}"
        )
    groups = _grouped(files, channels)
    return [_item(name, members, channels, spacing, repair) for name, members in sorted(groups.items())]


def _listed(folder: Path, warnings: Warnings | None) -> list[Path]:
    """Return the images in a folder, sorted; broken links and the like are kept, to fail by name."""
    out = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if split_name(path)[1]:
            out.append(path)
        elif warnings:
            warnings.add(
                f"{folder}: files that are no images were passed over (e.g. {path.suffix or path.name})"
            )
    if not out and holds_dicom(folder):
        raise DataError(
            f"{folder}: holds DICOM files; bring its series into images first: seguro import dicom {folder}"
        )
    if not out:
        raise DataError(f"{folder}: no image in this folder (known are {', '.join(SUFFIXES)}); give another")
    return out


def _grouped(files: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    """Return the files of each case."""
    stems = [(split_name(f)[0], f) for f in files]
    numbered = {stem: m for stem, _ in stems if (m := _CHANNEL.match(stem))}
    if channels == 1 and not all(s in numbered and numbered[s]["channel"] == "0000" for s, _ in stems):
        numbered = {}
    groups: dict[str, list[Path]] = {}
    for stem, path in stems:
        groups.setdefault(numbered[stem]["stem"] if stem in numbered else stem, []).append(path)
    for name, members in groups.items():
        names = [split_name(m)[0] for m in members]
        if len(set(names)) < len(names) or (len(members) > 1 and name in names):
            both = " and ".join(map(str, members[:2]))
            raise ConfigError(
                f"{both} are both case {name!r}; predict them into different folders or rename one"
            )
    return {name: sorted(members, key=lambda p: p.name) for name, members in groups.items()}


def _item(
    name: str, files: Sequence[Path], channels: int, spacing: ThreeF | None, repair: Repair | None
) -> Item:
    read = partial(_read, name, tuple(files), channels, spacing, repair)
    options = {"spacing": spacing, "repair": repair}
    return Item(name, tuple(files), read, {k: v for k, v in options.items() if v})


def _read(
    name: str, files: tuple[Path, ...], channels: int, spacing: ThreeF | None, repair: Repair | None
) -> Volume:
    if len(files) > 1 or name != split_name(files[0])[0]:
        found = [str(split_name(f)[0][-4:]) for f in files]
        expected = [f"{i:04d}" for i in range(channels)]
        if found != expected:
            raise DataError(
                f"{files[0].parent / name}: channels {', '.join(found)} where the model expects "
                f"{', '.join(expected)}; give one file per channel"
            )
    return _finite(read_image(files, channels=channels, spacing=spacing), files[0], repair)


def _finite(volume: Volume, path: Path, repair: Repair | None) -> Volume:
    """Return the volume without NaN and infinity, repaired where that was asked for."""
    bad = [int(c.size - np.isfinite(c).sum()) for c in volume.array]
    if not any(bad):
        return volume
    where = ", ".join(f"{n} in channel {i}" for i, n in enumerate(bad) if n)
    if any(n == c.size for n, c in zip(bad, volume.array, strict=True)):
        raise DataError(f"{path}: NaN or infinite voxels ({where}), and a channel without any number")
    if repair is None:
        raise DataError(
            f"{path}: NaN or infinite voxels ({where}) where the model expects numbers; export it again, or "
            "put the channel's smallest value there with --repair nan=min"
        )
    return Volume(repaired(volume.array), volume.grid, volume.source, volume.sha256, volume.notes)


def from_manifest(manifest: Manifest, cases: Iterable[Case]) -> list[Item]:
    """Return cases of a checked data set, sorted by id, read as training reads them."""
    out, source = [], f"data set {manifest.name}"
    for case in sorted(cases, key=lambda c: c.id):
        files = tuple(case_paths(case, manifest)[0])
        options = {"repair": manifest.repair, "spacing": case.spacing, "unit": case.unit}
        out.append(Item(case.id, files, partial(read_case, case, manifest), options, source))
    return out


def readable(item: Item) -> bool:
    """Return whether the files of a case could be read: one that is out of reach may come back unchanged."""
    try:
        for path in item.files:
            sha256_file(path)
    except OSError:
        return False
    return True


def refuse_unsafe(case: str) -> None:
    """Refuse a case id that would name a file outside the output folder, or a hidden one."""
    if not case or case.startswith(".") or any(c in case for c in "/\\\0"):
        raise DataError(f"case id {case!r} cannot name a file; rename the input")
