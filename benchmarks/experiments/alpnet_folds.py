"""The published protocol of one-scan segmentation: `python benchmarks/experiments/alpnet_folds.py NAME`.

Reads NAME/experiment.yaml beside this file, trains one model for each fold, seed, arm and group of organs
(setting 1: one group, nothing is left out; setting 2: slices with ANY organ of the group are), scores it
under EP1 (slice range from the truth) and EP2 (nothing known), beside copy-the-mask, global prototypes and
the same encoder untrained, and writes result.json and figure.svg. Every trained model and scored fold is
kept: a stopped experiment goes on. `--only FOLD` shares the work among processes, `--collect` only gathers.

experiment.yaml: `data` (folder under the data root), `ids` (all ids of the published set in its order, also
those that are not here), `n_folds`, `folds` (names of those to run), `settings` (name: {group: label values
to find}), `excluding` (settings that leave slices out), `plan` (fields of PlanOptions), `train` (fields of
TrainOptions), `arms` (name: its config fields, over those of `train`; one without a name when none is given),
`seeds`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alpnet_scores import AFTER, BEFORE, Arm, Scan, Ways, by_slices, by_volume, scans
from record import HERE, PACKAGES, standalone
from scipy import stats

from seguro import api
from seguro.core.files import read_json, sha256_json, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.stage import machine
from seguro.core.types import ScoreRow
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.engine.model import load_model
from seguro.evaluation import protocol
from seguro.evaluation.statistics import summarize
from seguro.report.figures import Dot, strip

DRAWN = {
    "ep1 alp": "EP1",
    "ep1 copied mask": "EP1, mask copied",
    "ep1 global prototype": "EP1, global",
    "ep2 default": "EP2",
    "ep2 everywhere": "EP2, everywhere",
}
"""Settings in the figure, by short names."""


def planned(
    workspace: Path, data: Path, options: Mapping[str, Any], splits: Sequence[protocol.Split]
) -> Plan:
    """Plan the data with the published folds in place of our own."""
    _, manifest, _ = api.plan(data, out=workspace, options=PlanOptions(**options))
    here = {c.id for c in manifest.cases}
    folds = [
        {
            "name": f"paper{s.name}",
            "train": [i for i in s.train if i in here],
            "validation": [i for i in (*s.queries, s.support) if i in here],
        }
        for s in splits
    ]
    path = workspace / "plan" / "plan.json"
    content = read_json(path)
    if content["folds"] != folds:
        write_json(path, {**content, "folds": folds})
    return Plan.model_validate(read_json(path))


def training_of(plan: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """Return the fields of TrainOptions of an arm."""
    common = dict(plan.get("train", {}))
    if not arm.training:
        return common
    return {**common, "settings": {**common.get("settings", {}), **plan["arms"][arm.training]}}


def trained(workspace: Path, arm: Arm, plan: Mapping[str, Any], known: Mapping[str, Scan]) -> Path:
    """Train an arm, or return the run that is there."""
    train = training_of(plan, arm)
    settings = dict(train.get("settings", {}))
    if arm.setting in plan.get("excluding", []):
        shown = [i for i in arm.split.train if i in known]
        settings["excluded"] = {i: protocol.excluded(known[i].label, arm.organs) for i in shown}
    options = {k: v for k, v in train.items() if k != "settings"}
    return api.train(
        workspace,
        api.TrainOptions(
            method="alpnet", settings=settings, fold=f"paper{arm.split.name}", seed=arm.seed, name=arm.name,
            **options,
        ),
        say=lambda line: print(f"  {line}", flush=True),
    )  # fmt: skip


def perform(
    plan: Mapping[str, Any], arm: Arm, workspace: Path, known: Mapping[str, Scan], target: Path
) -> None:
    """Train and score one arm, unless scores of the same training are there."""
    how = training_of(plan, arm) if arm.training else plan.get("train")
    made_by = sha256_json([plan.get("plan"), how, plan["ids"], arm.setting, arm.organs])
    if target.exists() and read_json(target).get("made_by") == made_by:
        return
    support, queries = known.get(arm.split.support), [known[i] for i in arm.split.queries if i in known]
    if support is None or len(queries) < len(arm.split.queries):
        sys.exit(
            f"fold {arm.split.name}: not all of its scans are in {plan['data']}; leave it out of `folds`"
        )
    print(arm.name, flush=True)
    run = trained(workspace, arm, plan, known)
    ways = Ways(load_model(run), arm.seed)
    rows = []
    for query in queries:
        rows += by_slices(arm, ways, support, query)
        rows += by_volume(arm, ways, support, query)
        print(f"  scored {query.id}", flush=True)
    stage = read_json(run / "stage.json")["recorded"]
    kept = {k: stage.get(k) for k in ("minutes", "cpu_s", "updates", "threads", "device")}
    said = {"fold": arm.split.name, "seed": arm.seed, "arm": arm.training, "group": arm.group}
    write_json(target, {"made_by": made_by, **said, "training": kept, "rows": rows})


def collect(folder: Path, plan: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Write result.json and figure.svg from the scores that are there."""
    parts = [read_json(f) for f in files if f.exists()]
    if not parts:
        sys.exit("nothing is scored yet")
    scored: dict[tuple[str, str], dict[tuple[str, str], dict[int, float]]]
    scored = defaultdict(lambda: defaultdict(dict))
    quality, absent = [], []
    for part in parts:
        for r in part["rows"]:
            if r["what"] == "quality":
                quality.append((r["cycle"], r["dice"]))
                if r["cycle_absent"] is not None:
                    absent.append((r["cycle"], r["cycle_absent"]))
            else:
                setting = ", ".join(filter(None, (r["setting"], part.get("arm"))))
                scored[setting, r["what"]][r["case"], r["class"]][part["seed"]] = r["dice"] or 0.0
    seeds = sorted({p["seed"] for p in parts})
    folds = "folds " + ", ".join(sorted({p["fold"] for p in parts}))
    rows, dots, by_seed = [], [], {}
    for (setting, what), values in sorted(scored.items()):
        means = {k: statistics.fmean(v.values()) for k, v in values.items()}
        for s in summarize(table_of(means)):
            if s.site == "all" and s.mean is not None:
                rows.append(
                    {
                        "data": plan["data"], "split": folds, "method": "alpnet",
                        "setting": f"setting {setting}, {what}", "class": s.cls, "metric": "dice",
                        "value": s.mean, "low": s.low, "high": s.high, "n": s.n_cases,
                        "patients": s.n_patients, "seeds": seeds,
                    }
                )  # fmt: skip
        if what in DRAWN:
            of = f"{setting}: " if len({s for s, _ in scored}) > 1 else ""
            dots.append((of + DRAWN[what], [Dot(f"{c} {o}", v) for (c, o), v in sorted(means.items())]))
            by_seed[f"setting {setting}, {what}"] = {
                str(seed): mean_of({k: v[seed] for k, v in values.items() if seed in v}) for seed in seeds
            }
    spearman = float(stats.spearmanr(*zip(*quality, strict=True)).statistic) if len(quality) > 2 else None
    write_json(
        folder / "result.json",
        {
            "command": f"python benchmarks/experiments/alpnet_folds.py {folder.name}",
            "seed": seeds,
            "versions": {p: version(p) for p in PACKAGES},
            "machine": machine(),
            "training": [{**named(p), **p["training"]} for p in parts],
            "not_run": [f.stem for f in files if not f.exists()],
            "quality": {
                "spearman_cycle_and_true_dice": spearman,
                "n": len(quality),
                "share_of_absent_below_present": float(np.mean([b < a for a, b in absent]))
                if absent
                else None,
            },
            "by_seed": by_seed,
            "correction": corrections(parts),
            "rows": rows,
        },
    )
    drawing = strip(dots, axis="Dice, a dot per scan and organ", limits=(0.0, 1.0))
    write_text(folder / "figure.svg", standalone(str(drawing)))
    print(f"written: {folder.name}/result.json, figure.svg")
    for r in rows:
        if r["class"] == "mean":
            print(f"  {r['setting']:52s} {100 * r['value']:5.1f}")


def named(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return which training some scores are of."""
    return {"fold": part["fold"], "seed": part["seed"], **({"arm": part["arm"]} if part.get("arm") else {})}


def table_of(values: Mapping[tuple[str, str], float]) -> list[ScoreRow]:
    """Return scores (case, organ) -> Dice as rows."""
    return [ScoreRow(c, c, "", organ, "dice", v) for (c, organ), v in sorted(values.items())]


def mean_of(values: Mapping[tuple[str, str], float]) -> float | None:
    """Return the mean over cases of the mean over organs."""
    return next((s.mean for s in summarize(table_of(values)) if s.site == "all" and s.cls == "mean"), None)


def corrections(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what correcting each scan's worst slice took, and what it did to the other slices."""
    scans_ = []
    for part in parts:
        dice: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        seconds = {}
        for r in part["rows"]:
            if r["what"] in (BEFORE, AFTER):
                dice[r["case"]][r["what"]].append(r["dice"] or 0.0)
                seconds[r["case"]] = r["seconds"]
        for case, found in dice.items():
            before, after = statistics.fmean(found[BEFORE]), statistics.fmean(found[AFTER])
            scans_.append(
                {**named(part), "case": case, "before": before, "after": after, "change": after - before,
                 "seconds": seconds[case]}
            )  # fmt: skip
    if not scans_:
        return None
    return {
        "median_seconds": statistics.median(s["seconds"] for s in scans_),
        "mean_change": statistics.fmean(s["change"] for s in scans_),
        "fell": sum(s["change"] < 0 for s in scans_),
        "scans": scans_,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file, or its path")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspace lies")
    parser.add_argument("--only", action="append", help="these folds; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train and score nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = HERE / given.name if (HERE / given.name).exists() else Path(given.name)
    plan = read_yaml(folder / "experiment.yaml")
    workspace = given.work / f"{folder.name}.seguro"
    splits = {s.name: s for s in protocol.splits([str(i) for i in plan["ids"]], plan.get("n_folds", 5))}
    arms = [
        (Arm(splits[f], str(setting), group, (), seed, name), values)
        for f in map(str, plan["folds"])
        for setting, groups in plan["settings"].items()
        for group, values in groups.items()
        for seed in plan.get("seeds", [0])
        for name in plan.get("arms", [""])
    ]
    target = workspace / "scores"
    if not given.collect:
        data = given.data_root / plan["data"]
        made = planned(workspace, data, plan.get("plan", {}), [splits[str(f)] for f in plan["folds"]])
        api.prepare(data, out=workspace, jobs=1)
        manifest = api.manifest_of(data, workspace)
        known = scans(workspace, made, [c for c in manifest.of("train") if c.label is not None])
        indices = {v[0]: i for i, v in enumerate(made.classes.values)}
        for arm, values in arms:
            if not given.only or arm.split.name in given.only:
                chosen = replace(arm, organs=tuple(indices[v] for v in values))
                perform(plan, chosen, workspace, known, target / f"{arm.name}.json")
    collect(folder, plan, [target / f"{arm.name}.json" for arm, _ in arms])
    return 0


if __name__ == "__main__":
    sys.exit(main())
