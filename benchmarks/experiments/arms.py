"""Compares ways of learning on the same cases: `python benchmarks/experiments/arms.py NAME`.

Reads NAME/experiment.yaml beside this file, runs check, plan, train, predict and evaluate for every arm
and seed with the command line of seguro, and writes result.json and figure.svg beside it. What is finished is
skipped, so a stopped experiment goes on; `--only ARM` and `--seed N` run a part (several processes may share
the work) and `--collect` only gathers what is there. The scores of every case stay in NAME/scores (kept.py):
what was run in another workspace, or on another machine, is gathered too.

experiment.yaml: `data` (folder under the data root), `check`, `plan` and `train` (options of these commands,
as on the command line), `edit` (fields of plan.json), `seeds`, `cases`, `arms` (name: options of `train` on
top) and `pairs` (arm: the arm, or arms, that it is compared with). `set` lists are joined, any other option
of an arm replaces the common one. With `folds` every arm is trained on each of them and its cases are scored
together. `checkpoints` are the ones of a run that are scored: `chosen` by validation, `last`, or both of the
same run; the last one's settings are called "NAME, last". `full` (arm: the same with all labels) adds to each
of `pairs` how much of the gap between its second arm and that one the first closes. `probabilities: true`
keeps them and adds the calibration error. `subjects: true` scores the slices of a patient as one volume
(Dice alone). `workspace` names the experiment whose runs are shared: arms of the
same name are the same there. With `target` (a site) rows are of each site, pairs, gaps and figure of its
cases.

Values of a case are means over the seeds; intervals are over patients and say nothing of other seeds, whose
spread is `sd_of_seeds`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from kept import keep, kept, recipe
from record import HERE, PACKAGES, standalone
from subjects import subject_rows

from seguro.core.files import read_json, write_json, write_text
from seguro.core.seeds import generator
from seguro.core.settings import read_yaml
from seguro.core.types import ScoreRow
from seguro.evaluation.scores import read_csv
from seguro.evaluation.statistics import BOOTSTRAPS, paired, summarize
from seguro.report.figures import Dot, strip

METRICS = ("dice", "hd95", "assd")
OWN = ("cases", "folds", "scanners", "crop", "one_class", "vessels", "labels", "phases")
"""Fields of an experiment, besides the common ones, that tell how its arms are made."""


def seguro(*arguments: object) -> None:
    """Run one command and stop the experiment where it fails."""
    done = subprocess.run(["seguro", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(f"stopped: seguro {' '.join(map(str, arguments))}")


def options(values: Mapping[str, Any]) -> list[str]:
    """Return `--name value` arguments; lists repeat the option, true is a bare flag."""
    out: list[str] = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            out += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return out


def merged(common: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an arm: its own over the common ones, `set` lists joined."""
    return {**common, **arm, "set": [*common.get("set", []), *arm.get("set", [])]}


def planned(workspace: Path, given: Mapping[str, Any], edit: Mapping[str, Any]) -> None:
    """Plan, and then change plan.json as a user would with an editor."""
    path = workspace / "plan" / "plan.json"
    if not path.exists():
        seguro("plan", workspace, *options(given))
    plan = read_json(path)
    if any(plan[k] != v for k, v in edit.items()):
        write_json(path, {**plan, **edit})


def runs_of(plan: Mapping[str, Any], workspace: Path, name: str, seed: int) -> dict[Path, list[str]]:
    """Return the runs of one arm with one seed, one per fold, and their options of `train`."""
    runs = workspace / "runs"
    if "folds" not in plan:
        return {runs / f"{name}-seed{seed}": []}
    return {runs / f"{name}-fold{f}-seed{seed}": ["--folds", str(f)] for f in plan["folds"]}


def pairs_of(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of arms that are compared; one may be compared with several."""
    every = plan.get("pairs", {}).items()
    return [(a, b) for a, others in every for b in ([others] if isinstance(others, str) else others)]


def made_from(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of an arm or phase, with those of what it starts from in the place of its name."""
    own = {**plan.get("phases", {}), **plan["arms"]}[name]
    return {**own, "init": made_from(plan, own["init"])} if "init" in own else dict(own)


def of_target(plan: Mapping[str, Any], rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return the rows of the target's cases, all where no site is the target."""
    return [row for row in rows if row.site == plan.get("target", row.site)]


def named(arm: str, checkpoint: str) -> str:
    """Return what the result calls an arm's `checkpoint`, or a way of it to predict."""
    return arm if checkpoint == "chosen" else f"{arm}, {checkpoint}"


def checkpoints(plan: Mapping[str, Any]) -> list[str]:
    """Return the checkpoints of each run that are scored."""
    return list(plan.get("checkpoints", ["chosen"]))


def settings(plan: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what has a result of its own: name -> (arm, checkpoint)."""
    return {
        named(a, k): (a, k)
        for a in plan["arms"]
        for k in [*checkpoints(plan), *plan.get("ways", {}).get(a, [])]
    }


def predictions(plan: Mapping[str, Any], run: Path, checkpoint: str) -> Path:
    """Return where the predictions of a run lie, as `seguro predict` names them."""
    return run / "predictions" / (plan["cases"] + ("" if checkpoint == "chosen" else f"-{checkpoint}"))


def perform(plan: Mapping[str, Any], workspace: Path, name: str, seed: int, threads: int) -> None:
    """Train, predict and evaluate one arm with one seed."""
    chosen = options(merged(plan.get("train", {}), plan["arms"][name]))
    kept, metrics = (["--probabilities"], [*METRICS, "ece"]) if plan.get("probabilities") else ([], METRICS)
    for run, fold in runs_of(plan, workspace, name, seed).items():
        seguro("train", workspace, *chosen, *fold, "--seed", seed, "--name", run.name, "--threads", threads)
        for kind in checkpoints(plan):
            last = ["--last"] if kind == "last" else []
            seguro("predict", run, "--cases", plan["cases"], *last, *kept, "--threads", threads)
            seguro("evaluate", predictions(plan, run, kind), "--metrics", ",".join(metrics), "--jobs", 1)


def over_seeds(runs: Sequence[Sequence[ScoreRow]]) -> list[ScoreRow]:
    """Return one row per case, class and metric: the mean over seeds of what has a value."""
    groups: dict[tuple[str, str, str], list[ScoreRow]] = defaultdict(list)
    for rows in runs:
        for row in rows:
            groups[row.case, row.cls, row.metric].append(row)
    out = []
    for same in groups.values():
        values = [r.value for r in same if r.value is not None]
        notes = sorted({r.note for r in same if r.note})
        out.append(
            same[0]._replace(value=statistics.fmean(values) if values else None, note=", ".join(notes))
        )
    return out


def rows_of(
    plan: Mapping[str, Any], setting: str, runs: Mapping[int, Sequence[ScoreRow]]
) -> list[dict[str, Any]]:
    """Return result rows of one setting: means over cases of the mean over seeds, and the spread of seeds.

    They are of all sites together, or of each where the plan has a target.
    """
    name, _ = settings(plan)[setting]
    each = [{(s.site, s.cls, s.metric): s.mean for s in summarize(r)} for r in runs.values()]
    out = []
    for row in summarize(over_seeds(list(runs.values()))):
        if (row.site == "all") == ("target" in plan) or row.mean is None:
            continue
        means = [m for e in each if (m := e.get((row.site, row.cls, row.metric))) is not None]
        out.append(
            {
                "data": plan["data"],
                "split": plan["cases"],
                "method": merged(plan.get("train", {}), plan["arms"][name]).get("method", "supervised"),
                "setting": setting,
                **({"site": row.site} if "target" in plan else {}),
                "class": row.cls,
                "metric": row.metric,
                "value": row.mean,
                "sd": row.sd,
                "low": row.low,
                "high": row.high,
                "n": row.n_cases,
                "patients": row.n_patients,
                "seeds": list(runs),
                "sd_of_seeds": statistics.stdev(means) if len(means) > 1 else None,
            }
        )
    return out


def closed(
    lower: Sequence[ScoreRow], arm: Sequence[ScoreRow], full: Sequence[ScoreRow]
) -> dict[str, float | None]:
    """Return how much of the gap in Dice between `lower` and `full` an arm closes, with its 95 % interval.

    Gap and gain are means over the cases that all three have, patients are drawn with replacement. There is
    no interval where a draw has no gap: then there is nothing to close a part of.
    """
    by_case = [{d.case: d.value for d in dice_of(rows)} for rows in (lower, arm, full)]
    patient = {row.case: row.patient for row in lower}
    cases = sorted(set.intersection(*map(set, by_case)))
    low, got, most = (np.array([scores[c] for c in cases]) for scores in by_case)
    names = sorted({patient[c] for c in cases})
    member = np.array([[patient[c] == name for c in cases] for name in names], dtype=float)
    gains, gaps = member @ (got - low), member @ (most - low)  # (patients,) sums
    times = generator(0, "closed").multinomial(len(names), np.full(len(names), 1 / len(names)), BOOTSTRAPS)
    drawn = times @ gaps
    out: dict[str, float | None] = {
        "gap": float(gaps.sum() / len(cases)),
        "closed": float(gains.sum() / gaps.sum()) if gaps.sum() > 0 else None,
        "low": None,
        "high": None,
    }
    if drawn.min() > 0:
        ends = np.quantile(times @ gains / drawn, (0.025, 0.975))
        out |= {"low": float(ends[0]), "high": float(ends[1])}
    return out


def gaps_closed(
    plan: Mapping[str, Any], scores: Mapping[str, Mapping[int, Sequence[ScoreRow]]]
) -> list[dict[str, Any]]:
    """Return what each first arm of `pairs` closes of its gap to the arm with all labels, on common seeds."""
    out = []
    for name, below in pairs_of(plan):
        for kind in checkpoints(plan) if below in plan.get("full", {}) else []:
            three = [named(a, kind) for a in (below, name, plan["full"][below])]
            seeds = [s for s in plan["seeds"] if all(s in scores.get(n, {}) for n in three)]
            if seeds:
                found = closed(*(over_seeds([scores[n][s] for s in seeds]) for n in three))
                said = dict(zip(("against", "setting", "full"), three, strict=True))
                out.append({**said, "seeds": seeds, "metric": "dice", **found})
    return out


def scored(plan: Mapping[str, Any], workspace: Path, file: Path) -> list[ScoreRow]:
    """Return the rows of a file of scores, or of its subjects where the plan asks for them."""
    return subject_rows(workspace, file.parents[1]) if plan.get("subjects") else read_csv(file)


def collect(folder: Path, plan: Mapping[str, Any], workspace: Path) -> None:
    """Write result.json and figure.svg of the seeds of every arm that are scored on all folds.

    Two arms are compared on the seeds that both have.
    """
    known = settings(plan)
    more = [*OWN, *(["subjects"] if "subjects" in plan else [])]
    recipes = {s: recipe(plan, made_from(plan, arm), *more) for s, (arm, _) in known.items()}
    for setting, (arm, kind) in known.items():
        for seed in plan["seeds"]:
            runs = list(runs_of(plan, workspace, arm, seed))
            files = [predictions(plan, r, kind) / "scores" / "scores.csv" for r in runs]
            if all(f.exists() for f in files):
                stages = [read_json(r / "stage.json")["recorded"] for r in runs]
                minutes = round(sum(stage["minutes"] for stage in stages), 2)
                told = {"minutes": minutes, "machine": stages[0]["machine"]}
                rows = [row for f in files for row in scored(plan, workspace, f)]
                keep(folder, setting, seed, recipes[setting], rows, told)
    found = kept(folder, recipes, dict.fromkeys(recipes, plan["seeds"]))
    scores = {s: {seed: run.rows for seed, run in runs.items()} for s, runs in found.items()}
    of_arm = {known[s][0]: [run.told["minutes"] for run in runs.values()] for s, runs in found.items()}
    if not scores:
        sys.exit(f"{workspace}: no arm is scored for any of the seeds {plan['seeds']}")
    missing = [f"{n}, seed {s}" for n in known for s in plan["seeds"] if s not in scores.get(n, {})]
    every = [(named(a, k), named(b, k)) for a, b in pairs_of(plan) for k in checkpoints(plan)]
    pairs = [
        (a, b, both) for a, b in every if (both := [s for s in scores.get(a, {}) if s in scores.get(b, {})])
    ]
    target = {n: {s: of_target(plan, rows) for s, rows in runs.items()} for n, runs in scores.items()}
    result = {
        "command": f"python benchmarks/experiments/arms.py {folder.name}",
        "seed": list(plan["seeds"]),
        "versions": {p: version(p) for p in PACKAGES},
        "machine": next(run.told["machine"] for runs in found.values() for run in runs.values()),
        "minutes": of_arm,
        "not_run": missing,
        "rows": [row for name, runs in scores.items() for row in rows_of(plan, name, runs)],
        "pairs": [
            {"setting": a, "against": b, "seeds": both, **row._asdict()}
            for a, b, both in pairs
            for row in paired(
                over_seeds([target[b][s] for s in both]),
                over_seeds([target[a][s] for s in both]),
                intersect=True,
            )
        ],
        "gaps": gaps_closed(plan, target),
    }
    write_json(folder / "result.json", result)
    dots = [(name, dice_of(over_seeds(list(runs.values())))) for name, runs in target.items()]
    write_text(
        folder / "figure.svg",
        standalone(str(strip(dots, axis="Dice of each case, over classes and seeds", limits=(0, 1)))),
    )
    print(f"written: {folder.name}/result.json, figure.svg; not run: {', '.join(missing) or 'none'}")


def dice_of(rows: Sequence[ScoreRow]) -> list[Dot]:
    """Return the mean Dice over the classes of each case."""
    cases: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.metric == "dice" and row.value is not None:
            cases[row.case].append(row.value)
    return [Dot(case, statistics.fmean(values)) for case, values in sorted(cases.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspace lies")
    parser.add_argument("--only", action="append", help="these arms; repeatable")
    parser.add_argument("--seed", type=int, action="append", help="these seeds; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    given = parser.parse_args()
    folder = HERE / given.name
    plan = read_yaml(folder / "experiment.yaml")
    workspace = given.work / f"{plan.get('workspace', given.name)}.seguro"
    if not given.collect:
        unknown = sorted(set(given.only or []) - set(plan["arms"]))
        if unknown:
            sys.exit(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
        if other := set(given.seed or []) - set(plan["seeds"]):
            sys.exit(f"no seed {min(other)}; there are {plan['seeds']}")
        check = dict(plan.get("check", {}))
        if "patients" in check:
            check["patients"] = (folder / check["patients"]).resolve()
        seguro("check", given.data_root / plan["data"], "--out", workspace, *options(check))
        planned(workspace, plan.get("plan", {}), plan.get("edit", {}))
        for seed in given.seed or plan["seeds"]:
            for name in given.only or plan["arms"]:
                perform(plan, workspace, name, seed, given.threads)
    collect(folder, plan, workspace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
