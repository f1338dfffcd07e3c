"""The workspace of a data set: where it lies, and the checked manifest in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seguro.core.errors import ConfigError
from seguro.core.types import Manifest

Say = Callable[[str], None]
Count = Callable[[int, int], None]


def quiet(line: str) -> None:
    """Take a line for people and drop it."""


def workspace_of(data: Path, out: Path | None = None) -> Path:
    """Return the workspace for `data`: `data` itself if it is one, `out`, or `./<name>.seguro`.

    Raises:
        ConfigError: the workspace would lie inside the input folder.
    """
    data = Path(data)
    if out is None and is_workspace(data):
        return data
    workspace = Path(out) if out is not None else Path(f"{data.resolve().name}.seguro")
    if data.is_dir() and workspace.resolve().is_relative_to(data.resolve()) and not is_workspace(data):
        raise ConfigError(
            f"{workspace} lies inside the input folder {data}, which is never written to; "
            "choose another --out"
        )
    return workspace


def named(name: str) -> str:
    """Return `name` if it can name a folder of its own.

    Raises:
        ConfigError: it is empty, hidden, or would lead elsewhere.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ConfigError(f"--name {name!r}: expected a plain folder name, no / and no leading dot")
    return name


def is_workspace(path: Path) -> bool:
    """Return whether `path` is a folder that `check` has written a manifest into."""
    return (path / "check" / "manifest.json").exists()


def manifest_of(data: Path, workspace: Path, *, progress: Count | None = None, **options: Any) -> Manifest:
    """Return the checked manifest of `data`, which may be the data folder or the workspace."""
    from seguro.data import check, manifest

    if is_workspace(data) and Path(data).resolve() == workspace.resolve():
        return manifest.load(workspace / "check" / "manifest.json")
    return check.ensure(data, workspace, progress=progress, **options)
