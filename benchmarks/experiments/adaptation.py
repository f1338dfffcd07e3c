"""Compares ways to segment a site without labels: `python benchmarks/experiments/adaptation.py NAME`.

Reads NAME/experiment.yaml beside this file. Makes the sites (`scanners.py`, `vessels.py`), checks, plans,
and for every seed trains the `phases` in their order, then trains, predicts and scores the `arms`, with the
command line of seguro. What is finished is skipped; `--only ARM` runs some arms, `--collect` only gathers
what is there.

experiment.yaml: as for arms.py, and `scanners` (names in scanners.py; with `one_class: NAME` all classes are
one) or `vessels` (the target of vessels.py), `labels` (name: who keeps labels, as {site: number of patients,
or "all"}) and `phases` (name: options of `train`, scored by nobody). An option `init: NAME` starts from the
run of that phase or arm with the same seed; `labelled: NAME` is an entry of `labels`. With `folds: none` no
arm is selected by labels of the target: `adapt` by its loss on translations, all others deploy their last
weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scanners
import vessels
from arms import METRICS, collect, merged, options, planned, seguro
from record import HERE

from seguro.core.files import read_json, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.types import Manifest
from seguro.data import check, manifest


def labelled_files(found: Manifest, labels: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """Write the patients of each entry of `labels`, the first ones of a site by name; returns the files."""
    files = {}
    for name, sites in labels.items():
        chosen: list[str] = []
        for site, number in sites.items():
            patients = sorted({c.patient for c in found.of("train") if c.site == site})
            chosen += patients if number == "all" else patients[: int(number)]
        files[name] = folder / f"{name}.txt"
        write_text(files[name], "\n".join(sorted(chosen)) + "\n")
    return files


def resolved(arm: Mapping[str, Any], runs: Path, seed: int, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the options of `train` with the names of runs and of label sets replaced by their paths."""
    out = dict(arm)
    if "init" in out:
        out["init"] = runs / f"{out['init']}-seed{seed}"
    if "labelled" in out:
        out["labelled"] = files[out["labelled"]]
    return out


def perform(
    plan: Mapping[str, Any], workspace: Path, name: str, seed: int, files: Mapping[str, Path], threads: int
) -> None:
    """Train one phase or arm with one seed, and predict and score it where it is an arm."""
    scored = name in plan["arms"]
    own = plan["arms" if scored else "phases"][name]
    chosen = resolved(merged(plan.get("train", {}), own), workspace / "runs", seed, files)
    run = f"{name}-seed{seed}"
    seguro("train", workspace, *options(chosen), "--seed", seed, "--name", run, "--threads", threads)
    if scored:
        folder = workspace / "runs" / run
        seguro("predict", folder, "--cases", plan["cases"], "--threads", threads)
        seguro(
            "evaluate", folder / "predictions" / plan["cases"], "--metrics", ",".join(METRICS), "--jobs", 1
        )


def made(plan: Mapping[str, Any], root: Path, work: Path, name: str) -> Path:
    """Write the sites of an experiment into `work` and return their data set."""
    if "vessels" in plan:
        return vessels.write(root, work / name, plan["vessels"])
    kept = check.Options(quarantine=True)
    found = check.ensure(root / plan["data"], work / f"{plan['data']}.seguro", options=kept)
    return scanners.write(found, work / name, plan["scanners"], one=plan.get("one_class"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the sites and the workspace lie")
    parser.add_argument("--only", action="append", help="these arms; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    given = parser.parse_args()
    folder = HERE / given.name
    plan = read_yaml(folder / "experiment.yaml")
    unknown = sorted(set(given.only or []) - set(plan["arms"]))
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
    workspace = given.work / f"{given.name}.seguro"
    if not given.collect:
        data = made(plan, given.data_root, given.work, given.name)
        seguro("check", data, "--out", workspace, *options(plan.get("check", {})))
        planned(workspace, plan.get("plan", {}), plan.get("edit", {}))
        files = labelled_files(manifest.load(workspace), plan["labels"], workspace)
        for seed in plan["seeds"]:
            for name in [*plan.get("phases", {}), *(given.only or plan["arms"])]:
                perform(plan, workspace, name, seed, files, given.threads)
    collect(folder, plan, workspace)
    result = read_json(folder / "result.json")
    command = f"python benchmarks/experiments/adaptation.py {given.name}"
    write_json(folder / "result.json", {**result, "command": command})
    return 0


if __name__ == "__main__":
    sys.exit(main())
