"""What a layout finds in a folder before any image is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seguro.core.errors import DataError
from seguro.core.types import Classes, Split
from seguro.data.formats import split_name

Kind = Literal[
    "file",
    "geometry",
    "intensity",
    "label",
    "pair",
    "leak",
    "duplicate",
    "layout",
    "spacing",
    "patient",
    "annotation",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing, with where it was seen."""

    kind: Kind
    case: str
    """Case id, empty when it concerns the folder."""
    message: str

    def line(self) -> str:
        """Return the problem as one text."""
        return f"{self.case}: {self.message}" if self.case else self.message


@dataclass(frozen=True)
class Found:
    """One case as the folder names it."""

    id: str
    images: tuple[Path, ...]
    """Relative to the folder: one file, or one per channel."""
    labels: tuple[Path | None, ...] = ()
    """Nothing, one label map, or one mask per entry of the listing's `masks`."""
    split: Split = "train"
    site: str | None = None


@dataclass(frozen=True)
class Listing:
    """All cases of a folder, and what the folder says of its classes and channels."""

    root: Path
    layout: Literal["msd", "nnunet", "folder", "raster"]
    found: tuple[Found, ...]
    channels: tuple[str, ...] = ()
    """Empty when only the files can tell."""
    classes: Classes | None = None
    """None when only the label values can tell."""
    masks: tuple[str, ...] = ()
    """Class names when each class has mask files of its own."""
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    sources: tuple[Path, ...] = ()
    """Description files read, relative to the folder."""
    nominal: bool = False
    """Whether the description says that the spacing is nominal."""


@dataclass
class Findings:
    """Collects problems while a folder is listed."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, kind: Kind, case: str, message: str) -> None:
        """Add an error."""
        self.errors.append(Problem(kind, case, message))

    def warn(self, kind: Kind, case: str, message: str) -> None:
        """Add a warning."""
        self.warnings.append(Problem(kind, case, message))


def inside(root: Path, name: str, source: str) -> Path:
    """Return `name` as a path relative to `root`.

    Raises:
        DataError: the path is absolute or leaves `root`: a description file must not point elsewhere.
    """
    clean = os.path.normpath(name)
    if "\x00" in name or Path(clean).is_absolute() or clean.startswith(".."):
        raise DataError(
            f"{root / source}: names the file {name!r}, which lies outside {root}; refused: "
            "a data set may only name files of its own folder"
        )
    return Path(clean)


def files(root: Path, folder: str) -> dict[str, Path]:
    """Return the readable files directly in a subfolder by stem, in stable order; hidden files are left out.

    Raises:
        DataError: two files of the same stem.
    """
    out: dict[str, Path] = {}
    path = root / folder
    if not path.is_dir():
        return out
    for name in sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith(".")):
        stem, suffix = split_name(name)
        if not suffix:
            continue
        if stem in out:
            raise DataError(f"{path}: {out[stem].name} and {name} name the same case; remove one of them")
        out[stem] = Path(folder) / name
    return out


def refuse_repeats(found: Iterable[Found], root: Path) -> None:
    """Raise DataError when two cases have the same id."""
    seen: dict[str, Found] = {}
    for case in found:
        if case.id in seen:
            both = f"{seen[case.id].images[0]} and {case.images[0]}"
            raise DataError(f"{root}: case id {case.id!r} occurs twice ({both}); rename one of the files")
        seen[case.id] = case


def some(names: Sequence[str], n: int = 5) -> str:
    """Return the first `n` names and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
