"""Writes docs/results.md from what was measured.

That is benchmarks/experiments/*/result.json, and in benchmarks/ large_volume.json, brats2015.json,
factory_cones.json, factory_bytes.json and speed.json.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seguro.core.files import read_json, write_text

ROOT = Path(__file__).parents[1]
SHOWN = ("dice", "hd95", "assd", "nsd", "ece")
MEAN = "mean"
"""The pseudo-class of the mean over classes."""
WORST = "worst"
"""Of several attacks, the strongest one for each case."""
SINGLE = ("attack_calls", "rog_hippocampus_four", "rog_hippocampus_strong")
"""Experiments that ask about single attacks: each has rows of its own, of the mean over classes."""


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def cost(result: dict[str, Any]) -> str:
    """Return what the trainings of an experiment took."""
    if isinstance(result.get("minutes"), dict):
        minutes = [m for of_setting in result["minutes"].values() for m in of_setting]
        return f"{len(minutes)} trainings in {sum(minutes):.0f} min"
    trainings = result.get("training") or [
        {"updates": u, "minutes": m, "threads": result["threads"]}
        for u, m in zip(result["updates"], result["minutes"], strict=True)
    ]
    each = ", ".join(f"{t['updates']} updates in {t['minutes']:.0f} min" for t in trainings)
    return f"{each}, {trainings[0]['threads']} thread(s)"


def experiment(path: Path) -> list[str]:
    """Return one experiment's part: its README's first paragraph, the table, the figure, the command."""
    result: dict[str, Any] = read_json(path)
    readme = (path.parent / "README.md").read_text().split("\n\n")
    lines = [f"## {path.parent.name}", "", readme[1] if len(readme) > 1 else "", ""]
    found = {r["metric"] for r in result["rows"]}
    columns = result.get("columns") or [m for m in SHOWN if m in found]
    lines += scores(result["rows"], columns, single=path.parent.name in SINGLE)
    lines += pairs(result.get("pairs") or []) + margins(result.get("margins") or [])
    lines += sent(result.get("bytes") or {}, result.get("bytes_shares") or [])
    where = f"../benchmarks/experiments/{path.parent.name}"
    lines += ["", f"{cost(result)}. Again: `{result['command']}`", ""]
    lines += [f"![Dice of every case]({where}/figure.svg)", ""]
    if result.get("bench"):
        lines += [*bench(result["bench"]), *pairs(result.get("bench_pairs") or []), ""]
        if (path.parent / "bench.svg").exists():
            lines += [f"![Dice over time, memory and operations]({where}/bench.svg)", ""]
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table; None is an empty cell."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in rows]


def interval(value: float, low: float | None, high: float | None) -> str:
    """Return a value with its interval, where it has one."""
    return number(value) if low is None else f"{number(value)} [{number(low)}, {number(high)}]"


def chance(p: float) -> str:
    """Return a p-value, never as zero."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def scores(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, single: bool) -> list[str]:
    """Return the table of scores: of the worst case of all attacks and, if `single`, of each of them too."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        attack = row.get("attack", WORST)
        if attack == WORST or (single and row["class"] == MEAN):
            groups[row["setting"], attack, row["class"]][row["metric"]] = row
    seeds = any(row.get("sd_of_seeds") is not None for row in rows)
    lines = []
    for (setting, attack, cls), found in groups.items():
        cells = [
            interval(r["value"], r["low"], r["high"]) if (r := found.get(metric)) else ""
            for metric in columns
        ]
        n = next(iter(found.values()))["n"]
        spread = [number(found.get(columns[0], {}).get("sd_of_seeds"))] if seeds else []
        lines.append([setting, *([attack] if single else []), cls, n, *cells, *spread])
    head = ["setting", *(["attack"] if single else []), "class", "n", *columns]
    return table([*head, *([f"sd of seeds, {columns[0]}"] if seeds else [])], lines)


def pairs(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of paired differences of the mean over classes."""
    kept = [r for r in rows if r["cls"] == MEAN]
    if not kept:
        return []
    head = ["setting", "against", "metric", "n", "seeds", "difference", "p"]
    lines = [
        [
            r["setting"], r["against"], r["metric"], r["n_cases"], ", ".join(map(str, r.get("seeds", []))),
            interval(r["difference"], r["low"], r["high"]), chance(r["p_permutation"]),
        ]
        for r in kept
    ]  # fmt: skip
    told = "Differences over the same cases and seeds, mean of classes (p by permutation, not corrected):"
    return ["", told, "", *table(head, lines)]


def margins(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of differences that were asked for beforehand."""
    if not rows:
        return []
    head = ["setting", "against", "metric", "asked", "difference", "kept"]
    lines = [
        [
            r["setting"], r["against"], r["metric"],
            f"at least {r['at_least']:g}" if "at_least" in r else f"at most {r['at_most']:g}",
            interval(r["difference"], r["low"], r["high"]), "yes" if r["kept"] else "no",
        ]
        for r in rows
    ]  # fmt: skip
    return ["", "Margins fixed beforehand:", "", *table(head, lines)]


def sent(bytes_of: dict[str, dict[str, float]], shares: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tables of what federations sent, all sites together, and of what a code left of it."""
    if not bytes_of:
        return []
    ways = ("up_per_round", "down_per_round", "total")
    named = ["up a round", "down a round", "in all"]
    lines = [[setting, *(f"{b[way] / 1e6:.2f}" for way in ways)] for setting, b in bytes_of.items()]
    out = ["", "Sent, in MB, all sites together:", "", *table(["setting", *named], lines)]
    if shares:
        parts = [[r["setting"], r["against"], *(number(r[way]) for way in ways)] for r in shares]
        out += ["", "As a share of the other's:", "", *table(["setting", "against", *named], parts)]
    return out


def bench(content: dict[str, Any]) -> list[str]:
    """Return what `seguro bench` measured, per case."""
    rows = content["rows"]
    head = ["system", "Dice", f"HD95 ({rows[0]['unit']})", "CPU s", "peak MB", "GFLOP"]
    lines = []
    for row in rows:
        means = {s["metric"]: s["mean"] for s in row["scores"] if s["class"] == MEAN}
        costs = [row[k] for k in ("cpu_s", "peak_mb", "gflop")]
        lines.append([row["system"], *(number(v) for v in (means.get("dice"), means.get("hd95"), *costs))])
    told = f"What a prediction costs ({len(content['cases'])} cases, {content['threads']} thread(s), "
    return [f"{told}{content['device']}):", "", *table(head, lines)]


def large_volume(path: Path) -> list[str]:
    """Return the table of the large volume."""
    content = read_json(path)
    ours, peer = content["pfseg"], content["windows"]
    size = " x ".join(map(str, content["size"]))
    head = ["", "windows run", "CPU s", "s", "peak GiB"]
    run = f"{peer['windows_run']} of {peer['windows']}"
    lines = [
        [name, windows, r["cpu_s"], r["seconds"], r["peak_gib"]]
        for name, windows, r in (("pfseg", None, ours), ("windows", run, peer))
    ]
    told = "" if peer["measured_whole"] else " Windows that were not run are counted in at the mean time."
    return [
        "## A large volume", "",
        f"{size} voxels, width {content['width']}, random weights, {content['threads']} thread(s): windows "
        f"take {content['ratio_cpu']} times as long.{told} Again: `python benchmarks/large_volume.py`", "",
        *table(head, lines), "",
    ]  # fmt: skip


def brats(path: Path) -> list[str]:
    """Return the table of the volumes of BraTS 2015."""
    content = read_json(path)
    head = ["case", "voxels", "CPU s", "s", "peak GiB"]
    lines = [
        [case, " x ".join(map(str, r["voxels"])), r["cpu_s"], r["seconds"], r["peak_gib"]]
        for case, r in content["cases"].items()
    ]
    return [
        "## Two volumes of BraTS 2015", "",
        f"`seguro predict` with PFSeg of width {content['width']} (weights of one update), "
        f"{content['channels']} channels, {content['threads']} thread(s). Again: "
        "`python benchmarks/brats2015.py`", "",
        *table(head, lines), "",
    ]  # fmt: skip


def cones(path: Path) -> list[str]:
    """Return the table of the made cones."""
    content = read_json(path)
    head = ["site", "distance", "recognized", "rank correlation of position and area"]
    lines = [
        [site, r.get("distance"), r["recognized"], r["rank_correlation"]]
        for site, r in content["sites"].items()
    ]
    return [
        "## What a data factory makes", "",
        f"{content['made']} slices of each site after {content['updates']} updates ({content['cpu_s']} s of "
        f"the CPU, seed {content['seed']}); aimed at: 0.8 and 0.7. Again: "
        "`python benchmarks/factory_cones.py`", "",
        *table(head, lines), "",
    ]  # fmt: skip


def messages(path: Path) -> list[str]:
    """Return the table of what a federated factory sends and makes, a row for each seed."""
    content = read_json(path)
    measured = ("distance", "recognized", "rank_correlation")
    head = ["messages", "seed", "MB in all", *(m.replace("_", " ") for m in measured)]
    lines = []
    for arm, runs in content["arms"].items():
        for seed, run in zip(content["seeds"], runs, strict=True):
            sites = run["sites"].values()
            means = [number(sum(s[m] for s in sites) / len(sites)) for m in measured]
            lines.append([arm, seed, run["megabytes"], *means])
    return [
        "## What a federated data factory sends", "",
        f"{content['rounds']} rounds of {content['updates']} updates at each of three sites; means over the "
        "sites. Again: `python benchmarks/factory_bytes.py`", "",
        *table(head, lines), "",
    ]  # fmt: skip


def speed(path: Path) -> list[str]:
    """Return the table of speeds."""
    content = read_json(path)
    lines = ["## Speed", "", "Both sides in one run, one thread: `make bench`.", ""]
    lines += ["| job | size | seguro | peer | ratio | peak MB | peer MB | GFLOP | peer GFLOP |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for r in content["rows"]:
        peer = f"{r['peer']}: {r['peer_s']} s" if r["peer"] else ""
        cells = [r["job"], r["size"], f"{r['ours_s']} s", peer, r["ratio"], r["peak_mb"], r["peer_peak_mb"]]
        cells += [r.get("gflop"), r.get("peer_gflop")]
        lines.append("| " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return [*lines, ""]


def main() -> int:
    parts = [
        "# Results",
        "",
        "Generated by `python benchmarks/results.py`; a figure that was not measured is not here.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks" / "experiments").glob("*/result.json")):
        parts += experiment(path)
    known = {
        "large_volume": large_volume,
        "brats2015": brats,
        "factory_cones": cones,
        "factory_bytes": messages,
        "speed": speed,
    }
    for name, part in known.items():
        path = ROOT / "benchmarks" / f"{name}.json"
        parts += part(path) if path.exists() else []
    write_text(ROOT / "docs" / "results.md", "\n".join(parts))
    print("written: docs/results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
