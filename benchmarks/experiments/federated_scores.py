"""What is told of federated.py's arms: scores per site, differences per seed, margins, bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import over_seeds

from seguro.core.files import read_json
from seguro.core.types import ScoreRow
from seguro.evaluation.statistics import paired, summarize
from seguro.federated.record import lines

ALL, NEIGHBORS, MEAN = "all", "neighbors", "mean"
Scores = Mapping[int, Sequence[ScoreRow]]
"""By seed."""


def stands_for(name: str, setting: str) -> bool:
    """Return whether a name in `pairs` means the setting: itself, or all sites of an isolated arm."""
    return setting == name or setting.startswith(f"{name}, ")


def rows_of(plan: Mapping[str, Any], setting: str, arm: str, runs: Scores) -> list[dict[str, Any]]:
    """Return result rows, means over cases of the mean over seeds: over all sites, and the mean of each."""
    each = [{(s.cls, s.site, s.metric): s.mean for s in summarize(r)} for r in runs.values()]
    out = []
    for row in summarize(over_seeds(list(runs.values()))):
        if row.mean is None or (row.site != ALL and row.cls != MEAN):
            continue
        means = [m for e in each if (m := e.get((row.cls, row.site, row.metric))) is not None]
        out.append(
            {
                "data": plan["data"],
                "method": plan["arms"][arm]["method"],
                "setting": setting if row.site == ALL else f"{setting} at {row.site}",
                "site": row.site,
                "class": row.cls,
                "metric": row.metric,
                "value": row.mean,
                "low": row.low,
                "high": row.high,
                "n": row.n_cases,
                "patients": row.n_patients,
                "seeds": list(runs),
                "sd_of_seeds": statistics.stdev(means) if len(means) > 1 else None,
            }
        )
    return out


def pairs_of(setting: str, against: str, ours: Scores, theirs: Scores) -> list[dict[str, Any]]:
    """Return the comparison on the seeds that both have, over all sites and at each.

    Against an isolated setting "ARM, SITE" it is also made at the neighbors, which are all other sites. Each
    row has the differences of the seeds one by one, with their standard deviation.
    """
    seeds = [s for s in ours if s in theirs]
    if not seeds:
        return []
    sites = sorted({r.site for r in ours[seeds[0]]})
    parts = {ALL: set(sites), **{s: {s} for s in sites}}
    if home := against.partition(", ")[2]:
        parts[NEIGHBORS] = parts[ALL] - {home}
    out = []
    for place, those in parts.items():
        a, b = ({s: [r for r in runs[s] if r.site in those] for s in seeds} for runs in (theirs, ours))
        each = [{(r.cls, r.metric): r.difference for r in paired(a[s], b[s], intersect=True)} for s in seeds]
        for row in paired(over_seeds(list(a.values())), over_seeds(list(b.values())), intersect=True):
            by_seed = [e.get((row.cls, row.metric)) for e in each]
            known = [v for v in by_seed if v is not None]
            out.append(
                {
                    "setting": setting,
                    "against": against,
                    "at": place,
                    "seeds": seeds,
                    **row._asdict(),
                    "by_seed": by_seed,
                    "sd_of_seeds": statistics.stdev(known) if len(known) > 1 else None,
                }
            )
    return out


def margins(asked: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every difference in Dice that is asked for and has a pair, and whether its interval keeps it."""
    out = []
    for one in asked:
        wanted = (one["setting"], one.get("at", ALL), MEAN, "dice")
        least, most = one.get("at_least", -math.inf), one.get("at_most", math.inf)
        for row in pairs:
            if (row["setting"], row["at"], row["cls"], row["metric"]) != wanted:
                continue
            if not stands_for(one["against"], row["against"]) or row["low"] is None:
                continue
            where = row["against"] if row["at"] == ALL else f"{row['against']}, at {row['at']}"
            told = {k: row[k] for k in ("difference", "low", "high", "seeds", "by_seed")}
            kept = least <= row["low"] and row["high"] <= most
            out.append({**one, "against": where, "metric": "dice", **told, "kept": kept})
    return out


def traffic(run: Path) -> dict[str, float]:
    """Return the bytes of a run's messages to all sites (down) and from them (up), as they are sent.

    A round is one of training; the last look at the weights belongs to the total. Joining and agreeing on the
    plan, once, are not in it.
    """
    found = lines(run)
    sent = {way: [sum(line[f"bytes_{way}"].values()) for line in found] for way in ("up", "down")}
    out: dict[str, float] = {}
    for way, every in sent.items():
        rounds = [n for n, line in zip(every, found, strict=True) if line["action"] == "train"]
        out |= {f"{way}_per_round": statistics.fmean(rounds), way: sum(every)}
    return {**out, "total": out["up"] + out["down"]}


def shares(plan: Mapping[str, Any], sent: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return, for each pair of which only the first is coded, its bytes as a share of the second's."""

    def coding(setting: str) -> str:
        return str(plan["arms"][setting].get("strategy", {}).get("coding", "none"))

    return [
        {"setting": a, "against": b, "coding": coding(a)}
        | {way: sent[a][way] / sent[b][way] for way in ("up_per_round", "down_per_round", "total")}
        for a, b in plan["pairs"]
        if a in sent and b in sent and coding(a) != "none" == coding(b)
    ]


def minutes_of(run: Path) -> float:
    """Return the minutes of training: of all rounds, or as the run recorded them."""
    if found := lines(run):
        return round(sum(line["seconds"] for line in found) / 60, 2)
    return float(read_json(run / "stage.json")["recorded"]["minutes"])
