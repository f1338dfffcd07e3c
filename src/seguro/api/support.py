"""The support of a prediction: given files become an artefact beside the run, a hash finds one again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from seguro.api.selection import run_of
from seguro.core.errors import ConfigError
from seguro.core.files import sha256_json
from seguro.core.types import ThreeF
from seguro.data import support
from seguro.data.shots import SliceChoice, read_shots
from seguro.data.support import Bank

if TYPE_CHECKING:
    from seguro.data.plan import Plan
    from seguro.engine.model import Model


def support_root(model: Path, out: Path) -> Path:
    """Return the folder that `support/` lies in: the model's run, or `out` for a bare model."""
    return run_of(model) or out


def support_of(
    model: Path,
    out: Path,
    images: Sequence[str],
    labels: Sequence[Path],
    *,
    classes: Sequence[str] = (),
    slices: str = "auto",
    spacing: ThreeF | None = None,
) -> Bank:
    """Return the annotated examples of a command and keep them beside the run of `model`.

    Args:
        model: run or model folder that predicts.
        out: where it writes.
        images: one file per label, or one per channel and label in order; or one hash of a kept support.
        labels: masks.
        classes: NAME=VALUE in the masks; all values when none is given.
        slices: auto, labelled, all, or numbers separated by commas, as the file counts them.
        spacing: (z, y, x) for files that state none.

    Raises:
        ConfigError: files that cannot be paired, or options that say nothing here.
        DataError: an unusable file, no such hash, no model.
    """
    root = support_root(model, out)
    if not labels:
        if len(images) != 1 or classes or slices != "auto" or Path(images[0]).exists():
            raise ConfigError(
                f"--support {' '.join(images)}: an annotated scan needs its mask, --support-label MASK, once "
                "per --support; alone, --support takes the hash of a support that was used before"
            )
        return support.load(root, support.find(root, images[0]))
    plan = _plan(model)
    if len(images) not in (len(labels), len(labels) * len(plan.channels)):
        raise ConfigError(
            f"{len(images)} --support and {len(labels)} --support-label for a model of {len(plan.channels)} "
            "channel(s): expected one image per mask, or one per channel and mask, in order"
        )
    each = len(images) // len(labels)
    pairs = [([Path(i) for i in images[k * each : (k + 1) * each]], mask) for k, mask in enumerate(labels)]
    named, shots = read_shots(
        pairs,
        channels=len(plan.channels),
        axis=plan.slice_axis,
        known=plan.classes,
        named=named_values(classes),
        slices=slice_choice(slices),
        spacing=spacing,
    )
    key: str | None = None
    for shot, _ in shots:
        key = support.add(root, shot, named, parent=key)
    return support.load(root, str(key))


def model_with(run: Path, bank: Bank | None, device: str = "cpu") -> Model:
    """Return a model, bound to the support where there is one; its hash is over both.

    Raises:
        ConfigError: a method that needs a support without one, or the reverse.
    """
    from seguro.engine.model import load_model
    from seguro.inference.fewshot import bind, refuse_unsupported

    model = load_model(run, device)
    if bank is None:
        refuse_unsupported([model])
        return model
    return replace(bind(model, bank), sha256=sha256_json([model.sha256, bank.hash]))


def named_values(classes: Sequence[str]) -> dict[str, int]:
    """Return NAME=VALUE words as a table.

    Raises:
        ConfigError: another form, or a name given twice.
    """
    out: dict[str, int] = {}
    for word in classes:
        name, _, value = word.rpartition("=")
        if not name or not value.isdecimal() or name in out or name == "background":
            raise ConfigError(f"--support-class {word}: expected NAME=VALUE, each name once, as in liver=1")
        out[name] = int(value)
    return out


def slice_choice(text: str) -> SliceChoice:
    """Return a choice of slices by name, or the numbers of a list.

    Raises:
        ConfigError: neither.
    """
    if text in ("auto", "labelled", "all"):
        return text
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts):
        raise ConfigError(f"slices {text!r}: expected numbers separated by commas, as in 12,30")
    return tuple(int(p) for p in parts)


def _plan(model: Path) -> Plan:
    from seguro.engine.model import load_model

    return load_model(model).plan
