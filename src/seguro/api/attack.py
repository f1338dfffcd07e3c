"""The attack stage: a trained model under a suite of attacks, case by case, resumable, with its guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    from seguro.attacks.threat import Epsilon
    from seguro.core.types import Case, Manifest
    from seguro.data.plan import Plan
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
    from seguro.attacks.victim import frozen

    options = options or AttackOptions()
    model = model_with(run, support, options.device)
    manifest, cases, epsilons = look(run, model.plan, options, data=data, data_root=data_root)
    same_classes(manifest, model.plan.classes)
    default = f"{options.suite.replace(',', '+')}-{options.cases}" + (
        "-volume" if options.whole_volume else ""
    )
    folder = (run_of(run) or model.folder) / "attacks" / named(name or default)
    config = {k: v for k, v in asdict(options).items() if k not in ("device", "memory_gib")}
    reads = {"model": model.sha256, **{f"case/{c.id}": c.hash for c in cases}}
    stage = Stage(folder, "attack", reads=reads, config=config, schema=SCHEMA)
    if stage.done():
        return _load(folder)
    with locked(folder), frozen(model.predictor), _named(progress or _silent) as tell:
        summary = AttackJob(model, manifest, cases, epsilons, options, folder, tell).write()
        files = [folder / n for n in ("robustness.csv", "minimum.csv", "summary.json", "curves.json")]
        stage.finish(files, known={"summary.json": sha256_json(_timeless(summary))}, cases=len(cases))
    return replace(_load(folder), skipped=False)


def look(
    run: Path, plan: Plan, options: AttackOptions, *, data: Path | None = None, data_root: Path | None = None
) -> tuple[Manifest, list[Case], tuple[Epsilon, ...]]:
    """Return whose cases would be attacked, which, and how strongly; no image is read, nothing is written.

    Arguments as in `attack`, with the plan of the model.

    Raises:
        ConfigError: a suite, setting, epsilon, box or choice of cases that does not exist or fit.
        DataError: no case with a label.
    """
    from seguro.attacks import ensemble, tuning
    from seguro.attacks.ensemble import Effort
    from seguro.attacks.threat import parse_epsilons, refuse_other_units

    epsilons = parse_epsilons(options.eps)
    refuse_other_units(epsilons[-1], plan, box=options.box)
    tuning.check(ensemble.suite(options.suite, plan.classes, Effort()), options.settings)
    _, manifest = manifest_for(run, data, data_root)
    cases = spread([c for c in cases_for(run, manifest, options.cases) if c.label], options.limit)
    if not cases:
        raise DataError(
            f"{manifest.name}: no labelled case among --cases {options.cases}; nothing can be scored"
        )
    return manifest, cases, epsilons


@contextmanager
def _named(progress: Progress) -> Iterator[Progress]:
    """Yield a progress that remembers what is worked on, to say where a model broke down."""
    from seguro.attacks.victim import NotFinite

    last = ""

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        last = what
        progress(done, total, what)

    try:
        yield tell
    except NotFinite as error:
        raise DataError(
            f"{last}: {error}. If other cases are fine, look at this image with `seguro check`; if not, the "
            "model is damaged: train it again"
        ) from error


def _silent(done: int, total: int, what: str) -> None:
    """Take progress and drop it."""


def _timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary without durations."""
    return {**summary, "cost": {k: v for k, v in summary["cost"].items() if "_s_" not in k}}


def _load(folder: Path) -> AttackReport:
    from seguro.evaluation.robustness import read_csv

    rows = read_csv(folder / "robustness.csv")
    return AttackReport(folder, tuple(rows), read_json(folder / "summary.json"), True)
