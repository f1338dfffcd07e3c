"""Keeps the evidence of attacks: `python benchmarks/experiments/record_attacks.py NAME LABEL=FOLDER ...`.

Reads finished attack folders (`RUN/attacks/SETTING`) and writes config.yaml, result.json (Dice at
every epsilon and the area, per class and attack, with intervals; paired differences of areas against the
first folder of the same setting) and figure.svg (the worst case by epsilon, one line per label).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from record import HERE, PACKAGES, standalone

from seguro.core.errors import DataError
from seguro.core.files import read_json, write_json, write_text
from seguro.evaluation.robustness import paired_areas, read_csv
from seguro.report.figures import Series, lines

SAME = (
    "suite", "where", "iterations", "restarts", "queries", "cases", "box", "center", "eps_unit",
)  # fmt: skip
"""Settings that two attacks share when they are compared."""


def rows_of(label: str, folder: Path) -> list[dict[str, Any]]:
    """Return result rows of one attack folder."""
    found, summary = read_json(folder / "curves.json"), read_json(folder / "summary.json")
    run = read_json(folder.parents[1] / "stage.json")["config"]
    common = {
        "data": folder.resolve().parents[3].name.removesuffix(".seguro"),
        "split": summary["setting"]["cases"],
        "method": run["method"],
        "setting": label,
    }
    out = []
    for point in found["curves"]:
        metric = f"dice @ {point['eps']:g}"
        out.append(_row(common, point, metric))
    return out + [_row(common, area, "area") for area in found["areas"]]


def _row(common: Mapping[str, Any], source: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {
        **common,
        "attack": source["attack"],
        "class": source["class"],
        "metric": metric,
        "value": source["mean"],
        "low": source["low"],
        "high": source["high"],
        "n": source["n_cases"],
        "patients": source["n_patients"],
    }


def differences(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the differences of areas of each folder against the first one with the same setting."""
    out, first = [], {}
    for label, folder in folders.items():
        setting = read_json(folder / "summary.json")["setting"]
        key = tuple(str(setting[k]) for k in SAME)
        if key not in first:
            first[key] = label
            continue
        try:
            pairs = paired_areas(*(read_csv(f / "robustness.csv") for f in (folders[first[key]], folder)))
        except DataError:
            continue  # other cases or strengths: nothing to pair
        for p in pairs:
            if p.attack == "worst":
                out.append({"a": first[key], "b": label, **p._asdict()})
    return out


def figure(folders: Mapping[str, Path]) -> str:
    """Return the mean Dice of the worst case by epsilon as a stand-alone SVG."""
    series = []
    for i, (label, folder) in enumerate(folders.items()):
        found = read_json(folder / "curves.json")["curves"]
        points = [c for c in found if (c["attack"], c["class"]) == ("worst", "mean")]
        band = tuple((c["eps"], c["low"], c["high"]) for c in points)
        series.append(Series(label, tuple((c["eps"], c["mean"]) for c in points), band, color=i))
    axes = {"x_axis": "epsilon (255ths of the range)", "y_axis": "mean Dice, worst case"}
    return standalone(str(lines(series, **axes, limits=(0.0, 1.0))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folders", nargs="+", help="LABEL=RUN/attacks/SETTING")
    parser.add_argument("--command", required=True, help="what makes the result again")
    options = parser.parse_args()
    folders = {label: Path(path) for label, _, path in (f.partition("=") for f in options.folders)}
    summaries = {label: read_json(f / "summary.json") for label, f in folders.items()}
    runs = {label: read_json(f.parents[1] / "stage.json") for label, f in folders.items()}
    out = HERE / options.name
    config = {
        label: {"run": runs[label]["config"], "attack": summaries[label]["setting"]} for label in folders
    }
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    recorded = [r["recorded"] for r in runs.values()]
    write_json(
        out / "result.json",
        {
            "command": options.command,
            "seed": runs[next(iter(runs))]["config"]["seed"],
            "versions": {p: version(p) for p in PACKAGES},
            "machine": recorded[0]["machine"],
            "threads": recorded[0]["threads"],
            "minutes": [r["minutes"] for r in recorded],
            "cpu_s": [r.get("cpu_s") for r in recorded],
            "updates": [r["updates"] for r in recorded],
            "cost": {label: s["cost"] for label, s in summaries.items()},
            "guards": {label: s["guards"] for label, s in summaries.items()},
            "columns": [*[f"dice @ {e:g}" for e in summaries[next(iter(summaries))]["eps"]], "area"],
            "differences": differences(folders),
            "rows": [row for label, folder in folders.items() for row in rows_of(label, folder)],
        },
    )
    write_text(out / "figure.svg", figure(folders))
    print(f"written: {out.relative_to(HERE.parent.parent)}/config.yaml, result.json, figure.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
