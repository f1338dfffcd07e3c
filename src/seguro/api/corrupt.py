"""The corruption stage: a trained model on images as bad scanners and moving patients make them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seguro.api.attack import AttackReport, Progress
from seguro.api.attack_options import spread
from seguro.api.selection import cases_for, manifest_for, run_of, same_classes
from seguro.api.support import model_with
from seguro.api.workspace import named
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, sha256_json, write_json
from seguro.core.stage import Stage, locked
from seguro.core.types import Case, Manifest

if TYPE_CHECKING:
    from seguro.data.support import Bank
    from seguro.engine.model import Model
    from seguro.evaluation.robustness import RobustRow

SCHEMA = 1


@dataclass(frozen=True)
class CorruptOptions:
    """Which corruptions on which cases."""

    names: tuple[str, ...] = ()
    """Empty: all that apply to the model's channels."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    cases: str = "validation"
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"


def corrupt(
    run: Path,
    options: CorruptOptions | None = None,
    *,
    data: Path | None = None,
    data_root: Path | None = None,
    name: str | None = None,
    support: Bank | None = None,
    progress: Progress | None = None,
) -> AttackReport:
    """Predict whole corrupted volumes, score them, and write `runs/<run>/attacks/<name>/`; resumable.

    Corruption comes before the model's own scaling, as at a scanner; severity 0 takes the same path.
    Arguments as in `api.attack.attack`.

    Raises:
        ConfigError: unknown corruptions or severities.
        DataError: a case that cannot be read, none with a label, or labels of other classes.
    """
    from seguro.attacks.corruptions import CORRUPTIONS, SEVERITIES, names
    from seguro.attacks.victim import frozen
    from seguro.evaluation import robustness

    options = options or CorruptOptions()
    model = model_with(run, support, options.device)
    _, manifest = manifest_for(run, data, data_root)
    same_classes(manifest, model.plan.classes)
    cases = spread([c for c in cases_for(run, manifest, options.cases) if c.label], options.limit)
    if not cases:
        raise DataError(
            f"{manifest.name}: no labelled case among --cases {options.cases}; nothing can be scored"
        )
    ct = all(c.scheme == "ct" for c in model.plan.channels)
    chosen = options.names or names("ct" if ct else "mr")
    if unknown := [n for n in chosen if n not in CORRUPTIONS]:
        raise ConfigError(f"no corruption {unknown[0]!r}; known are {', '.join(CORRUPTIONS)}")
    if not options.severities or not set(options.severities) <= set(range(1, SEVERITIES + 1)):
        raise ConfigError(f"severities {options.severities}: expected some of 1 to {SEVERITIES}")
    folder = (run_of(run) or model.folder) / "attacks" / named(name or f"corruptions-{options.cases}")
    config = {**asdict(options), "names": list(chosen)}
    del config["device"]
    reads = {"model": model.sha256, **{f"case/{c.id}": c.hash for c in cases}}
    stage = Stage(folder, "attack", reads=reads, config=config, schema=SCHEMA)
    if stage.done():
        rows = robustness.read_csv(folder / "robustness.csv")
        return AttackReport(folder, tuple(rows), read_json(folder / "summary.json"), True)
    severities = (0, *sorted(set(options.severities)))
    with locked(folder), frozen(model.predictor):
        start, rows = time.monotonic(), []
        for i, case in enumerate(cases):
            if progress:
                progress(i, len(cases), case.id)
            rows += _case(model, manifest, case, chosen, severities, options, folder)
        summary = {
            "setting": {
                "suite": "corruptions", "where": "volume", "seed": options.seed, "cases": options.cases,
                "eps_unit": "severity", "unit": model.plan.unit,
            },
            "eps": list(severities),
            "attacks": list(chosen),
            "native_eps": {},
            "guards": [],
            "cost": {"attack_s_per_case": (time.monotonic() - start) / len(cases)},
            "cases": len(cases),
        }  # fmt: skip
        robustness.write_csv(folder / "robustness.csv", rows)
        robustness.write_summary(folder, rows, (), options.seed, corruptions=True)
        write_json(folder / "summary.json", summary)
        files = [folder / n for n in ("robustness.csv", "summary.json", "curves.json")]
        timeless = sha256_json({k: v for k, v in summary.items() if k != "cost"})
        stage.finish(files, known={"summary.json": timeless})
    return AttackReport(folder, tuple(rows), summary, False)


def _case(
    model: Model,
    manifest: Manifest,
    case: Case,
    chosen: Sequence[str],
    severities: Sequence[int],
    options: CorruptOptions,
    folder: Path,
) -> list[RobustRow]:
    """Return the rows of one case, from its file if the same was done before."""
    from seguro.api.attack_job import noted
    from seguro.evaluation.robustness import RobustRow

    key = sha256_json(
        [model.sha256, case.hash, case.id, list(chosen), list(severities), options.seed, SCHEMA]
    )
    path = folder / "cases" / f"{key[:24]}.json"
    if path.exists() and (kept := read_json(path))["key"] == key:
        found: dict[str, list[Any]] = kept["dice"]
        sizes: list[float] = kept["sizes"]
    else:
        found, sizes = _scored(model, manifest, case, chosen, severities, options.seed, options.device)
        write_json(path, {"key": key, "dice": found, "sizes": sizes})
    out = []
    for name in chosen:
        for severity, dice in zip(severities, found[name], strict=True):
            for cls, value, size in zip(model.plan.classes.foreground, dice, sizes, strict=True):
                shown, note = noted(value, size)
                out.append(
                    RobustRow(case.id, case.patient, case.site, cls, name, severity, shown, size, note)
                )
    return out


def _scored(
    model: Model,
    manifest: Manifest,
    case: Case,
    chosen: Sequence[str],
    severities: Sequence[int],
    seed: int,
    device: str,
) -> tuple[dict[str, list[Any]], list[float]]:
    """Return by corruption and severity the Dice of each class (None: not annotated), and class sizes."""
    from dataclasses import replace

    import torch

    from seguro.attacks.corruptions import corrupt as corrupted
    from seguro.attacks.record import plain
    from seguro.attacks.subject import volume_subject
    from seguro.attacks.victim import Victim
    from seguro.data.manifest import read_case, read_case_label
    from seguro.data.preprocess import label_to_planned, to_planned

    volume = read_case(case, manifest)
    truth = read_case_label(case, manifest, like=volume.grid)
    if truth is None:
        raise DataError(f"{case.id}: no label, nothing can be scored")
    classes, spacing = model.plan.classes, volume.grid.spacing
    annotated = np.array([n in case.annotated for n in classes.foreground], np.float32)
    _, grid = to_planned(volume, model.plan)
    label = label_to_planned(truth.array, grid, model.plan)

    def dice(name: str, severity: int) -> tuple[float | None, ...]:
        bad = corrupted(volume.array, name, severity, spacing=spacing, seed=seed, case=case.id)
        image, _ = to_planned(replace(volume, array=bad), model.plan)
        subject = volume_subject(model.predictor, image, label, annotated, device=device)
        victim = Victim(subject.logits, subject.truth)
        with torch.inference_mode():
            logits = victim.logits(subject.x)
            if not bool(torch.isfinite(logits).all()):
                raise DataError(
                    f"{case.id}: the model returns NaN or infinity under {name}, severity {severity}; "
                    "nothing can be scored"
                )
            return plain(victim.class_dice(logits)[0])

    clean = dice(chosen[0], 0)
    found = {n: [clean if s == 0 else dice(n, s) for s in severities] for n in chosen}
    ml = 1.0 if grid.unit == "px" else grid.voxel_ml
    values = [classes.values[i] if classes.regions else (i + 1,) for i in range(len(classes.foreground))]
    return found, [float(np.isin(label, v).sum()) * ml for v in values]
