"""predictions.json: what a folder of predictions holds, and which models and inputs it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json
from seguro.inference.inputs import Item
from seguro.inference.record import Predicted

FILE = "predictions.json"
PROBABILITIES = "probabilities"
"""Folder of the probabilities, if they were asked for."""
DOUBT = "doubt"
"""Folder of the doubt maps, if they were asked for."""


def sources(items: Sequence[Item]) -> list[str]:
    """Return where the cases come from: data sets or folders of files, sorted."""
    return sorted({item.source or str(item.files[0].parent.resolve()) for item in items})


def entry(case: Predicted) -> dict[str, Any]:
    """Return what predictions.json says of one case."""
    label = next(iter(case.files))
    return {
        "file": label,
        "sha256": case.files[label],
        "probabilities": next((f for f in case.files if f.startswith(f"{PROBABILITIES}/")), None),
        "flags": list(case.flags),
        "seconds": case.seconds,
        "notes": list(case.notes),
        **({} if case.cycle is None else {"cycle_dice": dict(case.cycle)}),
    }


def refuse_inside(inputs: Any, items: Sequence[Item], out: Path) -> None:
    """Refuse an output folder that is, or lies in, a folder of inputs."""
    target = out.resolve()
    given = [inputs] if isinstance(inputs, Path) else [p for p in inputs if isinstance(p, Path)]
    folders = {p.resolve() for p in given if p.is_dir()}
    if any(target.is_relative_to(f) for f in folders) or any(
        target == f.parent.resolve() for i in items for f in i.files
    ):
        raise ConfigError(
            f"{out} is or lies in a folder of input images, which is never written to; choose another --out"
        )


def refuse_other(out: Path, *, models: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuse a folder that holds predictions by other models or of other inputs: they would be mixed or lost.

    Args:
        out: the folder.
        models: SHA-256 of the models of this call.
        inputs: its sources.

    Raises:
        ConfigError: it does; both sides are shown.
    """
    path = out / FILE
    before = _read(path) if path.exists() else {}
    theirs = {"inputs": before.get("inputs"), "models": before.get("models")}
    for what, ours in (("inputs", list(inputs)), ("models", list(models))):
        if theirs[what] is not None and theirs[what] != ours:
            raise ConfigError(
                f"{out} holds predictions of other {what} ({_short(theirs[what], what)}; "
                f"now {_short(ours, what)}); name another folder with --out, or remove this one"
            )


def _read(path: Path) -> Mapping[str, Any]:
    """Return the content, or nothing where it is damaged: it is written anew then."""
    try:
        content = read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _short(values: Any, what: str) -> str:
    """Return names for a message; of hashes the first digits."""
    names = [str(v)[:12] if what == "models" else str(v) for v in values]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
