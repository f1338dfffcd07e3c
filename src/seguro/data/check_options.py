"""What a user says about the data beside the data themselves; kept in the workspace, so it is said once."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from seguro.core.files import read_json, write_json
from seguro.core.types import ThreeF

FILE = "options.json"


@dataclass(frozen=True)
class Options:
    """What the user may say about the data."""

    spacing: ThreeF | None = None
    """(z, y, x) in mm, for files that state none."""
    classes: tuple[str, ...] = ()
    """Foreground names for folders without a description: in rising order of the values, or "value=name"."""
    channels: tuple[str, ...] = ()
    """Channel names for folders without a description."""
    patients: Path | None = None
    """CSV file with the columns id, patient and perhaps site and split (train, test, unlabelled)."""
    quarantine: bool = False
    """Leave bad cases out instead of refusing the folder."""
    repair: Literal["nan=min"] | None = None

    def said(self) -> dict[str, Any]:
        """Return the options that are not at their default, by name."""
        return {k: v for k, v in asdict(self).items() if v}

    def arguments(self) -> list[str]:
        """Return the options as words of a command line.

        Example:
            >>> Options(classes=("liver", "spleen"), quarantine=True).arguments()
            ['--classes', 'liver,spleen', '--quarantine']
        """
        words = []
        for name, value in self.said().items():
            words.append(f"--{name}")
            if name == "spacing":
                words.append(",".join(f"{v:g}" for v in value))
            elif isinstance(value, tuple):
                words.append(",".join(value))
            elif name != "quarantine":
                words.append(str(value))
        return words


def remember(workspace: Path, options: Options) -> None:
    """Keep the options in the workspace; they outlive a check that fails."""
    content = asdict(options)
    content["patients"] = str(options.patients.resolve()) if options.patients else None
    write_json(workspace / "check" / FILE, content)


def remembered(workspace: Path) -> Options:
    """Return the options of the last check in the workspace, or the defaults."""
    path = workspace / "check" / FILE
    if not path.exists():
        return Options()
    content = read_json(path)
    return Options(
        spacing=tuple(content["spacing"]) if content["spacing"] else None,
        classes=tuple(content["classes"]),
        channels=tuple(content["channels"]),
        patients=Path(content["patients"]) if content["patients"] else None,
        quarantine=bool(content["quarantine"]),
        repair=content["repair"],
    )


def command(folder: Path, workspace: Path, options: Options) -> str:
    """Return the check of `folder` into `workspace` with `options`, as one types it."""
    words = ["seguro", "check", str(folder), *options.arguments()]
    if workspace != Path(f"{folder.resolve().name}.seguro"):
        words += ["--out", str(workspace)]
    return shlex.join(words)
