"""The ten tasks of the Medical Segmentation Decathlon (Antonelli et al. 2022), as downloaded by the user.

They are in a layout that is read as it is; what is done here is to unpack the archive safely, drop the hidden
files that macOS put into it, and compare what is there with what each task should hold.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from seguro.core.errors import DataError
from seguro.core.files import read_json
from seguro.data.importers import Imported


@dataclass(frozen=True)
class Task:
    """What a task should hold."""

    name: str
    channels: int
    classes: int
    """Foreground classes."""
    n_train: int
    n_test: int


TASKS = {
    1: Task("BrainTumour", 4, 3, 484, 266),
    2: Task("Heart", 1, 1, 20, 10),
    3: Task("Liver", 1, 2, 131, 70),
    4: Task("Hippocampus", 1, 2, 260, 130),
    5: Task("Prostate", 2, 2, 32, 16),
    6: Task("Lung", 1, 1, 63, 32),
    7: Task("Pancreas", 1, 2, 281, 139),
    8: Task("HepaticVessel", 1, 2, 303, 140),
    9: Task("Spleen", 1, 1, 41, 20),
    10: Task("Colon", 1, 1, 126, 64),
}
_NAME = re.compile(r"^Task(?P<number>\d\d)_(?P<name>\w+)$")


def bring(source: Path, out: Path | None = None) -> Imported:
    """Return the task in `source`, an archive or the folder that came out of one.

    Args:
        source: TaskNN_NAME.tar, or a folder TaskNN_NAME.
        out: where an archive is unpacked; the current folder by default. A folder is used where it is.

    Raises:
        DataError: not one of the ten tasks, a damaged archive, or cases missing; the message says which.
    """
    stem = source.name.removesuffix(".tar")
    number = _number(stem, source)
    folder = source if source.is_dir() else _unpacked(source, (out or Path()) / stem)
    task, notes = TASKS[number], []
    facts = read_json(folder / "dataset.json") if (folder / "dataset.json").exists() else None
    if not isinstance(facts, dict):
        raise DataError(
            f"{folder}: no dataset.json, so this is no task of the decathlon; unpack the archive again"
        )
    images, labels, tests = (_scans(folder / n) for n in ("imagesTr", "labelsTr", "imagesTs"))
    if missing := sorted(images - labels) or sorted(labels - images):
        raise DataError(
            f"{folder}: {missing[0]} and {len(missing) - 1} more lie in only one of imagesTr and labelsTr; "
            "the archive was not unpacked completely"
        )
    if len(images) != task.n_train:
        raise DataError(
            f"{folder}: {len(images)} training cases, {task.name} has {task.n_train}; unpack it again"
        )
    if len(tests) != task.n_test:
        notes.append(f"{len(tests)} test images, the published task has {task.n_test} (they have no labels)")
    for what, found, expected in (
        ("channels", len(facts.get("modality", {})), task.channels),
        ("classes", len(facts.get("labels", {})) - 1, task.classes),
    ):
        if found != expected:
            raise DataError(f"{folder / 'dataset.json'}: {found} {what}, {task.name} has {expected}")
    return Imported(folder, len(images), tuple(notes))


def _number(stem: str, source: Path) -> int:
    match = _NAME.match(stem)
    number = int(match["number"]) if match else 0
    if not match or number not in TASKS or TASKS[number].name.lower() != match["name"].lower():
        known = ", ".join(f"Task{n:02d}_{t.name}" for n, t in TASKS.items())
        raise DataError(f"{source}: not a task of the decathlon; expected one of {known}, or its .tar")
    return number


def _scans(folder: Path) -> set[str]:
    """Return the names of the scans in a folder, without hidden files."""
    if not folder.is_dir():
        raise DataError(f"{folder}: missing; unpack the archive again")
    return {f.name for f in folder.iterdir() if f.name.endswith(".nii.gz") and not f.name.startswith(".")}


def _unpacked(archive: Path, folder: Path) -> Path:
    """Return `folder` with the archive's content, written whole or not at all.

    Raises:
        DataError: no such archive, a damaged one, or members that would leave the folder.
    """
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            keep = [m for m in tar if not Path(m.name).name.startswith("._")]
            tar.extractall(temporary, members=keep, filter="data")
    except (OSError, tarfile.TarError, EOFError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{archive}: cannot be unpacked ({error}); download it again") from error
    inner = temporary / folder.name
    if not inner.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{archive}: holds no folder {folder.name}; is it the archive of another task?")
    inner.replace(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    return folder
