"""Synthetic labelled volumes of a site, as a data set that may take the place of the site's own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seguro.api.workspace import Say, manifest_of, quiet, workspace_of
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, read_object, write_json, write_text
from seguro.core.types import Classes, Manifest

if TYPE_CHECKING:
    from seguro.data.frame import Frame
    from seguro.data.plan import Plan
    from seguro.data.store import Cases
    from seguro.engine.model import Model

FACTS = "synthetic.json"
PREFIX = "synthetic_"
"""Of the made cases."""
FOLDERS = {"train": "Tr", "test": "Ts", "unlabelled": "Un"}


@dataclass(frozen=True)
class Generated:
    """What `generate` wrote."""

    folder: Path
    n_volumes: int
    n_slices: int
    """Of each volume."""
    releasable: bool
    """Whether the memorization audit was made and passed, and nothing real lies beside what was made."""
    reason: str
    """Why not, or how near the made slices come."""


def generate(
    run: Path,
    domain: str,
    n_volumes: int,
    out: Path,
    *,
    steps: int = 10,
    seed: int = 0,
    beside: Path | None = None,
    device: str = "cpu",
    say: Say = quiet,
) -> Generated:
    """Write synthetic volumes of a domain with the labels that the run's model gives them, as an MSD folder.

    The run is one of method adapt that segments the domain: stage source for the labelled site. The set is
    marked releasable only where the audit could be made (the run still lies in its workspace, and was
    validated on cases of the domain) and was passed, or where the generator comes from a federation whose
    sites audited it, and all passed; and never with real cases beside.

    Args:
        run: of method adapt.
        domain: site whose slices are made; it becomes the site of the cases.
        n_volumes: volumes, `synthetic_000` and so on.
        out: folder to write; must not exist.
        steps: slices from one of the generator's positions to the next.
        seed: of the styles; the same seed gives the same volumes.
        beside: a data folder (or workspace) whose cases are copied in under their own sites, as NIfTI, so
            that `seguro adapt` finds source and target in one folder; those of `domain` itself are left out,
            since the made ones stand in their place.
        device: where the networks run.
        say: takes lines for people.

    Raises:
        ConfigError: a run of another method, or a domain that its model does not segment.
        DataError: `out` exists, or `beside` has other classes or channels, or no case of another site.
    """
    from seguro.api.made import SETS
    from seguro.api.selection import run_of
    from seguro.data.importers.building import whole

    model, number, others = _looked_at(run, domain, n_volumes, steps, beside, device=device)
    predictor: Any = model.predictor
    with whole(out, model.folder) as folder:
        made, n_slices = _write(folder, model, domain, number, n_volumes, steps, seed)
        rows = [(f"{PREFIX}{i:03d}", f"{PREFIX}{i:03d}", domain, "train") for i in range(n_volumes)]
        if others is not None:
            rows += _copied(folder, others)
        _describe(folder, model.plan, domain, n_volumes, others)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("id", "patient", "site", "split"), *rows])
        write_text(folder / "patients.csv", table.getvalue())
        facts = _audit(run, model, predictor.frame, domain, made)
        n_real = 0 if others is None else len(others.cases)
        releasable = bool(facts["passed"]) and not n_real
        told = {"model": model.sha256, "domain": domain, "volumes": n_volumes, "seed": seed, "steps": steps}
        told |= {"audit": facts, "beside": n_real, "releasable": releasable}
        write_json(folder / FACTS, told)
    if (home := run_of(run)) is not None and os.access(home, os.W_OK):
        write_json(home / SETS / f"{out.resolve().name}.json", told)  # for the run's report
    say(f"audit: {facts['reason']}")
    reason = str(facts["reason"])
    if n_real:
        reason += f"; {n_real} real cases lie beside the made ones: the folder must not leave"
    return Generated(out, n_volumes, n_slices, releasable, reason)


def foreseen(
    run: Path, domain: str, n_volumes: int, out: Path, *, steps: int = 10, beside: Path | None = None
) -> list[str]:
    """Return lines that say what `generate` would write, or refuse what it would; nothing is written.

    Raises:
        ConfigError: as `generate`.
        DataError: as `generate`.
    """
    if out.exists():
        raise DataError(f"{out}: is there already; remove it, or choose another --out")
    model, _, others = _looked_at(run, domain, n_volumes, steps, beside, write=False)
    predictor: Any = model.predictor
    n, size = max((predictor.generator.z_bins - 1) * steps, 1), predictor.frame.size
    sides = _sides(run, model)
    start = _at_the_start(run)
    away = sides if start is None else start["reason"]
    audited = away if isinstance(sides, str) else f"against {len(sides[0])} training cases"
    lines = [f"{n_volumes} volumes of {domain}, {n} slices of {size} pixels each", f"audit: {audited}"]
    return lines + ([] if others is None else [f"beside them {len(others.cases)} cases of {beside}"])


def _looked_at(
    run: Path,
    domain: str,
    n_volumes: int,
    steps: int,
    beside: Path | None,
    *,
    device: str = "cpu",
    write: bool = True,
) -> tuple[Model, int, Manifest | None]:
    """Return the model, the number of the domain and the cases to copy; refuse what does not fit."""
    from seguro.engine.model import load_model
    from seguro.engine.runtime import Runtime

    if n_volumes < 1 or steps < 1:
        raise ConfigError(f"{n_volumes} volumes in {steps} steps: expected at least one of each")
    model = load_model(run, Runtime(device).device)
    number = _number(model, domain)
    others = None if beside is None else _others(beside, model.plan, domain, write=write)
    return model, number, others


def _number(model: Model, domain: str) -> int:
    """Return the number of the domain; refuse one that the model does not segment."""
    if model.method != "adapt":
        raise ConfigError(
            f"{model.folder}: made by method {model.method}; synthetic volumes are labelled by a model of "
            "method adapt: seguro adapt DATA --from FACTORY --stage source"
        )
    if model.plan.classes.regions:
        raise ConfigError(
            f"{model.folder}: its classes overlap, and labels are written with one value per voxel"
        )
    names = list(model.config["domains"]) or ["any"]
    if domain not in names:
        raise ConfigError(f"--domain {domain}: the generator's domains are {', '.join(names)}")
    learned = model.config["source" if model.config["stage"] == "source" else "target"]
    if learned is None and len(names) > 1:
        raise ConfigError(
            f"{model.folder}: trained without naming its sites, so it is not known which domain it segments; "
            "train it with --source and --target"
        )
    if learned is not None and learned != domain:
        raise ConfigError(
            f"--domain {domain}: the model segments {learned}, its labels of others are guesses"
        )
    return names.index(domain)


def _write(
    folder: Path, model: Model, domain: str, number: int, n: int, steps: int, seed: int
) -> tuple[np.ndarray, int]:
    """Write images and labels; returns slices (n, C, size, size) evenly over all, and those of a volume."""
    from seguro.api.made import AUDITED
    from seguro.data.formats import write_label, write_scores
    from seguro.data.formats.nifti import source_of
    from seguro.data.frame import evenly
    from seguro.inference.synthesis import as_read, placed, volumes

    predictor: Any = model.predictor
    kept, n_slices = [], 0
    for i, volume in enumerate(volumes(predictor, model.plan.classes, number, n, steps=steps, seed=seed)):
        n_slices = volume.image.shape[1]
        of_it = [j - i * n_slices for j in evenly(n * n_slices, AUDITED) if j // n_slices == i]
        kept.append(volume.image[:, of_it].swapaxes(0, 1))
        lying, grid = placed(volume, predictor.frame, model.plan)
        source, name = source_of(grid), f"{PREFIX}{i:03d}.nii.gz"
        image = as_read(lying.image, predictor.frame, model.plan)
        write_scores(folder / "imagesTr" / name, image if len(image) > 1 else image[0], source)
        write_label(folder / "labelsTr" / name, lying.label, source)
    return np.concatenate(kept), n_slices


def _others(data: Path, plan: Plan, domain: str, *, write: bool) -> Manifest:
    """Return the manifest of a data folder that fits the plan's classes and channels, without `domain`."""
    manifest = manifest_of(data, workspace_of(data), write=write)
    taken = [c.id for c in manifest.cases if c.id.startswith(PREFIX)]
    if taken:
        raise DataError(
            f"{data}: has synthetic cases already ({taken[0]} ...); give the folder that they were put beside"
        )
    if len(manifest.channels) != len(plan.channels):
        raise DataError(
            f"{data}: {len(manifest.channels)} channels, the model has {len(plan.channels)} "
            f"({', '.join(c.name for c in plan.channels)})"
        )
    if manifest.classes is not None and manifest.classes != plan.classes:
        raise DataError(
            f"{data}: classes {_named(manifest.classes)}, the model has {_named(plan.classes)}; write the "
            "labels with the names and values of the model"
        )
    kept = tuple(c for c in manifest.cases if c.site != domain)
    if not kept:
        raise DataError(
            f"{data}: all {len(manifest.cases)} cases are of site {domain}, whose place the made ones take; "
            "give the folder of another site, and name its site in patients.csv"
        )
    return manifest.model_copy(update={"cases": kept})


def _named(classes: Classes) -> str:
    return ", ".join(f"{n}={v[0]}" for n, v in zip(classes.names, classes.values, strict=True))


def _copied(folder: Path, others: Manifest) -> list[tuple[str, str, str, str]]:
    """Write the cases of a manifest as NIfTI; returns their rows of patients.csv."""
    from seguro.data.formats import write_label, write_scores
    from seguro.data.formats.nifti import source_of
    from seguro.data.manifest import read_case, read_case_label

    rows: list[tuple[str, str, str, str]] = []
    for case in others.cases:
        volume = read_case(case, others)
        source = volume.source if volume.source.suffix == ".nii.gz" else source_of(volume.grid)
        end = FOLDERS[case.split]
        image = volume.array
        write_scores(
            folder / f"images{end}" / f"{case.id}.nii.gz", image if len(image) > 1 else image[0], source
        )
        label = read_case_label(case, others, like=volume.grid)
        if label is not None:
            write_label(folder / f"labels{end}" / f"{case.id}.nii.gz", label.array, source)
        rows.append((case.id, case.patient, case.site, case.split))
    return rows


def _describe(folder: Path, plan: Plan, domain: str, n: int, others: Manifest | None) -> None:
    """Write dataset.json."""
    labels = {
        v: name for name, values in zip(plan.classes.names, plan.classes.values, strict=True) for v in values
    }
    train = [f"{PREFIX}{i:03d}" for i in range(n)]
    if others is not None:
        train += [c.id for c in others.of("train")]
    write_json(
        folder / "dataset.json",
        {
            "name": f"Synthetic {domain}",
            "description": "Images of a generator, labelled by a model; see synthetic.json",
            "modality": {str(i): c.name for i, c in enumerate(plan.channels)},
            "labels": {str(v): name for v, name in sorted(labels.items())},
            "numTraining": len(train),
            "training": [
                {"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in train
            ],
        },
    )


def _audit(run: Path, model: Model, frame: Frame, domain: str, made: np.ndarray) -> Mapping[str, Any]:
    """Return how near made slices come to those that were trained on, and whether that is far enough."""
    from seguro.api.made import AUDITED, REMEMBERED
    from seguro.evaluation.generated import AUDIT_RATIO, audit

    sides, start = _sides(run, model), _at_the_start(run)
    if isinstance(sides, str):
        return start or {"passed": False, "reason": sides}
    train, held_out, whole = sides
    if whole:
        start = None  # what its own training saw is all here
    known, fresh = _real(train, frame, domain, REMEMBERED), _real(held_out, frame, domain, AUDITED)
    if not (len(known) and len(fresh)):
        missing = "held-out" if len(known) else "training"
        reason = f"not made, no {missing} slice of {domain}: not releasable"
        return start or {"passed": False, "reason": reason}
    done = audit(made, known, fresh)
    verdict = "passed" if done.passed else "not releasable"
    reason = (
        f"made slices lie {done.ratio:.2f} times as far from the training slices as held-out ones do, "
        f"{AUDIT_RATIO} is needed: {verdict}"
    )
    if start is not None:
        reason += f"; {start['reason']}"
    passed = done.passed and (start is None or bool(start["passed"]))
    return {**vars(done), "ratio": done.ratio, "passed": passed, "reason": reason}


def _at_the_start(run: Path) -> Mapping[str, Any] | None:
    """Return the verdict of the audit of the generator that the run began from; None where it has none."""
    from seguro.api.made import START_AUDIT
    from seguro.api.selection import run_of

    folder = run_of(run)
    if folder is None or not (folder / START_AUDIT).exists():
        return None
    facts = read_object(folder / START_AUDIT)
    domains = facts.get("domains")
    if not isinstance(domains, dict) or not all(isinstance(d, dict) for d in domains.values()):
        raise DataError(f"{folder / START_AUDIT}: no verdicts of domains; copy or train the run again")
    failed = [name for name, domain in domains.items() if not domain.get("passed")]
    passed = bool(facts.get("releasable")) and not failed
    verdict = (
        "passed" if passed else f"not releasable, failed or not made at {', '.join(failed) or 'any site'}"
    )
    return {"passed": passed, "reason": f"that of the generator, at the sites that trained it: {verdict}"}


def _sides(run: Path, model: Model) -> tuple[Cases, Cases, bool] | str:
    """Return what the run and those it began from were trained on, what none of them saw, or why not.

    The third value says whether all that they were trained on is here.

    The generator's own training counts: a factory may remember cases that later runs held out. Where the
    sites of a federation trained and audited it, what of them lies here is looked at again.
    """
    from seguro.api.selection import run_of
    from seguro.data import manifest as manifests
    from seguro.data.store import Cases

    folder = run_of(run)
    away = "not made, the run does not lie in its workspace: not releasable"
    if folder is None or not (folder / "cases.json").exists():
        return away
    workspace = folder.absolute().parents[1]
    store = workspace / "store" / model.plan.preprocessing_hash
    if not (workspace / "check" / manifests.FILE).exists() or not store.is_dir():
        return away
    trained, whole = _trained_on(folder)
    if not whole and _at_the_start(run) is None:
        return "not made, the run that the generator comes from is not in the workspace: not releasable"
    fresh = set(read_json(folder / "cases.json")["validation"]) - trained
    cases = manifests.load(workspace / "check" / manifests.FILE).cases
    parts = [[c for c in cases if c.id in ids] for ids in (trained, fresh)]
    train, held_out = (Cases(store, p, model.plan.classes, hide_labels=True) for p in parts)
    return train, held_out, whole


def _trained_on(run: Path) -> tuple[set[str], bool]:
    """Return the training cases of a run and of those it began from that are beside it, and if all are."""
    found: set[str] = set()
    models = run.absolute().parent.glob("*/model/model.json")
    beginnings = {read_json(p)["weights_sha256"]: p.parents[1] for p in models}
    folder: Path | None = run
    while folder is not None and (folder / "cases.json").exists():
        found |= set(read_json(folder / "cases.json")["train"])
        if not (folder / "stage.json").exists():
            return found, False  # stopped before its end, or copied in part: who knows what it began from
        begun = read_json(folder / "stage.json")["reads"].get("init")
        if begun is None:
            return found, True
        folder = beginnings.get(begun)
    return found, False


def _real(cases: Cases, frame: Frame, domain: str, most: int) -> np.ndarray:
    """Return up to `most` frames (n, C, size, size) of a site's cases, evenly over all of them."""
    alone = {c.site for c in cases.facts} == {"site1"}  # nobody said a site: there is one domain
    here = [i for i, fact in enumerate(cases.facts) if alone or fact.site == domain]
    return frame.some(cases, here, most)
