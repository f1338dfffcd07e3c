"""Scoring a folder of predictions: read, score in parallel, summarize, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seguro.cli.classmatch import read_probabilities, refuse_other_classes, translated
from seguro.cli.references import (
    Job,
    Predictions,
    few,
    find_predictions,
    jobs_from_folder,
    jobs_from_manifest,
    manifest_for,
    on_grid,
    refuse_other_data,
)
from seguro.core.errors import ConfigError, DataError, GeometryError
from seguro.core.files import read_json, sha256_file, sha256_json, write_json
from seguro.core.stage import STAGE_FILE, Stage, locked
from seguro.core.types import Classes, Excluded, ScoreRow, Unit, Warnings
from seguro.evaluation import CONVENTIONS, METRICS

if TYPE_CHECKING:
    from seguro.evaluation.statistics import SummaryRow

SCHEMA = 1


@dataclass(frozen=True)
class Scored:
    """What became of one job: rows, or a reason why there are none."""

    rows: tuple[ScoreRow, ...]
    unit: Unit | None = None
    refused: GeometryError | None = None
    truth_fault: str = ""
    prediction_fault: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_folder` found and where it wrote it."""

    folder: Path
    rows: tuple[ScoreRow, ...]
    summary: tuple[SummaryRow, ...]
    classes: Classes
    unit: Unit
    missing: tuple[str, ...]
    """Cases without a (readable) prediction; scored as failures."""
    excluded: tuple[Excluded, ...]
    faults: tuple[str, ...]
    """Files that could not be read, with the reason; any makes the command end with exit code 2."""
    warnings: tuple[str, ...]
    skipped: bool
    """Whether the same scores were there already."""


@dataclass(frozen=True)
class Task:
    """What is to be scored, resolved: the stage's key covers all of it."""

    stage: Stage
    jobs: list[Job]
    found: Predictions
    classes: Classes
    excluded: list[Excluded]
    told: dict[str, Any]
    """What else was asked for; recorded, and in the key only by what it selects."""


def evaluate_folder(predictions: Path, *, n_jobs: int = -1, **options: Any) -> Evaluation:
    """Score every labeled case that the predictions answer for, and write scores.csv and summary.json.

    Args:
        predictions: folder written by predict, or any folder of label files named by case.
        n_jobs: threads over cases; -1 means one per core. Scores do not depend on it.
        options: as for `task_of`, which also says what is raised.

    Raises:
        GeometryError: predictions on another grid; the first few are shown.
    """
    task = task_of(predictions, **options)
    with locked(task.stage.folder):
        if task.stage.done():
            return _load(task.stage.folder, task.classes)
        return _score(task.stage, task.jobs, task.found, task.classes, task.excluded, task.told, n_jobs)


def task_of(
    predictions: Path,
    *,
    data: Path | None = None,
    data_root: Path | None = None,
    truth: Path | None = None,
    out: Path | None = None,
    tolerance_mm: float = 2.0,
    metrics: Sequence[str] = tuple(METRICS),
    split: Literal["train", "test"] | None = None,
    resample: bool = False,
    seed: int = 0,
) -> Task:
    """Return what `evaluate_folder` would score; nothing is written.

    Args:
        predictions: folder written by predict, or any folder of label files named by case.
        data: workspace, or the dataset's folder whose workspace lies in the current folder; by default the
            workspace that `predictions` lies in.
        data_root: where the workspace's files lie now, if they were moved.
        truth: folder of reference labels with the same stems, instead of `data`.
        out: where to write; by default "scores" inside a folder written by predict, else
            ./<name>.seguro/scores.
        tolerance_mm: tolerance of the NSD.
        metrics: names out of evaluation.METRICS.
        split: which cases must have a prediction; by default those the folder answers for
            (docs/conventions.md).
        resample: bring a prediction on another grid to the truth's (nearest voxel); else that is an error.
        seed: of the bootstrap.

    Raises:
        ConfigError: unknown metric, no truth to be found, bad tolerance.
        DataError: nothing to score, or classes that do not fit.
    """
    from seguro.evaluation.scores import check_metrics

    check_metrics(metrics)
    if not tolerance_mm >= 0:
        raise ConfigError(f"--tolerance {tolerance_mm}: expected 0 or more millimetres")
    if data is not None and truth is not None:
        raise ConfigError(
            "give the truth once: --data (a workspace or dataset) or --truth (a folder of labels)"
        )
    if data_root is not None and truth is not None:
        raise ConfigError("--data-root is where a workspace's files lie; it says nothing of --truth FOLDER")
    found = find_predictions(predictions)
    if truth is not None:
        jobs, classes, excluded = jobs_from_folder(truth, found)
    else:
        manifest = manifest_for(found.folder, data, data_root)
        if data is None:
            refuse_other_data(found, manifest)
        jobs, classes, excluded = jobs_from_manifest(manifest, found, split)
    if found.classes is not None:
        refuse_other_classes(found.classes, classes, predictions)
    stage = _stage(found, jobs, classes, excluded, out, tolerance_mm, metrics, resample, seed)
    told = {"split": split, "truth": truth is not None}
    return Task(stage, jobs, found, classes, excluded, told)


def _stage(
    found: Predictions,
    jobs: Sequence[Job],
    classes: Classes,
    excluded: Sequence[Excluded],
    out: Path | None,
    tolerance_mm: float,
    metrics: Sequence[str],
    resample: bool,
    seed: int,
) -> Stage:
    """Return the stage, keyed by the content of every prediction and truth."""
    if out is None:
        outside = Path(f"{found.folder.resolve().name}.seguro") / "scores"
        out = found.folder / "scores" if found.listed else outside
    reads = {"classes": sha256_json(classes.model_dump(mode="json"))}
    for job in jobs:
        reads[f"truth/{job.id}"] = sha256_json(job.content)
        reads[f"prediction/{job.id}"] = sha256_file(job.prediction) if job.prediction else "missing"
        if job.probabilities and "ece" in metrics:
            reads[f"probabilities/{job.id}"] = sha256_file(job.probabilities)
        reads[f"case/{job.id}"] = sha256_json([job.patient, job.site, job.annotated, job.spacing, job.unit])
    reads["excluded"] = sha256_json([e.model_dump() for e in excluded])
    config = {
        "tolerance_mm": tolerance_mm,
        "metrics": list(metrics),
        "resample": resample,
        "seed": seed,
        "conventions": CONVENTIONS,
    }
    return Stage(out, "evaluate", reads=reads, config=config, schema=SCHEMA)


def _score(
    stage: Stage,
    jobs: Sequence[Job],
    found: Predictions,
    classes: Classes,
    excluded: list[Excluded],
    told: Mapping[str, Any],
    n_jobs: int,
) -> Evaluation:
    """Score the jobs in parallel, then summarize and write."""
    from joblib import Parallel, delayed

    from seguro.evaluation.scores import write_csv
    from seguro.evaluation.statistics import summarize

    config, warnings = stage.config, Warnings()
    scored: list[Scored] = Parallel(n_jobs=n_jobs, prefer="threads")(
        delayed(score_job)(
            job,
            classes,
            found.classes or classes,
            tolerance_mm=config["tolerance_mm"],
            metrics=config["metrics"],
            resample=config["resample"],
        )
        for job in jobs
    )
    refused = [str(s.refused) for s in scored if s.refused]
    if refused:
        more = f"\n... and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise GeometryError("\n".join(refused[:5]) + more)
    rows = [row for s in scored for row in s.rows]
    if not rows:
        reasons = "\n".join(s.truth_fault for s in scored[:5])
        raise DataError(f"{found.folder}: nothing could be scored\n{reasons}")
    unit = _unit({s.unit for s in scored if s.unit})
    if unit == "px":
        rows = [r for r in rows if r.metric != "volume_error_ml"]
    missing = [
        j.id
        for j, s in zip(jobs, scored, strict=True)
        if (j.prediction is None or s.prediction_fault) and not s.truth_fault
    ]
    faults = [f for s in scored for f in (s.truth_fault, s.prediction_fault) if f]
    excluded = excluded + [
        Excluded(id=j.id, reason=s.truth_fault) for j, s in zip(jobs, scored, strict=True) if s.truth_fault
    ]
    if missing:
        warnings.add(
            f"{len(missing)} of {len(jobs)} cases without a usable prediction count as failures: "
            f"{few(set(missing))}"
        )
    for case in excluded:
        warnings.add(f"left out: {case.id} ({case.reason})")
    summary = summarize(rows, seed=config["seed"])
    (stage.folder / STAGE_FILE).unlink(missing_ok=True)  # it would speak of the scores being replaced
    write_csv(stage.folder / "scores.csv", rows)
    write_json(
        stage.folder / "summary.json",
        {
            "unit": unit,
            "rows": [summary_json(r) for r in summary],
            "conventions": CONVENTIONS,
            "excluded": [e.model_dump() for e in excluded],
            "missing": missing,
            "tolerance_mm": config["tolerance_mm"],
        },
    )
    # A file that could not be read leaves no finished stage, so that the same command tries again.
    if not faults:
        stage.finish(
            [stage.folder / "scores.csv", stage.folder / "summary.json"],
            seed=config["seed"],
            **told,
            warnings=warnings.lines(),
        )
    return Evaluation(
        stage.folder,
        tuple(rows),
        tuple(summary),
        classes,
        unit,
        tuple(missing),
        tuple(excluded),
        tuple(faults),
        tuple(warnings.lines()),
        False,
    )


def summary_json(row: SummaryRow) -> dict[str, Any]:
    """Return a summary row as summary.json has it."""
    return {("class" if k == "cls" else k): v for k, v in row._asdict().items()}


def _unit(units: set[Unit]) -> Unit:
    """Return the unit of every length: one nominal spacing makes the column nominal.

    Raises:
        DataError: pixels and millimetres in one mean.
    """
    if "px" in units and len(units) > 1:
        raise DataError(
            "some cases are in px and some in mm; give every case a spacing, or evaluate them apart"
        )
    if "px" in units:
        return "px"
    return "nominal mm" if "nominal mm" in units else "mm"


def score_job(
    job: Job,
    classes: Classes,
    predicted_classes: Classes,
    *,
    tolerance_mm: float,
    metrics: Sequence[str],
    resample: bool,
) -> Scored:
    """Read one case's files and return its scores; a file that cannot be read never stops the other cases."""
    from seguro.data import formats
    from seguro.evaluation.scores import score_case, to_stored

    try:
        truth = job.read()
        if truth.sha256 != job.sha256:
            raise DataError(f"{job.truth}: changed since it was checked; run seguro check again")
        stored = to_stored(truth.array, classes, what=job.truth)
    except DataError as error:
        return Scored((), truth_fault=str(error))
    prediction = probabilities = None
    fault = ""
    if job.prediction is not None:
        try:
            volume = formats.read_label(job.prediction, spacing=None if job.unit == "px" else job.spacing)
            array, moved = on_grid(volume, truth.grid, job, resample=resample)
            prediction = translated(array, predicted_classes, classes, str(job.prediction))
            if job.probabilities is not None and "ece" in metrics and not moved:
                probabilities = read_probabilities(job.probabilities, predicted_classes, classes)
        except GeometryError as error:
            return Scored((), refused=error)
        except DataError as error:
            prediction, fault = None, str(error)
    rows = score_case(
        stored,
        prediction,
        classes=classes,
        annotated=classes.foreground if job.annotated is None else job.annotated,
        spacing=job.spacing or truth.grid.spacing,
        case=job.id,
        patient=job.patient,
        site=job.site,
        tolerance_mm=tolerance_mm,
        metrics=metrics,
        probabilities=probabilities,
    )
    return Scored(tuple(rows), job.unit or truth.grid.unit, prediction_fault=fault)


def _load(folder: Path, classes: Classes) -> Evaluation:
    """Return the evaluation that a finished stage wrote."""
    from seguro.evaluation.scores import read_csv
    from seguro.evaluation.statistics import SummaryRow

    content = read_json(folder / "summary.json")
    rows = [SummaryRow(**{("cls" if k == "class" else k): v for k, v in r.items()}) for r in content["rows"]]
    warnings = read_json(folder / "stage.json")["recorded"].get("warnings", [])
    return Evaluation(
        folder,
        tuple(read_csv(folder / "scores.csv")),
        tuple(rows),
        classes,
        content["unit"],
        tuple(content["missing"]),
        tuple(Excluded(**e) for e in content["excluded"]),
        (),
        tuple(warnings),
        True,
    )
