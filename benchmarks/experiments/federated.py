"""Compares federated with isolated and pooled training: `python benchmarks/experiments/federated.py NAME`.

Reads NAME/experiment.yaml beside this file, makes the hospitals that it describes of one data set, trains
and scores every arm with every seed, and writes result.json and figure.svg beside it. What is finished is
skipped, so a stopped experiment goes on; `--only ARM` runs some arms, `--collect` only gathers what is there
(runs of other workspaces and machines too, see kept.py), and `--rehearse` runs everything at the size under
`rehearsal` and writes the result into the work folder.

experiment.yaml: `data` (an MSD folder under the data root), `patients` (a CSV file id,patient beside the
experiment's; without it every case is a patient), `test_every` (blocks of so many patients, by id, go to the
sites in turn; the last of each block is a test patient), `limit` (only so many patients, by id), `check`
(options of the command), `worlds` (name: sites), `plan` (what of the plan is not left to the data, the same
for every arm), `seeds`, `preset`, `network`, `set`, `batch`, `rounds` and `updates` (of a site in a round),
all of which an arm may replace (`set` lists are joined), `metrics`, `arms`, `pairs` (what is compared with
what; "isolated" stands for each of its sites) and `margins` (differences that are asked for beforehand:
setting, against, `at`, at_least or at_most; kept where the whole interval keeps it). A site is `{}` or has
  contrast: {invert, gamma}  every image x, scaled to 0..1 by its own range, becomes (1 - x)^gamma or x^gamma,
                             scaled back; its test images too
  labels: none               its training cases have none
  classes: [...]             only these classes are annotated in its training cases, others are wiped out
An arm has `world`, `method` and `kind`: federated (with `strategy` and `hostile`, which names sites whose
change is multiplied by a number before it leaves), pooled (all sites' training cases in one place, for
`parts` x rounds x updates), or isolated (each of `sites` alone, for rounds x updates; called "ARM, SITE").

Every model is scored on the test patients of all sites of its world, whose labels are complete. All arms hold
out a fifth of the training patients, and deploy the weights of the last update: none is chosen by a score.
Values of a case are means over the seeds; intervals are over patients and say nothing of other seeds, which
`by_seed` gives one by one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hospitals
import numpy as np
from arms import dice_of, merged, options, over_seeds, seguro
from federated_scores import (
    ALL,
    Scores,
    margins,
    minutes_of,
    pairs_of,
    rows_of,
    shares,
    stands_for,
    traffic,
)
from kept import keep, kept, recipe
from record import HERE, PACKAGES, standalone

from seguro.api import federation as api
from seguro.api.stages import plan as planned
from seguro.core.files import write_json, write_text
from seguro.core.settings import read_yaml, settings_from
from seguro.core.stage import locked, machine
from seguro.data.planner import PlanOptions
from seguro.evaluation.scores import read_csv
from seguro.federated import message
from seguro.federated.site import Site
from seguro.report.figures import strip

KINDS = ("federated", "pooled", "isolated")
OF_ALL = ("seeds", "preset", "network", "set", "batch", "rounds", "updates")
"""What the experiment says for all arms, and an arm may replace."""
OWN = ("test_every", "worlds", "metrics", "patients", "limit")
"""What an arm's recipe holds besides, with the common fields."""


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


def arm_of(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return everything that is said of an arm: its own over what is said of all."""
    return merged({k: plan[k] for k in OF_ALL if k in plan}, plan["arms"][name])


def settings(plan: Mapping[str, Any], work: Path) -> dict[str, tuple[str, Path]]:
    """Return what has a result of its own: name -> (arm, its workspace)."""
    out = {}
    for name, arm in plan["arms"].items():
        workspace = work / f"{arm['world']}.seguro"
        if arm["kind"] == "isolated":
            for site in arm["sites"]:
                out[f"{name}, {site}"] = name, hospitals.of_site(workspace, site)
        else:
            out[name] = name, workspace
    return out


def named(plan: Mapping[str, Any], name: str) -> list[str]:
    """Return the settings that a name in `pairs` stands for."""
    return [s for s in settings(plan, Path()) if stands_for(name, s)]


def refuse_unknown(plan: Mapping[str, Any]) -> None:
    """End the program where arms, pairs or margins name what is not there."""
    for name, arm in plan["arms"].items():
        if arm["kind"] not in KINDS:
            sys.exit(f"arm {name}: kind {arm['kind']!r}, expected one of {', '.join(KINDS)}")
        if arm["world"] not in plan["worlds"]:
            sys.exit(f"arm {name}: no world {arm['world']!r}; there are {', '.join(plan['worlds'])}")
        sites = plan["worlds"][arm["world"]]
        for site in (*arm.get("sites", ()), *arm.get("hostile", ())):
            if site not in sites:
                sys.exit(f"arm {name}: no site {site!r} in {arm['world']}; there are {', '.join(sites)}")
    known = settings(plan, Path())
    asked = [(m["setting"], m["against"]) for m in plan.get("margins", [])]
    for name in (n for pair in (*plan["pairs"], *asked) for n in pair):
        if not named(plan, name):
            sys.exit(f"pairs and margins: no {name!r}; there are {', '.join(known)}")


def perform(plan: Mapping[str, Any], name: str, workspace: Path, seed: int, threads: int) -> None:
    """Train, predict and evaluate one setting with one seed."""
    arm = arm_of(plan, name)
    run = workspace / "runs" / f"{name}-seed{seed}"
    last = [] if arm["kind"] == "federated" else ["--last"]
    if arm["kind"] == "federated":
        federate(plan, arm, workspace, run, seed)
    else:
        planned(workspace, options=PlanOptions.model_validate(plan.get("plan", {})), say=print)
        given = {k: arm[k] for k in ("method", "preset", "network", "set", "batch") if k in arm}
        given["updates"] = arm["rounds"] * arm["updates"] * arm.get("parts", 1)
        seguro(
            "train", workspace, *options(given), "--validations", 1,
            "--seed", seed, "--name", run.name, "--threads", threads,
        )  # fmt: skip
    seguro("predict", run, "--cases", "test", *last, "--threads", threads)
    seguro("evaluate", predictions(run, arm), "--metrics", ",".join(plan["metrics"]), "--jobs", 1)


def predictions(run: Path, arm: Mapping[str, Any]) -> Path:
    """Return where the predictions of a run lie, as `seguro predict` names them."""
    return run / "predictions" / ("test" if arm["kind"] == "federated" else "test-last")


def federate(plan: Mapping[str, Any], arm: Mapping[str, Any], workspace: Path, run: Path, seed: int) -> None:
    """Train over the sites of a world; as `seguro federate simulate`, but that some may be hostile."""
    from seguro.federated.simulate import simulate

    asked = api.FederateOptions(
        method=arm["method"],
        preset=arm["preset"],
        network=arm.get("network"),
        settings=settings_from(arm["set"]),
        rounds=arm["rounds"],
        updates=arm["updates"],
        batch=arm["batch"],
        seed=seed,
        # as many looks at validation cases as the other arms have: one, of the last weights
        strategy={"best": "last", "evaluate_every": arm["rounds"], **arm.get("strategy", {})},
        plan=plan.get("plan", {}),
        name=run.name,
    )
    sites = api.sites_of([workspace], run, asked, say=print)
    for name, scale in arm.get("hostile", {}).items():
        sites[name] = hostile(sites[name], scale)
    settled = api.federation(asked, list(sites))
    with locked(run):
        simulate(settled, sites, run, say=print)
        api.told(run, settled, sites)


def compared(plan: Mapping[str, Any], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Return all comparisons of the experiment."""
    every = [(a, b) for one, other in plan["pairs"] for a in named(plan, one) for b in named(plan, other)]
    return [
        row for a, b in every if a in scores and b in scores for row in pairs_of(a, b, scores[a], scores[b])
    ]


def collect(name: str, plan: Mapping[str, Any], work: Path, out: Path) -> None:
    """Write result.json and figure.svg of every setting and seed that is scored."""
    known = settings(plan, work)
    made_by = {s: recipe(plan, arm_of(plan, arm), *OWN) for s, (arm, _) in known.items()}
    seeds = {s: arm_of(plan, arm)["seeds"] for s, (arm, _) in known.items()}
    for setting, (arm, workspace) in known.items():
        for seed in seeds[setting]:
            run = workspace / "runs" / f"{arm}-seed{seed}"
            file = predictions(run, plan["arms"][arm]) / "scores" / "scores.csv"
            if file.exists():
                told: dict[str, Any] = {"minutes": minutes_of(run), "machine": machine()}
                if plan["arms"][arm]["kind"] == "federated":
                    told["sent"] = traffic(run)
                keep(out, setting, seed, made_by[setting], read_csv(file), told)
    found = kept(out, made_by, seeds)
    scores = {s: {seed: run.rows for seed, run in runs.items()} for s, runs in found.items()}
    missing = [f"{s}, seed {n}" for s in known for n in seeds[s] if n not in scores.get(s, {})]
    minutes = {s: [run.told["minutes"] for run in runs.values()] for s, runs in found.items()}
    every = {s: [r.told["sent"] for r in runs.values() if "sent" in r.told] for s, runs in found.items()}
    sent = {s: runs for s, runs in every.items() if runs}
    if not scores:
        sys.exit(f"{work}: no arm is scored for any of its seeds")
    mean_sent = {s: {k: statistics.fmean(r[k] for r in runs) for k in runs[0]} for s, runs in sent.items()}
    pairs = compared(plan, scores)
    result = {
        "command": f"python benchmarks/experiments/federated.py {name}",
        "seed": sorted({s for runs in scores.values() for s in runs}),
        "versions": {p: version(p) for p in (*PACKAGES, "flwr")},
        "machine": next(run.told["machine"] for runs in found.values() for run in runs.values()),
        "minutes": minutes,
        "not_run": missing,
        "rows": [row for s, runs in scores.items() for row in rows_of(plan, s, known[s][0], runs)],
        "pairs": [p for p in pairs if p["at"] == ALL],
        "pairs_at_sites": [p for p in pairs if p["at"] != ALL],
        "margins": margins(plan.get("margins", []), pairs),
        "bytes": mean_sent,
        "bytes_shares": shares(plan, mean_sent),
    }
    write_json(out / "result.json", result)
    dots = [(s, dice_of(over_seeds(list(runs.values())))) for s, runs in scores.items()]
    drawing = strip(dots, axis="Dice of each case, over classes and seeds", limits=(0, 1))
    write_text(out / "figure.svg", standalone(str(drawing)))
    print(f"written: {out}/result.json, figure.svg; not run: {', '.join(missing) or 'none'}")


def rehearsed(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment at the size of its rehearsal, in which no arm has a size of its own."""
    small = plan["rehearsal"]
    own = {n: {k: v for k, v in arm.items() if k not in small} for n, arm in plan["arms"].items()}
    return {**plan, **small, "arms": own}


def run(
    plan: Mapping[str, Any], folder: Path, root: Path, work: Path, only: Sequence[str], threads: int
) -> None:
    """Make the worlds and do everything for the arms in `only`, seed after seed."""
    table = (folder / plan["patients"]).resolve() if "patients" in plan else None
    for world in dict.fromkeys(plan["arms"][name]["world"] for name in only):
        data = hospitals.write(
            root / plan["data"], work / world, plan["worlds"][world],
            test_every=plan["test_every"], patients=table, limit=plan.get("limit"),
        )  # fmt: skip
        seguro("check", data, "--out", work / f"{world}.seguro", *options(plan.get("check", {})))
    seeds = {name: arm_of(plan, name)["seeds"] for name in only}
    for seed in sorted({s for of_arm in seeds.values() for s in of_arm}):
        for setting, (name, workspace) in settings(plan, work).items():
            if seed not in seeds.get(name, ()):
                continue
            if plan["arms"][name]["kind"] == "isolated":
                hospitals.alone(work / f"{plan['arms'][name]['world']}.seguro", setting.partition(", ")[2])
            perform(plan, name, workspace, seed, threads)


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
    refuse_unknown(plan)
    work = given.work / f"{given.name}{'-rehearsal' if given.rehearse else ''}"
    out = work if given.rehearse else folder
    plan = rehearsed(plan) if given.rehearse else plan
    only = given.only or list(plan["arms"])
    if unknown := sorted(set(only) - set(plan["arms"])):
        sys.exit(f"no arm {unknown[0]!r}; there are {', '.join(plan['arms'])}")
    if not given.collect:
        run(plan, folder, given.data_root, work, only, given.threads)
    collect(given.name, plan, work, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
