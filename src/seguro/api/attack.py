"""The attack stage: a trained model under a suite of attacks, case by case, resumable, with its guards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seguro.api.attack_options import AttackOptions, spread
from seguro.api.selection import cases_for, manifest_for, run_of, same_classes
from seguro.api.support import model_with
from seguro.api.workspace import named
from seguro.core.errors import DataError
from seguro.core.files import read_json, sha256_json
from seguro.core.stage import Stage, locked

if TYPE_CHECKING:
    from seguro.data.support import Bank
    from seguro.evaluation.robustness import RobustRow

Progress = Callable[[int, int, str], None]
"""(done, total, what is worked on)."""


@dataclass(frozen=True)
class AttackReport:
    """What an attack stage left."""

    folder: Path
    rows: tuple[RobustRow, ...]
    summary: dict[str, Any]
    skipped: bool
    """Whether the same result was there already."""

    @property
    def reliable(self) -> bool:
        """Whether no guard failed."""
        return all(g["passed"] is not False for g in self.summary["guards"])


def attack(
    run: Path,
    options: AttackOptions | None = None,
    *,
    data: Path | None = None,
    data_root: Path | None = None,
    name: str | None = None,
    support: Bank | None = None,
    progress: Progress | None = None,
) -> AttackReport:
    """Attack a trained model and write `runs/<run>/attacks/<name>/`; what is there already is not done again.

    Args:
        run: a run or model folder.
        options: how.
        data: workspace or data folder of the cases; the run's own by default.
        data_root: where the data lie now, if they were moved.
        name: of the result's folder.
        support: annotated examples of the data set's classes, for a few-shot model.
        progress: told before each piece of work.

    Raises:
        ConfigError: options that do not fit the model or the data.
        DataError: a case that cannot be read, none with a label, or labels of other classes.
    """
    from seguro.api.attack_job import SCHEMA, AttackJob
    from seguro.attacks import ensemble, tuning
    from seguro.attacks.ensemble import Effort
    from seguro.attacks.threat import parse_epsilons
    from seguro.attacks.victim import frozen

    options = options or AttackOptions()
    epsilons = parse_epsilons(options.eps)
    model = model_with(run, support, options.device)
    _, manifest = manifest_for(run, data, data_root)
    same_classes(manifest, model.plan.classes)
    cases = spread([c for c in cases_for(run, manifest, options.cases) if c.label], options.limit)
    if not cases:
        raise DataError(
            f"{manifest.name}: no labelled case among --cases {options.cases}; nothing can be scored"
        )
    # refuses unknown ones before any work
    tuning.check(ensemble.suite(options.suite, model.plan.classes, Effort()), options.settings)
    default = f"{options.suite.replace(',', '+')}-{options.cases}" + (
        "-volume" if options.whole_volume else ""
    )
    folder = (run_of(run) or model.folder) / "attacks" / named(name or default)
    config = {k: v for k, v in asdict(options).items() if k not in ("device", "memory_gib")}
    reads = {"model": model.sha256, **{f"case/{c.id}": c.hash for c in cases}}
    stage = Stage(folder, "attack", reads=reads, config=config, schema=SCHEMA)
    if stage.done():
        return _load(folder)
    with locked(folder), frozen(model.predictor):
        job = AttackJob(model, manifest, cases, epsilons, options, folder, progress or _silent)
        summary = job.write()
        files = [folder / n for n in ("robustness.csv", "minimum.csv", "summary.json", "curves.json")]
        stage.finish(files, known={"summary.json": sha256_json(_timeless(summary))}, cases=len(cases))
    return replace(_load(folder), skipped=False)


def _silent(done: int, total: int, what: str) -> None:
    """Take progress and drop it."""


def _timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary without durations."""
    return {**summary, "cost": {k: v for k, v in summary["cost"].items() if "_s_" not in k}}


def _load(folder: Path) -> AttackReport:
    from seguro.evaluation.robustness import read_csv

    rows = read_csv(folder / "robustness.csv")
    return AttackReport(folder, tuple(rows), read_json(folder / "summary.json"), True)
