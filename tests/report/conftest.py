"""A made run folder: phantom images as .npy files, scores, log and stages as the arrow leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seguro.core.files import write_json, write_text
from seguro.core.stage import Stage
from seguro.core.types import Case, Classes, Excluded, FileFact, Grid, Manifest, ScoreRow, Source, Volume
from seguro.report.cases import Readers

SHAPE = (24, 40, 32)
SPACING = (2.0, 1.0, 1.0)
CLASSES = Classes(names=("background", "body", "core"), values=((0,), (1,), (2,)))
N_CASES = 12


def ellipsoid(center, radii, shape=SHAPE):
    grid = np.indices(shape)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True)) <= 1


def phantom(seed, shift=0.0):
    """Label (Z, Y, X) with a core inside a body, and an image of it with noise."""
    rng = np.random.default_rng(seed)
    center = np.array([12, 20, 16]) + rng.uniform(-2, 2, 3) + np.array([0, shift, 0])
    label = ellipsoid(center, (7, 13, 10)).astype(np.uint8)
    label[ellipsoid(center, (3, 5, 4))] = 2
    image = np.choose(label, [30.0, 90.0, 140.0]) + rng.normal(0, 8, SHAPE)
    return image.astype(np.float32), label


def dice(a, b):
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def readers():
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    grid = Grid(SHAPE, affine)
    source = Source("nifti", ".npy", SHAPE[::-1])

    def scores(path):
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        return [ScoreRow(*x[:5], None if x[5] == "" else float(x[5]), x[6]) for x in lines]

    return Readers(
        image=lambda case, manifest: Volume(
            np.load(Path(manifest.root) / case.images[0].path)[None], grid, source
        ),
        truth=lambda case, manifest, like: Volume(
            np.load(Path(manifest.root) / case.label.path), grid, source
        ),
        label=lambda path: Volume(np.load(path), grid, source),
        scores=scores,
        settings=lambda method, preset, network: {},
    )


def build(folder, *, finished=True):
    """Write `folder/made.seguro/runs/first` and return it."""
    data, workspace = folder / "secret place" / "made", folder / "made.seguro"
    run = workspace / "runs" / "first"
    data.mkdir(parents=True)
    rows, cases = [], []
    for i in range(N_CASES):
        name, site = f"case_{i:02d}", "north" if i % 2 else "south"
        image, truth = phantom(i)
        _, predicted = phantom(i, shift=0.35 * i)
        if i == 11:
            predicted[predicted == 2] = 1
        for what, array in ((f"{name}.npy", image), (f"{name}_label.npy", truth)):
            np.save(data / what, array)
        target = run / "predictions" / "test"
        target.mkdir(parents=True, exist_ok=True)
        np.save(target / f"{name}.npy", predicted)
        for k, cls in ((1, "body"), (2, "core")):
            note = "" if (predicted == k).any() else "missed"
            value = dice(truth == k, predicted == k)
            rows.append(ScoreRow(name, f"p{i // 2}", site, cls, "dice", value, note))
            rows.append(ScoreRow(name, f"p{i // 2}", site, cls, "hd95", 12 * (1 - value), note))
        fact = FileFact(path=f"{name}.npy", size=1, mtime_ns=0, sha256="0" * 64)
        label = fact.model_copy(update={"path": f"{name}_label.npy"})
        cases.append(
            Case(id=name, patient=f"p{i // 2}", site=site, split="test", images=(fact,), label=label,
                 annotated=("body", "core"), shape=SHAPE, spacing=SPACING)
        )  # fmt: skip
    manifest = Manifest(
        name="made", root=str(data), layout="msd", channels=("MRI",), classes=CLASSES, cases=tuple(cases),
        excluded=(Excluded(id="case_99", reason=f"{data}/case_99.npy: truncated gzip stream"),),
        warnings=("sform and qform of case_03 differ by 0.4 mm",),
    )  # fmt: skip
    write_json(workspace / "check" / "manifest.json", manifest.model_dump(mode="json"))
    plan = {"name": "made", "dims": 3, "patch": [16, 32, 32], "spacing": list(SPACING), "unit": "mm",
            "reasons": ["3-D, because the spacing is nearly isotropic", "the patch fits"]}  # fmt: skip
    write_json(workspace / "plan" / "plan.json", plan)
    Stage(workspace / "check", "check", reads={}, config={}).finish([workspace / "check" / "manifest.json"])
    Stage(workspace / "plan", "plan", reads={}, config={}).finish([workspace / "plan" / "plan.json"])
    write_text(run / "config.yaml", f"method: supervised\nnetwork: unet\nseed: 7\ndata: {data}\n")
    write_log(run / "log.jsonl", finished)
    if finished:
        write_json(run / "model" / "model.json", {"method": "supervised"})
        Stage(run, "train", reads={"plan": "1"}, config={"seed": 7}).finish(
            [run / "model" / "model.json"], seed=7
        )
        write_scores(run, rows)
    return run


def write_log(path, finished):
    rng = np.random.default_rng(0)
    lines = []
    for update in range(10, 1010 if finished else 300, 10):
        loss = 1.6 * np.exp(-update / 250) + 0.15 + rng.normal(0, 0.03)
        lines.append(
            {
                "kind": "train",
                "update": update,
                "seconds": update / 9,
                "loss": loss,
                "lr.main": 1e-3 * (1 - update / 1010) ** 0.9,
            }
        )
        if update % 100 == 0:
            body, core = 1 - np.exp(-update / 200), 1 - np.exp(-update / 350)
            lines.append(
                {
                    "kind": "validation",
                    "update": update,
                    "dice": (body + core) / 2,
                    "dice.body": body,
                    "dice.core": core,
                }
            )
    if finished:
        lines.append(
            {
                "kind": "note",
                "update": 1000,
                "message": "budget of 2 min used up: stopped early at update 1000 of 1010",
            }
        )
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')


def summary_row(rows, cls, site, metric):
    values = [r.value for r in rows]
    mean, sd = float(np.mean(values)), float(np.std(values))
    return {
        "class": cls, "site": site, "metric": metric, "n_patients": 6,
        "n_cases": len({r.case for r in rows}),
        "mean": mean, "sd": sd, "low": mean - sd / 3, "high": mean + sd / 3,
        "median": float(np.median(values)),
        "failures": sum(r.note == "missed" for r in rows), "both_empty": 0, "not_annotated": 0,
    }  # fmt: skip


def write_scores(run, rows):
    folder = run / "scores" / "test"
    write_text(
        folder / "scores.csv", "".join("\t".join("" if v is None else str(v) for v in r) + "\n" for r in rows)
    )
    summary = []
    for metric in ("dice", "hd95"):
        for site in ("all", "north", "south"):
            for cls in ("body", "core", "mean"):
                kept = [r for r in rows if r.metric == metric and cls in (r.cls, "mean")]
                kept = [r for r in kept if site in (r.site, "all")]
                summary.append(summary_row(kept, cls, site, metric))
    write_json(folder / "summary.json", {"unit": "mm", "rows": summary, "conventions": 1, "excluded": []})
    cases = {
        f"case_{i:02d}": {"file": f"case_{i:02d}.npy", "sha256": "", "flags": []} for i in range(N_CASES)
    }
    cases["case_05"]["flags"] = ["mean intensity 143 is above the training range 60 to 110"]
    write_json(
        run / "predictions" / "test" / "predictions.json", {"cases": cases, "failed": {}, "models": []}
    )
    Stage(folder, "evaluate", reads={}, config={}).finish([folder / "scores.csv"])


@pytest.fixture
def run(tmp_path):
    return build(tmp_path)


@pytest.fixture
def read():
    return readers()
