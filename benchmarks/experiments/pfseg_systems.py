"""PFSeg beside its baselines on real data: `python benchmarks/experiments/pfseg_systems.py NAME`.

Reads NAME/experiment.yaml beside this file. Whole volumes and windows need plans of different patches on the
same grid, so there are two workspaces of one data set with the same folds. For every seed in turn every arm
is trained, predicts and is evaluated; then `seguro bench pfseg` measures all systems of seed 0, with the
two-stage cascade and the controls of guidance. Writes result.json and figure.svg beside the experiment. What
is finished is skipped, so a stopped experiment goes on; `--only ARM` runs some arms, `--no-bench` leaves out
the measurement and `--collect` only gathers what is there: the seeds of each arm that are scored, those of
other workspaces and machines too (kept.py).

experiment.yaml: `data`, `check`, `plan`, `train` and `cases` as of `arms.py`; `merge` (name: classes of the
MSD data set that count as one); `grid` (fields of plan.json in both workspaces) and `workspaces` (name:
further fields); `kinds` (name: workspace and options of `train`); `arms` (name: kind, seeds, more options);
`pairs` (arm: arms that it is compared with, on the seeds that both have); `margins` (differences of such a
pair that are asked for: setting, against, metric, and at_least or at_most); `bench` (run, with, and options
of the command). With `folds` every arm is trained on each of them and its cases are scored together; with
`checkpoint: last` it is the last one of a run that is scored, not the one that validation chose. The cascade,
the controls and windows of other overlaps are compared with the bench's run case by case (`bench_pairs` of
result.json).
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    METRICS,
    dice_of,
    merged,
    options,
    over_seeds,
    planned,
    predictions,
    rows_of,
    runs_of,
    seguro,
)
from kept import keep, kept, recipe
from record import HERE, PACKAGES, standalone

from seguro.cli.bench import folder_of
from seguro.core.files import read_json, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.types import ScoreRow
from seguro.data.formats import read_label, write_label
from seguro.evaluation.scores import read_csv
from seguro.evaluation.statistics import MEAN, paired
from seguro.report.figures import strip

OWN = ("kind", "workspace", "seeds")
"""Fields of an arm and its kind that are no options of `train`."""


def arm_of(plan: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Return the fields of an arm on top of those of its kind."""
    return merged(plan["kinds"][plan["arms"][arm]["kind"]], plan["arms"][arm])


def train_options(plan: Mapping[str, Any], arm: str) -> dict[str, Any]:
    return {k: v for k, v in arm_of(plan, arm).items() if k not in OWN}


def workspace_of(work: Path, name: str, kind: str) -> Path:
    return work / f"{name}-{kind}.seguro"


def arm_runs(work: Path, name: str, plan: Mapping[str, Any], arm: str, seed: int) -> dict[Path, list[str]]:
    """Return the runs of one arm with one seed, one per fold, and their options of `train`."""
    return runs_of(plan, workspace_of(work, name, arm_of(plan, arm)["workspace"]), arm, seed)


def predicted(plan: Mapping[str, Any], run: Path) -> Path:
    """Return where the predictions of a run lie that are scored."""
    return predictions(plan, run, plan.get("checkpoint", "chosen"))


def prepare(folder: Path, plan: Mapping[str, Any], data_root: Path, work: Path) -> None:
    """Check and plan every workspace."""
    check = dict(plan.get("check", {}))
    if "patients" in check:
        check["patients"] = folder / check["patients"]
    data = data_root / plan["data"]
    if "merge" in plan:
        data = merged_classes(data, work / f"{folder.name}-data", plan["merge"])
    for kind, edit in plan["workspaces"].items():
        workspace = workspace_of(work, folder.name, kind)
        seguro("check", data, "--out", workspace, *options(check))
        planned(workspace, plan.get("plan", {}), {**plan.get("grid", {}), **edit})


def merged_classes(source: Path, out: Path, merge: Mapping[str, Sequence[str]]) -> Path:
    """Write the labelled cases of an MSD folder with some classes as one, those that are not there yet.

    The merged class has the value of the first of its parts; the other values stay. Returns `out`.
    """
    told = read_json(source / "dataset.json")
    names = {name: int(value) for value, name in told["labels"].items()}
    becomes = {value: value for value in names.values()}
    for name, parts in merge.items():
        first = names[parts[0]]
        becomes |= {names.pop(part): first for part in parts}
        names[name] = first
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for case in told["training"]:
        if (out / case["label"]).exists():
            continue
        shutil.copyfile(source / case["image"], out / case["image"])
        label = read_label(source / case["label"])
        values = np.vectorize(becomes.__getitem__, otypes=[np.uint8])(label.array)
        write_label(out / case["label"], values, label.source)
    labels = {str(value): name for name, value in sorted(names.items(), key=lambda item: item[1])}
    write_json(out / "dataset.json", {**told, "labels": labels})
    return out


def perform(plan: Mapping[str, Any], runs: Mapping[Path, list[str]], arm: str, seed: int) -> None:
    """Train, predict and evaluate one arm with one seed."""
    chosen = options(merged(plan.get("train", {}), train_options(plan, arm)))
    last = ["--last"] if plan.get("checkpoint") == "last" else []
    for run, fold in runs.items():
        seguro("train", run.parent.parent, *chosen, *fold, "--seed", seed, "--name", run.name)
        seguro("predict", run, "--cases", plan["cases"], *last, "--threads", 1)
        seguro("evaluate", predicted(plan, run), "--metrics", ",".join(METRICS), "--jobs", 1)


def measure(folder: Path, plan: Mapping[str, Any], work: Path) -> None:
    """Run the bench of seed 0 (and the first fold) unless its table is there already."""
    told = dict(plan["bench"])

    def path(arm: str) -> Path:
        return next(iter(arm_runs(work, folder.name, plan, arm, 0)))

    run, others = path(told.pop("run")), [path(a) for a in told.pop("with", [])]
    if (run / "bench" / "bench.json").exists():
        return
    if "second" in told:
        told["second"] = path(told["second"])
    seguro(
        "bench", "pfseg", run, *options({"with": others}), *options(told), "--cases", plan["cases"]
    )  # fmt: skip


def collect(folder: Path, plan: Mapping[str, Any], work: Path) -> None:
    """Write result.json and figure.svg of the seeds of every arm that are scored, on all folds."""
    folded = [k for k in ("folds", "checkpoint") if k in plan]
    recipes = {
        arm: recipe(plan, arm_of(plan, arm), "cases", "merge", "grid", "workspaces", *folded)
        for arm in plan["arms"]
    }
    for arm, own in plan["arms"].items():
        for seed in own["seeds"]:
            runs = list(arm_runs(work, folder.name, plan, arm, seed))
            files = [predicted(plan, run) / "scores" / "scores.csv" for run in runs]
            if all(file.exists() for file in files):
                recorded = [read_json(run / "stage.json")["recorded"] for run in runs]
                told = {k: recorded[0][k] for k in ("updates", "machine")}
                told["minutes"] = round(sum(one["minutes"] for one in recorded), 2)
                keep(folder, arm, seed, recipes[arm], [r for f in files for r in read_csv(f)], told)
    found = kept(folder, recipes, {arm: own["seeds"] for arm, own in plan["arms"].items()})
    scores = {arm: {seed: run.rows for seed, run in runs.items()} for arm, runs in found.items()}
    if not scores:
        sys.exit(f"{work}: nothing is scored yet")
    missing = [
        f"{a}, seed {s}" for a, t in plan["arms"].items() for s in t["seeds"] if s not in scores.get(a, {})
    ]
    pairs = compared(plan, scores)
    measured = {"bench": None, "bench_pairs": []}
    table = None
    if "bench" in plan:
        run = next(iter(arm_runs(work, folder.name, plan, plan["bench"]["run"], 0)))
        table = run / "bench" / "bench.json"
    if table is not None and table.exists():
        measured = {"bench": read_json(table), "bench_pairs": bench_pairs(run)}
    elif (folder / "result.json").exists():  # measured in another workspace
        before = read_json(folder / "result.json")
        measured = {k: before.get(k, v) for k, v in measured.items()}
    result = {
        "command": f"python benchmarks/experiments/pfseg_systems.py {folder.name}",
        "seed": {arm: list(runs) for arm, runs in scores.items()},
        "versions": {p: version(p) for p in PACKAGES},
        "machine": next(run.told["machine"] for runs in found.values() for run in runs.values()),
        **{
            k: {arm: [run.told[k] for run in runs.values()] for arm, runs in found.items()}
            for k in ("minutes", "updates")
        },
        "not_run": missing,
        "rows": [row for arm, runs in scores.items() for row in _rows(plan, arm, runs)],
        "pairs": pairs,
        "margins": margins(plan, pairs),
        **measured,
    }
    write_json(folder / "result.json", result)
    dots = [(arm, dice_of(over_seeds(list(runs.values())))) for arm, runs in scores.items()]
    drawing = strip(dots, axis="Dice of each case, over classes and seeds", limits=(0, 1))
    write_text(folder / "figure.svg", standalone(str(drawing)))
    if table is not None and table.exists():
        write_text(folder / "bench.svg", table.with_suffix(".svg").read_text())
    print(f"written: {folder.name}/result.json, figure.svg; not run: {', '.join(missing) or 'none'}")


def _rows(plan: Mapping[str, Any], arm: str, runs: Mapping[int, Sequence[ScoreRow]]) -> list[dict[str, Any]]:
    return rows_of({**plan, "arms": {arm: train_options(plan, arm)}}, arm, runs)


def compared(
    plan: Mapping[str, Any], scores: Mapping[str, Mapping[int, Sequence[ScoreRow]]]
) -> list[dict[str, Any]]:
    """Return the paired comparisons of the experiment, each on the seeds that both arms have."""
    every = [(a, b) for a, others in plan.get("pairs", {}).items() for b in others]
    shared = {(a, b): [s for s in scores.get(a, {}) if s in scores.get(b, {})] for a, b in every}
    return [
        {"setting": a, "against": b, "seeds": both, **row._asdict()}
        for (a, b), both in shared.items()
        if both
        for row in paired(
            over_seeds([scores[b][s] for s in both]), over_seeds([scores[a][s] for s in both]), intersect=True
        )
    ]


def bench_pairs(run: Path) -> list[dict[str, Any]]:
    """Return the paired comparison of each system of the bench with its run, on the same cases.

    Those that are runs themselves are left out: `pairs` holds them, over all seeds. What remains is the
    cascade, the controls of guidance, and windows of other overlaps.
    """
    folder = run / "bench"
    systems = [row["system"] for row in read_json(folder / "bench.json")["rows"]]
    own = read_csv(folder_of(folder, run.name) / "scores" / "scores.csv")
    return [
        {"setting": system, "against": run.name, **row._asdict()}
        for system in systems
        if any(system.startswith((f"{other} + ", f"{other}, ")) for other in systems)
        for row in paired(own, read_csv(folder_of(folder, system) / "scores" / "scores.csv"), intersect=True)
    ]


def margins(plan: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every difference that is asked for and has a pair, with what it is and whether it is kept."""
    out = []
    for asked in plan.get("margins", []):
        named = {k: asked[k] for k in ("setting", "against", "metric")} | {"cls": MEAN}
        for row in pairs:
            if all(row[k] == v for k, v in named.items()):
                least, most = asked.get("at_least", -math.inf), asked.get("at_most", math.inf)
                told = {k: row[k] for k in ("difference", "low", "high", "seeds")}
                out.append({**asked, **told, "kept": least <= row["difference"] <= most})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspaces lie")
    parser.add_argument("--only", action="append", help="these arms; repeatable")
    parser.add_argument("--no-bench", action="store_true", help="measure nothing")
    parser.add_argument("--collect", action="store_true", help="train and measure nothing")
    given = parser.parse_args()
    folder = HERE / given.name
    plan = read_yaml(folder / "experiment.yaml")
    unknown = sorted(set(given.only or []) - set(plan["arms"]))
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
    if not given.collect:
        prepare(folder, plan, given.data_root, given.work)
        chosen = given.only or list(plan["arms"])
        every = sorted({s for arm in chosen for s in plan["arms"][arm]["seeds"]})
        for seed, arm in product(every, chosen):
            if seed in plan["arms"][arm]["seeds"]:
                perform(plan, arm_runs(given.work, folder.name, plan, arm, seed), arm, seed)
        if "bench" in plan and not given.no_bench:
            measure(folder, plan, given.work)
    collect(folder, plan, given.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
