"""Compares ways to segment a site without labels: `python benchmarks/experiments/adaptation.py NAME`.

Reads NAME/experiment.yaml beside this file. Makes the sites (`scanners.py`, `vessels.py`), checks, plans,
and for every seed trains the `phases` that are needed, then trains, predicts and scores the `arms`, with the
command line of seguro. What is finished is skipped; `--only ARM` and `--seed N` run a part, and what an arm
starts from is trained before it; `--collect` only gathers what is there.

experiment.yaml: as for arms.py, and `scanners` (names in scanners.py; with `one_class: NAME` all classes are
one, with `crop: N` slices are the N x N central voxels) or `vessels` (the target of vessels.py), `labels`
(name: who keeps labels, as {site: "all", or a number of patients of whom there is one scan}) and `phases`
(name: options of `train`, scored by nobody). An option `init: NAME` starts from the run of that phase or arm
with the same seed; `labelled: NAME` is an entry of `labels`. With `folds: none` no arm is selected by labels
of the target: `adapt` by its loss on translations, all others deploy their last weights. A phase of `kind:
federate` has options of `federate simulate` instead, over the sites and with the plan's spacing and patch. An
arm with `volumes: N` adapts from N volumes that the run of `init` generates and labels, in the place of the
source's cases, in a workspace of its own that has test cases of the target alone.

`ways` (arm: ways of `predict --way`) scores an adapted model in these too, as "ARM, WAY".

The result names the `best_baseline`: of the arms of methods supervised and restyle that `adapt` is compared
with, the one with the highest Dice on the target's test cases. It is chosen by the scores that it is compared
on, which favors it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scanners
import vessels
from arms import METRICS, collect, merged, options, pairs_of, planned, predictions, seguro
from record import HERE

from seguro.core.files import read_json, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.types import Manifest
from seguro.data import check, manifest
from seguro.evaluation.statistics import MEAN

BASELINES = ("supervised", "restyle")
"""Methods that adapt nothing by a factory."""


def labelled_files(found: Manifest, labels: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """Write the patients of each entry of `labels`; returns the files.

    A number stands for the first patients of a site by name of whom there is one scan, so that it is also
    that of scans, and of slices where one of each scan is shown.
    """
    files = {}
    for name, sites in labels.items():
        chosen: list[str] = []
        for site, number in sites.items():
            scans = Counter(c.patient for c in found.of("train") if c.site == site)
            once = sorted(p for p, n in scans.items() if n == 1)
            if number != "all" and number > len(once):
                sys.exit(f"labels {name}: {number} patients of {site} with one scan, there are {len(once)}")
            chosen += sorted(scans) if number == "all" else once[:number]
        files[name] = folder / f"{name}.txt"
        write_text(files[name], "\n".join(sorted(chosen)) + "\n")
    return files


def needed(plan: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """Return the phases and arms to train for `wanted`, each after what it starts from."""
    runs = {**plan.get("phases", {}), **plan["arms"]}
    out: list[str] = []
    for name in wanted:
        start = runs[name].get("init")
        out += [n for n in (*needed(plan, [start] if start else []), name) if n not in out]
    return out


def best_baseline(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the arm with the highest Dice at the target of the baselines that `adapt` is compared with."""
    against = {other for one, other in pairs_of(plan) if one == "adapt"}
    against = {name for name in against if plan["arms"][name]["method"] in BASELINES}
    dice = {
        row["setting"]: row["value"]
        for row in rows
        if (row["site"], row["class"], row["metric"]) == (plan["target"], MEAN, "dice")
    }
    return max(sorted(against & set(dice)), key=lambda name: dice[name], default=None)


def resolved(arm: Mapping[str, Any], runs: Path, seed: int, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the options of `train` with the names of runs and of label sets replaced by their paths."""
    out = dict(arm)
    if "init" in out:
        out["init"] = runs / f"{out['init']}-seed{seed}"
    if "labelled" in out:
        out["labelled"] = files[out["labelled"]]
    return out


def perform(plan: Mapping[str, Any], workspace: Path, name: str, seed: int, threads: int) -> None:
    """Train one phase or arm with one seed, and predict and score it where it is an arm."""
    scored = name in plan["arms"]
    own = dict(plan["arms" if scored else "phases"][name])
    run = f"{name}-seed{seed}"
    if own.pop("kind", "train") == "federate":
        federated(plan, workspace, own, run, seed)
        return
    volumes = own.pop("volumes", None)
    home = synthetic(plan, workspace, own["init"], seed, volumes) if volumes else workspace
    files = labelled_files(manifest.load(home), plan["labels"], home)
    chosen = resolved(merged(plan.get("train", {}), own), workspace / "runs", seed, files)
    seguro("train", home, *options(chosen), "--seed", seed, "--name", run, "--threads", threads)
    if scored:
        folder = home / "runs" / run
        for way in ("chosen", *plan.get("ways", {}).get(name, [])):
            asked = [] if way == "chosen" else ["--way", way]
            seguro("predict", folder, "--cases", plan["cases"], *asked, "--threads", threads)
            seguro("evaluate", predictions(plan, folder, way), "--metrics", ",".join(METRICS), "--jobs", 1)
        if home != workspace and not (workspace / "runs" / run).exists():
            (workspace / "runs" / run).symlink_to(folder.resolve())  # where `collect` looks


def federated(plan: Mapping[str, Any], workspace: Path, own: Mapping[str, Any], run: str, seed: int) -> None:
    """Train a federation of the sites of a workspace, on the grid of its plan."""
    grid = {k: plan["edit"][k] for k in ("spacing", "patch") if k in plan["edit"]}
    settled = workspace / "federation.yaml"
    write_json(settled, {"plan": {**plan["plan"], **grid}})  # JSON is YAML
    given = ("--config", settled, "--preset", plan["train"]["preset"], *options(own))
    seguro("federate", "simulate", workspace, *given, "--seed", seed, "--name", run)


def synthetic(plan: Mapping[str, Any], workspace: Path, start: str, seed: int, volumes: int) -> Path:
    """Return a workspace in which synthetic volumes stand for all cases of the source, its test cases too."""
    (source,) = plan["labels"]["source"]
    out = workspace.with_name(f"{workspace.stem}-synthetic-{start}-seed{seed}")
    home = out.with_name(f"{out.name}.seguro")
    if not out.exists():
        run = workspace / "runs" / f"{start}-seed{seed}"
        asked = ("--domain", source, "--volumes", volumes, "--seed", seed)
        seguro("generate", run, *asked, "--beside", workspace, "--out", out)
    seguro("check", out, "--out", home, *options(plan.get("check", {})))
    planned(home, plan.get("plan", {}), plan.get("edit", {}))
    return home


def made(plan: Mapping[str, Any], root: Path, work: Path, name: str) -> Path:
    """Write the sites of an experiment into `work` and return their data set."""
    if "vessels" in plan:
        return vessels.write(root, work / name, plan["vessels"])
    kept = check.Options(quarantine=True)
    found = check.ensure(root / plan["data"], work / f"{plan['data']}.seguro", options=kept)
    cut, one = plan.get("crop"), plan.get("one_class")
    return scanners.write(found, work / name, plan["scanners"], one=one, crop=cut)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the sites and the workspace lie")
    parser.add_argument("--only", action="append", help="these arms; repeatable")
    parser.add_argument("--seed", type=int, action="append", help="these seeds; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    given = parser.parse_args()
    folder = HERE / given.name
    plan = read_yaml(folder / "experiment.yaml")
    unknown = sorted(set(given.only or []) - set(plan["arms"]))
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
    if other := set(given.seed or []) - set(plan["seeds"]):
        sys.exit(f"no seed {min(other)}; there are {plan['seeds']}")
    workspace = given.work / f"{given.name}.seguro"
    if not given.collect:
        data = made(plan, given.data_root, given.work, given.name)
        seguro("check", data, "--out", workspace, *options(plan.get("check", {})))
        planned(workspace, plan.get("plan", {}), plan.get("edit", {}))
        for seed in given.seed or plan["seeds"]:
            for name in needed(plan, given.only or list(plan["arms"])):
                perform(plan, workspace, name, seed, given.threads)
    collect(folder, plan, workspace)
    result = read_json(folder / "result.json")
    command = f"python benchmarks/experiments/adaptation.py {given.name}"
    best = best_baseline(plan, result["rows"])
    write_json(folder / "result.json", {**result, "command": command, "best_baseline": best})
    return 0


if __name__ == "__main__":
    sys.exit(main())
