"""Keeps the evidence of a run: `python benchmarks/experiments/record.py NAME RUN [RUN ...] --setting TEXT`.

Reads the runs' config, log and scores and writes config.yaml, result.json (rows of mean scores with
intervals) and figure.svg (the Dice of every case) into benchmarks/experiments/NAME. Several runs are seeds of
one setting: their rows are means over the runs of the mean over cases, low and high the smallest and largest
interval bounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from seguro.core.files import read_json, write_json, write_text
from seguro.evaluation.scores import read_csv
from seguro.report.figures import Dot, strip

HERE = Path(__file__).parent
PACKAGES = ("seguro", "torch", "numpy", "scipy", "nibabel")
STYLE = (
    "svg{background:#fff}text{font-family:system-ui,sans-serif;fill:#444;font-size:11.5px}"
    ".axis-name{fill:#111;font-size:12px;font-weight:600}.grid{stroke:#ddd}.frame{stroke:#999}"
    ".c0{--c:#0072b2}.c1{--c:#d55e00}.c2{--c:#009e73}.c3{--c:#b0568c}.c4{--c:#b97f00}.c5{--c:#2f8fc4}"
    ".c6{--c:#555}.c7{--c:#8a8000}"
    ".box{fill:var(--c);fill-opacity:.13;stroke:var(--c);stroke-opacity:.4}.median{stroke:#111;stroke-width:2}"
    ".line{fill:none;stroke:var(--c);stroke-width:1.8}.band{fill:var(--c);fill-opacity:.14}"
    ".dot{fill:var(--c);stroke:#fff;stroke-width:.7}.cross{stroke:var(--c);stroke-width:1.8;fill:none}"
)


def scores_of(run: Path) -> Path:
    """Return the one folder of scores below a run."""
    found = sorted(p.parent for p in run.glob("predictions/*/scores/summary.json"))
    if len(found) != 1:
        sys.exit(f"{run}: expected one scored set of predictions, found {[str(f) for f in found]}")
    return found[0]


def rows_of(runs: list[Path], setting: str) -> list[dict[str, Any]]:
    """Return result rows: one per class and metric, over all sites."""
    summaries = [read_json(scores_of(r) / "summary.json")["rows"] for r in runs]
    config = read_json(runs[0] / "stage.json")["config"]
    out = []
    for row in summaries[0]:
        if row["site"] != "all":
            continue
        same = [r for s in summaries for r in s if all(r[k] == row[k] for k in ("class", "site", "metric"))]
        values = [r["mean"] for r in same if r["mean"] is not None]
        if not values:
            continue
        out.append(
            {
                "data": runs[0].resolve().parents[1].name.removesuffix(".seguro"),
                "split": scores_of(runs[0]).parent.name,
                "method": config["method"],
                "setting": setting,
                "class": row["class"],
                "metric": row["metric"],
                "value": sum(values) / len(values),
                "low": min(r["low"] for r in same if r["low"] is not None),
                "high": max(r["high"] for r in same if r["high"] is not None),
                "n": row["n_cases"],
                "patients": row["n_patients"],
                "failures": sum(r["failures"] for r in same),
                "seeds": [read_json(r / "stage.json")["config"]["seed"] for r in runs],
            }
        )
    return out


def figure(run: Path) -> str:
    """Return the Dice of every case, by class, as a stand-alone SVG."""
    groups: dict[str, list[Dot]] = {}
    for row in read_csv(scores_of(run) / "scores.csv"):
        if row.metric == "dice" and row.value is not None:
            groups.setdefault(row.cls, []).append(Dot(row.case, row.value, bool(row.note)))
    return standalone(str(strip(list(groups.items()), axis="Dice, one dot per case", limits=(0.0, 1.0))))


def standalone(drawing: str) -> str:
    """Return a figure of the report as a stand-alone SVG."""
    start = drawing.index(">") + 1
    head = drawing[:start]
    if "xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}<style>{STYLE}</style>{drawing[start:]}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--command", required=True, help="what makes the result again")
    options = parser.parse_args()
    folder = HERE / options.name
    stages = [read_json(r / "stage.json") for r in options.runs]
    recorded = stages[0]["recorded"]
    log = [json.loads(line) for line in (options.runs[0] / "log.jsonl").read_text().splitlines()]
    plan = read_json(options.runs[0] / "model" / "model.json")["plan"]
    config = {
        "run": stages[0]["config"],
        "plan": {k: plan[k] for k in ("dims", "spacing", "patch", "batch", "strides")},
    }
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_json(
        folder / "result.json",
        {
            "command": options.command,
            "seed": stages[0]["config"]["seed"],
            "versions": {p: version(p) for p in PACKAGES},
            "machine": recorded["machine"],
            "threads": recorded["threads"],
            "minutes": [s["recorded"]["minutes"] for s in stages],
            "cpu_s": [s["recorded"].get("cpu_s") for s in stages],
            "updates": [s["recorded"]["updates"] for s in stages],
            "crops": [s["recorded"]["updates"] * s["config"]["batch"] for s in stages],
            "validation": [e for e in log if e["kind"] == "validation"],
            "rows": rows_of(options.runs, options.setting),
        },
    )
    write_text(folder / "figure.svg", figure(options.runs[0]))
    print(f"written: {folder.relative_to(HERE.parent.parent)}/config.yaml, result.json, figure.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
