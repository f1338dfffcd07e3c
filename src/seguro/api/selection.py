"""Which run, workspace and cases a command on a trained model means."""

from __future__ import annotations

from pathlib import Path

from seguro.api.workspace import is_workspace, workspace_of
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json
from seguro.core.types import Case, Classes, Manifest

CASES = ("test", "validation", "train", "unlabelled")


def is_model(path: Path) -> bool:
    """Return whether `path` is a run with a model or a model folder."""
    return (path / "model" / "model.json").exists() or (path / "model.json").exists()


def run_of(model: Path) -> Path | None:
    """Return the run that a model belongs to, or None for a bare model folder."""
    for folder in (model, model.parent):
        if (folder / "config.yaml").exists() and (folder / "model").is_dir():
            return folder
    return None


def is_own(workspace: Path, model: Path) -> bool:
    """Return whether the workspace is the one that the model's run lies in; a bare model lies in none."""
    run = run_of(model)
    return run is None or run.absolute().parent.parent.resolve() == workspace.resolve()


def manifest_for(
    model: Path, data: Path | None = None, data_root: Path | None = None
) -> tuple[Path, Manifest]:
    """Return the workspace of `data`, or that of the model's run, with its manifest.

    A data folder given as `data` is also where the files are read, wherever they were before.

    Raises:
        ConfigError: no workspace.
        DataError: no model; an unfinished run is named as such.
    """
    from seguro.data import manifest

    run = run_of(model)
    if data is not None:
        workspace = workspace_of(data)
    elif run is not None:
        workspace = run.absolute().parent.parent  # of where it lies, also as a link
    else:
        from seguro.engine.model import model_folder

        raise ConfigError(
            f"{model_folder(model)} is a bare model folder in no workspace; say whose cases: --data WORKSPACE"
        )
    if not is_workspace(workspace):
        raise ConfigError(
            f"{workspace}: no workspace (no check/manifest.json); run first: seguro check {data or 'DATA'}"
        )
    root = data_root or (data if data is not None and not is_workspace(data) else None)
    return workspace, manifest.load(workspace / "check" / "manifest.json", data_root=root)


def cases_for(model: Path, manifest: Manifest, which: str) -> tuple[Case, ...]:
    """Return cases of a manifest by split, or those that the model's run validated on, sorted by id.

    Raises:
        ConfigError: an unknown name, a fold that is not known, or none at all.
    """
    if which not in CASES:
        raise ConfigError(f"--cases {which}: expected {', '.join(CASES)}")
    chosen = validation_cases(model, manifest) if which == "validation" else manifest.of(which)  # type: ignore[arg-type]
    if not chosen:
        raise ConfigError(f"--cases {which}: {manifest.name} has none; choose other --cases")
    return chosen


def same_classes(manifest: Manifest, classes: Classes) -> None:
    """Refuse data whose labels mean something else than the model's classes.

    Raises:
        DataError: no class in common, or one of another value in the label files.
    """
    if manifest.classes is None:
        return
    theirs = dict(zip(manifest.classes.names, manifest.classes.values, strict=True))
    ours = dict(zip(classes.names, classes.values, strict=True))
    shared = [n for n in classes.foreground if n in theirs]
    if not shared:
        raise DataError(
            f"{manifest.name} labels {', '.join(manifest.classes.foreground)}, the model segments "
            f"{', '.join(classes.foreground)}: none in common; name the data set's classes as the model does"
        )
    if other := [n for n in shared if theirs[n] != ours[n]]:
        raise DataError(
            f"{manifest.name}: {other[0]} has the label values {theirs[other[0]]}, the model was trained on "
            f"{ours[other[0]]}; write the labels with the values of the training data"
        )


def validation_cases(model: Path, manifest: Manifest) -> tuple[Case, ...]:
    """Return the cases that the model's run validated on."""
    run = run_of(model)
    if run is None or not (run / "cases.json").exists():
        raise ConfigError(
            f"{model}: a bare model folder does not say its fold; give the run for --cases validation"
        )
    ids = set(read_json(run / "cases.json")["validation"])
    if not ids:
        raise ConfigError(f"{run}: trained on every case, none is left; use --cases test")
    chosen = tuple(c for c in manifest.cases if c.id in ids)
    if lost := sorted(ids - {c.id for c in chosen}):
        raise ConfigError(f"{run}: validated on {lost[0]} and others that are no longer in {manifest.root}")
    return tuple(sorted(chosen, key=lambda c: c.id))
