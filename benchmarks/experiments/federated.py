"""Compares federated with isolated and pooled training: `python benchmarks/experiments/federated.py NAME`.

Reads NAME/experiment.yaml beside this file, makes the hospitals that it describes of one data set, trains
and scores every arm with every seed, and writes result.json and figure.svg beside it. What is finished is
skipped, so a stopped experiment goes on; `--only ARM` runs some arms, `--collect` only gathers what is there,
and `--rehearse` runs everything at the size under `rehearsal` and writes the result into the work folder.

experiment.yaml: `data` (an MSD folder under the data root), `test_every` (blocks of so many cases, by id, go
to the sites in turn; the last of each block is a test case), `worlds` (name: sites), `preset`, `batch`,
`rounds`, `updates`, `seeds`, `metrics`, `cases` (only so many, by id), `memory` (GiB of a training step,
which decides the patch), `arms` and `pairs` (what is compared with what, per site too). A site
is `{}` or has one of
  contrast: {invert, gamma}  every image x, scaled to 0..1 by its own range, becomes (1 - x)^gamma or x^gamma,
                             scaled back; its test images too
  labels: none               its training cases have none
  classes: [...]             only these classes are annotated in its training cases, others are wiped out
An arm has `world`, `method` and `kind`: federated (with `strategy` and `hostile`, which names sites whose
change is multiplied by a number before it leaves), pooled (all sites' training cases in one place, for
`updates` updates), or isolated (each of `sites` alone, for rounds x updates; called "ARM, SITE"). Every model
is scored on the test cases of all sites of its world, whose labels are complete.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from arms import dice_of, over_seeds, seguro
from record import HERE, PACKAGES, standalone

from seguro.api import federation as api
from seguro.core.files import read_json, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.stage import locked, machine
from seguro.core.types import ScoreRow
from seguro.data import manifest as manifests
from seguro.evaluation.scores import read_csv
from seguro.evaluation.statistics import paired, summarize
from seguro.federated import message
from seguro.federated.site import Site
from seguro.report.figures import strip


class Hostile(Site):
    """A site that multiplies its change of the weights before it leaves."""

    scale = 1.0

    def answer(self, data: bytes) -> bytes:
        """Return the answer to the task in `data`, a trained one changed."""
        out = super().answer(data)
        task, update = message.task_from(data), message.update_from(out)
        if update.action != "train" or update.refused:
            return out
        return message.to_bytes(replace(update, arrays=scaled(task.arrays, update.arrays, self.scale)))


def scaled(old: message.Arrays, new: message.Arrays, scale: float) -> message.Arrays:
    """Return old + scale (new - old) of the floating-point arrays, the others as they are."""
    return {
        k: np.asarray(old[k] + scale * (v - old[k]), v.dtype) if v.dtype.kind == "f" else v
        for k, v in new.items()
    }


def hostile(site: Site, scale: float) -> Hostile:
    """Return the same site, hostile."""
    out = Hostile(**{f.name: getattr(site, f.name) for f in fields(Site) if f.init})
    out.scale = scale
    return out


def recontrasted(image: Any, *, invert: bool = False, gamma: float = 1.0) -> Any:
    """Return the image with x -> x^gamma, or (1 - x)^gamma, of its own range."""
    values = np.asarray(image.dataobj, np.float32)
    low, width = float(values.min()), float(np.ptp(values)) or 1.0
    x = (values - low) / width
    return nib.Nifti1Image(low + width * (1 - x if invert else x) ** gamma, image.affine)


def made(source: Path, folder: Path, sites: Mapping[str, Any], test_every: int, limit: int | None) -> Path:
    """Write the data folder of a world, once, and return it."""
    if (folder / "dataset.json").exists():
        return folder
    dataset = read_json(source / "dataset.json")
    values = {name: int(value) for value, name in dataset["labels"].items()}
    entries = sorted(dataset["training"], key=lambda e: e["image"])[:limit]
    people, annotated = [], {}
    for i, entry in enumerate(entries):
        site = list(sites)[i // test_every % len(sites)]
        wanted, test = sites[site], i % test_every == test_every - 1
        case = Path(entry["image"]).name.removesuffix(".nii.gz")
        image, label = (nib.load(source / entry[k]) for k in ("image", "label"))
        if "contrast" in wanted:
            image = recontrasted(image, **wanted["contrast"])
        if "classes" in wanted and not test:
            keep = [values[n] for n in wanted["classes"]]
            kept = np.asarray(label.dataobj)
            label = nib.Nifti1Image(np.where(np.isin(kept, keep), kept, 0).astype(np.uint8), label.affine)
            annotated[case] = list(wanted["classes"])
        split = "test" if test else "unlabelled" if wanted.get("labels") == "none" else "train"
        people.append([case, case, site, split])
        for kind, what in (("image", image), ("label", label)):
            path = folder / entry[kind]
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(what, path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["id", "patient", "site", "split"], *people])
    write_text(folder / "patients.csv", text.getvalue())
    if annotated:
        write_json(folder / "annotated.json", annotated)
    write_json(folder / "dataset.json", {**dataset, "training": entries, "numTraining": len(entries)})
    return folder


def alone(workspace: Path, site: str) -> Path:
    """Return the workspace with the training cases of one site and the test cases of all."""
    out = workspace.with_name(f"{workspace.stem}-{site}.seguro")
    manifest = manifests.load(workspace / "check" / manifests.FILE)
    cases = tuple(c for c in manifest.cases if c.split == "test" or c.site == site)
    own = manifest.model_copy(update={"cases": cases, "name": out.stem, "splits_sha256": None})
    manifests.save(own, out / "check" / manifests.FILE)
    return out


def settings(plan: Mapping[str, Any], work: Path) -> dict[str, tuple[str, Path]]:
    """Return what has a result of its own: name -> (arm, its workspace)."""
    out = {}
    for name, arm in plan["arms"].items():
        workspace = work / f"{arm['world']}.seguro"
        if arm["kind"] == "isolated":
            for site in arm["sites"]:
                out[f"{name}, {site}"] = name, workspace.with_name(f"{workspace.stem}-{site}.seguro")
        else:
            out[name] = name, workspace
    return out


def perform(plan: Mapping[str, Any], name: str, workspace: Path, seed: int, threads: int) -> None:
    """Train, predict and evaluate one setting with one seed."""
    arm = plan["arms"][name]
    run = workspace / "runs" / f"{name}-seed{seed}"
    if arm["kind"] == "federated":
        federate(plan, arm, workspace, run, seed)
    else:
        updates = arm.get("updates", plan["rounds"] * plan["updates"])
        fixed = ["--preset", plan["preset"], "--batch", plan["batch"], "--updates", updates]
        fixed += ["--memory", plan["memory"]] if "memory" in plan else []
        seguro(
            "train", workspace, "--method", arm["method"], *fixed,
            "--seed", seed, "--name", run.name, "--threads", threads,
        )  # fmt: skip
    seguro("predict", run, "--cases", "test", "--threads", threads)
    seguro("evaluate", run / "predictions" / "test", "--metrics", ",".join(plan["metrics"]), "--jobs", 1)


def federate(plan: Mapping[str, Any], arm: Mapping[str, Any], workspace: Path, run: Path, seed: int) -> None:
    """Train over the sites of a world; as `seguro federate simulate`, but that some may be hostile."""
    from seguro.federated.simulate import simulate

    options = api.FederateOptions(
        method=arm["method"],
        preset=plan["preset"],
        rounds=plan["rounds"],
        updates=plan["updates"],
        batch=plan["batch"],
        seed=seed,
        strategy=arm.get("strategy", {}),
        plan={"memory_gib": plan["memory"]} if "memory" in plan else {},
        name=run.name,
    )
    sites = api.sites_of([workspace], run, options, say=print)
    for name, scale in arm.get("hostile", {}).items():
        sites[name] = hostile(sites[name], scale)
    settled = api.federation(options, list(sites))
    with locked(run):
        simulate(settled, sites, run, say=print)
        api.told(run, settled, sites)


def rows_of(
    plan: Mapping[str, Any], setting: str, arm: str, runs: Sequence[Sequence[ScoreRow]]
) -> list[dict[str, Any]]:
    """Return result rows: per site and over all, means over cases of the mean over seeds."""
    each = [{(s.cls, s.site, s.metric): s.mean for s in summarize(r)} for r in runs]
    out = []
    for row in summarize(over_seeds(runs)):
        if row.mean is None:
            continue
        means = [m for e in each if (m := e.get((row.cls, row.site, row.metric))) is not None]
        out.append(
            {
                "data": plan["data"],
                "method": plan["arms"][arm]["method"],
                "setting": setting,
                "site": row.site,
                "class": row.cls,
                "metric": row.metric,
                "value": row.mean,
                "low": row.low,
                "high": row.high,
                "n": row.n_cases,
                "patients": row.n_patients,
                "seeds": plan["seeds"],
                "sd_of_seeds": statistics.stdev(means) if len(means) > 1 else None,
            }
        )
    return out


def pairs_of(
    setting: str, against: str, ours: Sequence[ScoreRow], theirs: Sequence[ScoreRow]
) -> list[dict[str, Any]]:
    """Return the comparison over all sites and at each; against an isolated one, at its neighbors too."""
    home = against.partition(", ")[2]
    parts = {"all": {r.site for r in ours}, **{s: {s} for s in sorted({r.site for r in ours})}}
    if home:
        parts["neighbors"] = parts["all"] - {home}
    return [
        {"setting": setting, "against": against, "site": name, **row._asdict()}
        for name, sites in parts.items()
        for row in paired(
            [r for r in theirs if r.site in sites], [r for r in ours if r.site in sites], intersect=True
        )
    ]


def collect(name: str, plan: Mapping[str, Any], work: Path, out: Path) -> None:
    """Write result.json and figure.svg of every setting whose seeds are all scored."""
    scores: dict[str, list[list[ScoreRow]]] = {}
    ran: dict[str, list[Any]] = {}
    known = settings(plan, work)
    for setting, (arm, workspace) in known.items():
        runs = [workspace / "runs" / f"{arm}-seed{s}" for s in plan["seeds"]]
        files = [r / "predictions" / "test" / "scores" / "scores.csv" for r in runs]
        if all(f.exists() for f in files):
            scores[setting] = [list(read_csv(f)) for f in files]
            ran[setting] = [minutes_of(r) for r in runs]
    if not scores:
        sys.exit(f"{work}: nothing is scored for all of the seeds {plan['seeds']}")
    mean = {setting: over_seeds(runs) for setting, runs in scores.items()}
    missing = [s for s in known if s not in scores]
    result = {
        "command": f"python benchmarks/experiments/federated.py {name}",
        "seed": list(plan["seeds"]),
        "versions": {p: version(p) for p in (*PACKAGES, "flwr")},
        "machine": machine(),
        "minutes": ran,
        "not_run": missing,
        "rows": [row for s, runs in scores.items() for row in rows_of(plan, s, known[s][0], runs)],
        "pairs": [
            row
            for a, b in plan["pairs"]
            if a in mean and b in mean
            for row in pairs_of(a, b, mean[a], mean[b])
        ],
    }
    write_json(out / "result.json", result)
    dots = [(setting, dice_of(rows)) for setting, rows in mean.items()]
    drawing = strip(dots, axis="Dice (mean of classes and seeds), a dot per case", limits=(0, 1))
    write_text(out / "figure.svg", standalone(str(drawing)))
    print(f"written: {out}/result.json, figure.svg; not run: {', '.join(missing) or 'none'}")


def minutes_of(run: Path) -> float:
    """Return the minutes of training: of all rounds, or as the run recorded them."""
    rounds = run / "rounds.jsonl"
    if rounds.exists():
        lines = [json.loads(line) for line in rounds.read_text().splitlines()]
        return round(sum(line["seconds"] for line in lines) / 60, 2)
    return float(read_json(run / "stage.json")["recorded"]["minutes"])


def rehearsed(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment at the size of its rehearsal; pooled arms do as much as one site."""
    small = {**plan, **plan["rehearsal"]}
    short = {name: {k: v for k, v in arm.items() if k != "updates"} for name, arm in plan["arms"].items()}
    return {**small, "arms": short}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="folder with experiment.yaml, beside this file")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the worlds and workspaces lie")
    parser.add_argument("--only", action="append", help="these arms; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    parser.add_argument("--rehearse", action="store_true", help="at the size under `rehearsal`")
    given = parser.parse_args()
    folder = HERE / given.name
    plan = read_yaml(folder / "experiment.yaml")
    work = given.work / f"{given.name}{'-rehearsal' if given.rehearse else ''}"
    if given.rehearse:
        plan, folder = rehearsed(plan), work
    chosen = given.only or list(plan["arms"])
    if unknown := sorted(set(chosen) - set(plan["arms"])):
        sys.exit(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
    if not given.collect:
        for world in dict.fromkeys(plan["arms"][name]["world"] for name in chosen):
            data = made(
                given.data_root / plan["data"], work / world, plan["worlds"][world],
                plan["test_every"], plan.get("cases"),
            )  # fmt: skip
            seguro("check", data, "--out", work / f"{world}.seguro")
        for seed in plan["seeds"]:
            for setting, (name, workspace) in settings(plan, work).items():
                if name not in chosen:
                    continue
                if plan["arms"][name]["kind"] == "isolated":
                    world = work / f"{plan['arms'][name]['world']}.seguro"
                    alone(world, setting.partition(", ")[2])
                perform(plan, name, workspace, seed, given.threads)
    collect(given.name, plan, work, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
