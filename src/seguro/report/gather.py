"""What the page shows, gathered from the folders of a run; what is not there is named, never an error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from seguro.core.errors import DataError
from seguro.core.files import read_checked, read_object
from seguro.core.types import Manifest, ScoreRow
from seguro.report.attacks import attacks
from seguro.report.attacks import caveats as attack_caveats
from seguro.report.cases import Readers, show
from seguro.report.commands import commands
from seguro.report.figures import Dot, Series, thin
from seguro.report.generated import made
from seguro.report.headline import found_caveats, headline
from seguro.report.page import Distribution, Reason, ReportContent, Score, ScoredSet, Shown, base
from seguro.report.privacy import scrub
from seguro.report.sites import federated
from seguro.report.stages import finished, plan_edited, warnings

OVERALL = ("all", "mean", "all classes", "mean over classes")
"""Names under which a summary may carry the mean over classes."""
PREDICTIONS, SCORES = "Predictions (seguro predict).", "Scores (seguro evaluate)."
"""What a run that segments lacks until it is done."""
FAILURES = ("missed", "no prediction", "false alarm")
_OF = "data set "
"""How predictions.json begins the name of a data set among its inputs."""
_LOG_LIMIT = 1 << 30
_CONFIG_CHARACTERS = 60_000


def gather(
    run: Path,
    readers: Readers,
    *,
    scored: str | None = None,
    caveats: Sequence[str] = (),
    data_root: Path | None = None,
) -> ReportContent:
    """Return the content of the report on `run`.

    Args:
        run: a run's folder, `<workspace>/runs/<name>`.
        readers: how images, labels and scores are read.
        scored: name of the scored set; default "test" when there is one, else the first by name.
        caveats: sentences for the top of the page, before those that are found here.
        data_root: where the images lie now, when the manifest's root has moved.

    Raises:
        DataError: `run` is no folder, `scored` is not there, or a file of ours is damaged.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder; name one like <dataset>.seguro/runs/<name>")
    workspace = run.resolve().parent.parent
    manifest = _manifest(workspace, data_root)
    roots = [str(workspace.parent), str(run), *([manifest.root] if manifest else [])]
    sets = _scored(run)
    name = _pick(sets, scored, run)
    folder = sets.get(name)
    rows = list(readers.scores(folder / "scores.csv")) if folder else []
    summary = read_object(folder / "summary.json") if folder else {}
    predicted = read_object(_prediction_folder(run, name) / "predictions.json")
    plan = read_object(workspace / "plan" / "plan.json")
    log = _log(run / "log.jsonl")
    config_text = _text(run / "config.yaml")
    config = _config(config_text)
    model = read_object(run / "model" / "model.json")
    lines = _scores(summary)
    unit = str(summary.get("unit") or plan.get("unit") or "mm")
    stages = finished(workspace, run, folder, _prediction_folder(run, name))
    files = {
        case: _prediction_folder(run, name) / str(entry.get("file", ""))
        for case, entry in predicted.get("cases", {}).items()
    }
    missing = _missing(
        workspace, run, bool(predicted), bool(folder), manifest is not None, bool(plan), bool(log)
    )
    federation = federated(run, roots)
    if federation is not None:
        missing = _missing_of_federation(run, bool(predicted), bool(folder))
        plan = plan or read_object(run / "plan" / "plan.json")
    looks = [_series(log, "validation", (name,)) for name in ("distance", "recognized")]
    if federation is not None:
        looks = [federation.distance, federation.recognized]
    slices = made(run, *looks, axis="update" if federation is None else "round")
    segments = slices is None or bool(predicted)
    if not segments:
        missing = tuple(m for m in missing if m not in (PREDICTIONS, SCORES))
    notes = tuple(
        dict.fromkeys(scrub(str(x.get("message", "")), roots) for x in log if x.get("kind") == "note")
    )
    foreign = _foreign(predicted, manifest)
    shown = show(rows, None if foreign else manifest, files, readers)
    head = headline(_name(manifest, plan, workspace), config, model, name, rows, lines, segments=segments)
    found = found_caveats(
        unit, name, head, rows, notes, stages, trained=bool(log), edited=plan_edited(workspace / "plan")
    )
    if foreign:
        found.append(f"These cases are of another data set ({foreign}); the model was not adapted to it.")
    attacked = attacks(run, roots)
    found += attack_caveats(attacked)
    return ReportContent(
        headline=head,
        attacks=attacked,
        federation=federation,
        made=slices,
        only_makes=not segments,
        unit=unit,
        tolerance_mm=summary.get("tolerance_mm"),
        caveats=tuple(dict.fromkeys([*caveats, *found])),
        scores=tuple(s for s in lines if s.site == "all"),
        site_scores=tuple(s for s in lines if s.site != "all"),
        distributions=_distributions(rows),
        shown=tuple(_scrubbed(s, roots) for s in shown),
        loss=_series(log, "train", ("loss",)),
        rate=_series(log, "train", ("lr",)),
        validation=_series(log, "validation", ("dice",)),
        stages=stages,
        config=scrub(config_text, roots)[:_CONFIG_CHARACTERS],
        reasons=tuple(scrub(str(r), roots) for r in plan.get("reasons", ())),
        excluded=_excluded(manifest, summary, roots),
        flags=tuple(
            Reason(case, scrub("; ".join(map(str, entry["flags"])), roots))
            for case, entry in sorted(predicted.get("cases", {}).items())
            if entry.get("flags")
        ),
        failed=tuple(
            Reason(case, scrub(str(why), roots)) for case, why in sorted(predicted.get("failed", {}).items())
        ),
        warnings=warnings(workspace, run, manifest, folder, _prediction_folder(run, name), roots),
        notes=notes,
        commands=commands(
            workspace,
            run,
            name,
            config,
            readers.settings,
            scores=folder,
            metrics=readers.metrics,
            caveats=caveats,
            segments=segments,
        ),
        missing=missing,
        others=tuple(s for s in sets if s and s != name),
        sets=_side_by_side(run, sets, name, manifest),
        facts=_facts(plan, log, shown_unit=unit),
    )


def reproducible(content: ReportContent) -> dict[str, Any]:
    """Return what of the page must be the same when the whole arrow is run again, as JSON values.

    Durations, versions, machines, keys (that of `check` holds dates), the log's notes and the commands (they
    name folders) are left out; pictures stand as their hashes.
    """
    facts = dataclasses.asdict(content)
    facts.pop("notes")
    facts.pop("commands")
    for stage in facts["stages"]:
        for key in ("key", "seconds", "version", "machine"):
            stage.pop(key)
    for case in facts["shown"]:
        for view in case["views"]:
            view["sha256"] = hashlib.sha256(view.pop("data")).hexdigest()
    for picture in facts["made"]["pictures"] if facts["made"] else ():
        picture["sha256"] = hashlib.sha256(picture.pop("data")).hexdigest()
    for attacked in facts["attacks"]:
        attacked.pop("cost")
        for example in attacked["examples"]:
            for picture in example["pictures"]:
                picture["sha256"] = hashlib.sha256(picture.pop("data")).hexdigest()
    return dict(json.loads(json.dumps(facts)))


def _text(path: Path) -> str:
    return read_checked(path, limit=1 << 20).data.decode("utf-8", "replace") if path.is_file() else ""


def _config(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:  # the page shows the text itself; only the headline goes without
        return {}
    return value if isinstance(value, dict) else {}


def _manifest(workspace: Path, data_root: Path | None) -> Manifest | None:
    path = workspace / "check" / "manifest.json"
    raw = read_object(path)
    if not raw:
        return None
    if data_root is not None:
        raw["root"] = str(data_root)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise DataError(
            f"{path}: not a manifest of this version ({error.error_count()} faults); run seguro check again"
        ) from error


def _sets(folder: Path, file: str) -> dict[str, Path]:
    """Scored sets by name; the folder itself, when it holds the file, under ""."""
    found = {p.parent.name: p.parent for p in sorted(folder.glob(f"*/{file}"))}
    if (folder / file).is_file():
        found[""] = folder
    return found


def _scored(run: Path) -> dict[str, Path]:
    """Folders with scores by the name of their set: below scores/ or beside their predictions."""
    found = _sets(run / "scores", "scores.csv")
    for path in sorted((run / "predictions").glob("**/scores/scores.csv")):
        name = path.parent.parent.name if path.parent.parent != run / "predictions" else ""
        found.setdefault(name, path.parent)
    return found


def _pick(sets: Mapping[str, Path], wanted: str | None, run: Path) -> str:
    if wanted is not None and wanted not in sets:
        known = ", ".join(s or "(unnamed)" for s in sets) or "none"
        raise DataError(f"{run}: no scores called {wanted!r}; scored are: {known}; run seguro evaluate first")
    if wanted is not None:
        return wanted
    return "test" if "test" in sets else next(iter(sets), "")


def _prediction_folder(run: Path, name: str) -> Path:
    sets = _sets(run / "predictions", "predictions.json")
    if not name and sets:
        name = "test" if "test" in sets else next(iter(sets))
    return run / "predictions" / name if name else run / "predictions"


def _foreign(predicted: Mapping[str, Any], manifest: Manifest | None) -> str:
    """Return the name of the data set that was predicted if it is not the run's own, else ""."""
    named = [str(i).removeprefix(_OF) for i in predicted.get("inputs") or () if str(i).startswith(_OF)]
    return next((n for n in named if manifest is not None and n != manifest.name), "")


def _side_by_side(
    run: Path, sets: Mapping[str, Path], name: str, manifest: Manifest | None
) -> tuple[ScoredSet, ...]:
    """Return all scored sets, `name` first; nothing where it is the only one."""
    out = []
    for one in sorted(sets, key=lambda s: s != name):
        summary = read_object(sets[one] / "summary.json")
        other = _foreign(read_object(_prediction_folder(run, one) / "predictions.json"), manifest)
        title = (one or "(unnamed)") + (f" (data set {other})" if other else "")
        lines = tuple(s for s in _scores(summary) if s.site == "all")
        if lines:
            out.append(ScoredSet(title, str(summary.get("unit", "mm")), lines))
    return tuple(out) if len(out) > 1 else ()


def _log(path: Path) -> list[dict[str, Any]]:
    """Complete lines of the log; a last line that a kill cut short is left out."""
    if not path.is_file() or path.stat().st_size == 0:
        return []
    out = []
    for raw in read_checked(path, limit=_LOG_LIMIT).data.split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("update"), int):
            out.append(line)
    return out


def _series(log: Sequence[Mapping[str, Any]], kind: str, stems: Sequence[str]) -> tuple[Series, ...]:
    """Lines of the log as series.

    Keys that are a stem or begin with a stem and a dot, in order of appearance.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        if line.get("kind") != kind:
            continue
        for key, value in line.items():
            wanted = key in stems or key.split(".")[0] in stems
            if wanted and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(key, []).append((float(line["update"]), float(value)))
    names = {
        key: "mean" if key in stems and len(points) > 1 else key.partition(".")[2] or key for key in points
    }
    return tuple(Series(names[key], thin(values)) for key, values in points.items())


def _scores(summary: Mapping[str, Any]) -> list[Score]:
    lines = []
    for row in summary.get("rows", ()):
        cls = str(row["class"])
        lines.append(
            Score(
                cls="all" if cls in OVERALL else cls,
                metric=str(row["metric"]),
                mean=row.get("mean"),
                low=row.get("low"),
                high=row.get("high"),
                sd=row.get("sd"),
                median=row.get("median"),
                n_cases=int(row.get("n_cases") or 0),
                n_patients=int(row.get("n_patients") or 0),
                failures=int(row.get("failures") or 0),
                both_empty=int(row.get("both_empty") or 0),
                not_annotated=int(row.get("not_annotated") or 0),
                site=str(row.get("site", "all")),
            )
        )
    return lines


def _distributions(rows: Sequence[ScoreRow]) -> tuple[Distribution, ...]:
    metrics = list(dict.fromkeys(r.metric for r in rows))
    drawn = [m for wanted in ("dice", "hd95") for m in metrics if base(m) == wanted]
    classes = [c for c in dict.fromkeys(r.cls for r in rows) if c not in OVERALL]
    out = []
    for metric in drawn:
        groups = []
        for cls in classes:
            own = [r for r in rows if r.metric == metric and r.cls == cls and r.value is not None]
            groups.append((cls, tuple(Dot(r.case, float(r.value or 0.0), r.note in FAILURES) for r in own)))
        if any(dots for _, dots in groups):
            out.append(Distribution(metric, tuple(groups)))
    return tuple(out)


def _name(manifest: Manifest | None, plan: Mapping[str, Any], workspace: Path) -> str:
    return manifest.name if manifest else str(plan.get("name") or workspace.name.removesuffix(".seguro"))


def _excluded(
    manifest: Manifest | None, summary: Mapping[str, Any], roots: Sequence[str]
) -> tuple[Reason, ...]:
    found = [(e.id, e.reason) for e in manifest.excluded] if manifest else []
    for entry in summary.get("excluded", ()):
        known = isinstance(entry, Mapping)
        name = str(entry.get("id", entry.get("case", ""))) if known else str(entry)
        found.append((name, str(entry.get("reason", "")) if known else "left out of the scores"))
    return tuple(Reason(scrub(name, roots), scrub(why, roots)) for name, why in dict.fromkeys(found))


def _missing(
    workspace: Path, run: Path, predicted: bool, scored: bool, checked: bool, planned: bool, logged: bool
) -> tuple[str, ...]:
    parts = {
        "The manifest (seguro check): no pictures and no list of what was excluded.": checked,
        "The plan (seguro plan).": planned,
        "The training log.": logged,
        "A finished training (seguro train).": (run / "stage.json").is_file(),
        PREDICTIONS: predicted,
        SCORES: scored,
    }
    return tuple(text for text, there in parts.items() if not there)


def _missing_of_federation(run: Path, predicted: bool, scored: bool) -> tuple[str, ...]:
    """Return what a federated run lacks; data and training logs stay at the sites."""
    parts = {
        "The end of the federated run.": (run / "finished.json").is_file(),
        PREDICTIONS: predicted,
        SCORES: scored,
    }
    return tuple(text for text, there in parts.items() if not there)


def _facts(
    plan: Mapping[str, Any], log: Sequence[Mapping[str, Any]], *, shown_unit: str
) -> tuple[tuple[str, str], ...]:
    out = []
    if plan.get("dims"):
        out.append(("Dimensions", f"{plan['dims']}-D"))
    if plan.get("patch"):
        out.append(("Patch", " \N{MULTIPLICATION SIGN} ".join(str(n) for n in plan["patch"])))
    if plan.get("spacing"):
        out.append(
            (
                f"Spacing, {plan.get('unit', shown_unit)}",
                " \N{MULTIPLICATION SIGN} ".join(f"{s:.3g}" for s in plan["spacing"]),
            )
        )
    updates = max((x["update"] for x in log if x.get("kind") == "train"), default=None)
    if updates is not None:
        out.append(("Updates", f"{updates:,}".replace(",", " ")))
    return tuple(out)


def _scrubbed(shown: Shown, roots: Sequence[str]) -> Shown:
    return dataclasses.replace(shown, missing=scrub(shown.missing, roots))
