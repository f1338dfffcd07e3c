"""What a federated run left in its folder, read for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.files import read_checked, read_object
from seguro.report.federation import Attendance, Federated, SiteLine, megabytes
from seguro.report.figures import Series, thin
from seguro.report.privacy import scrub

UNASKED = ("not drawn", "no labelled case there")
"""How the reasons begin for which a site was asked for nothing."""
"""Why a site is missing that was not asked for an update in a round."""
MOST_ROUNDS = 60
"""Columns of the map; of a longer run the last ones are shown."""
MOST_EVENTS = 40
_LOG_LIMIT = 1 << 30


def federated(run: Path, roots: Sequence[str] = ()) -> Federated | None:
    """Return what a federated run left in its folder; None where it is no federated run.

    Args:
        run: its folder, with `federation.json`, `rounds.jsonl` and, once it has ended, `finished.json`.
        roots: folders that must not be on the page.

    Raises:
        DataError: one of them is damaged.
    """
    options = read_object(run / "federation.json")
    if not options:
        return None
    try:
        return _federated(run, options, roots)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{run}: federation.json, rounds.jsonl or finished.json is damaged ({error}); "
            "copy the run again from the server"
        ) from error


def _federated(run: Path, options: Mapping[str, Any], roots: Sequence[str]) -> Federated:
    lines = _lines(run / "rounds.jsonl")
    sites = sorted(str(s) for s in options.get("sites", ()))
    ended = read_object(run / "finished.json")
    chosen = int(ended.get("round") or (lines[-1].get("best_round") if lines else 0) or 0)
    trained = [x for x in lines if x.get("took_part")]
    return Federated(
        name=str(options.get("run", run.name)),
        facts=_facts(options, trained, lines, chosen, ended),
        sites=tuple(sorted((_site(s, lines, chosen) for s in sites), key=_worst_first)),
        rounds=tuple(int(x["round"]) for x in trained[-MOST_ROUNDS:]),
        attendance=tuple(Attendance(s, tuple(_state(s, x) for x in trained[-MOST_ROUNDS:])) for s in sites),
        dice=_by_site(sites, lines, "dice", "of_round"),
        loss=_by_site(sites, lines, "loss", "round"),
        traffic=_traffic(trained),
        epsilon=_epsilon(trained),
        distance=_by_site(sites, lines, "made.distance", "of_round"),
        recognized=_by_site(sites, lines, "made.recognized", "of_round"),
        agreement=_agreement(sites, trained),
        events=_events(lines, roots),
        caveats=_caveats(options, lines, ended),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a round each; of a round that was done twice, after a resume, the last."""
    if not path.is_file() or path.stat().st_size == 0:
        return []
    found: dict[int, dict[str, Any]] = {}
    for raw in read_checked(path, limit=_LOG_LIMIT).data.split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue  # only a line that a kill cut short
        if isinstance(line, dict) and isinstance(line.get("round"), int):
            found[line["round"]] = line
    return [found[k] for k in sorted(found)]


def _metric(line: Mapping[str, Any], site: str, name: str) -> float | None:
    value = line.get("metrics", {}).get(site, {}).get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _site(site: str, lines: Sequence[Mapping[str, Any]], chosen: int) -> SiteLine:
    def last(name: str) -> int | None:
        found = [v for x in lines if (v := _metric(x, site, name)) is not None]
        return round(found[-1]) if found else None

    dice = [_metric(x, site, "dice") for x in lines if x.get("of_round") == chosen and chosen]
    return SiteLine(
        name=site,
        dice=next((d for d in dice if d is not None), None),
        trained=sum(site in x.get("took_part", ()) for x in lines),
        n_cases=last("n_cases"),
        n_labelled=last("n_labelled"),
        n_validation=last("n_validation"),
        sent=sum(int(x.get("bytes_up", {}).get(site, 0)) for x in lines),
        received=sum(int(x.get("bytes_down", {}).get(site, 0)) for x in lines),
        seconds=sum(_metric(x, site, "seconds") or 0.0 for x in lines),
    )


def _worst_first(site: SiteLine) -> tuple[bool, float, str]:
    return site.dice is None, site.dice or 0.0, site.name


def _state(site: str, line: Mapping[str, Any]) -> str:
    if site in line.get("took_part", ()):
        return "trained"
    if site in line.get("rejected", {}):
        return "refused"
    if site in line.get("late", ()):
        return "late"
    if site in line.get("metrics", {}):
        return "scored"
    return "unasked" if _unasked(line.get("missing", {}).get(site)) else "absent"


def _unasked(why: object) -> bool:
    return str(why).startswith(UNASKED)


def _by_site(
    sites: Sequence[str], lines: Sequence[Mapping[str, Any]], name: str, at: str
) -> tuple[Series, ...]:
    out = []
    for color, site in enumerate(sites):
        points = [(float(x[at]), v) for x in lines if (v := _metric(x, site, name)) is not None]
        if points:
            out.append(Series(site, thin(points), color=color))
    return tuple(out)


def _traffic(lines: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    out = []
    for name, key in (("from the sites", "bytes_up"), ("to the sites", "bytes_down")):
        total, points = 0.0, []
        for x in lines:
            total += sum(x.get(key, {}).values()) / 1e6
            points.append((float(x["round"]), total))
        if points:
            out.append(Series(name, thin(points)))
    return tuple(out)


def _epsilon(lines: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    points = [(float(x["round"]), float(x["epsilon"])) for x in lines if x.get("epsilon") is not None]
    return (Series("epsilon", thin(points)),) if points else ()


def _agreement(sites: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    out = []
    for color, site in enumerate(sites):
        points = [
            (float(x["round"]), float(x["agreement"][site][0]))
            for x in lines
            if site in x.get("agreement", {})
        ]
        if points:
            out.append(Series(site, thin(points), color=color))
    return tuple(out)


def _suspected(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence per site that was ever suspected: of the last time, and how often."""
    times: dict[str, list[tuple[int, str]]] = {}
    for x in lines:
        for site, why in x.get("suspects", {}).items():
            times.setdefault(site, []).append((int(x["round"]), str(why)))
    return [
        f"Look at site {site}: in round {seen[-1][0]} it {seen[-1][1]}. It was named in {len(seen)} "
        "rounds and counted in all of them."
        for site, seen in sorted(times.items())
    ]


def _facts(
    options: Mapping[str, Any],
    trained: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    chosen: int,
    ended: Mapping[str, Any],
) -> tuple[tuple[str, str], ...]:
    strategy = options.get("strategy", {})
    bytes_up = sum(sum(x.get("bytes_up", {}).values()) for x in lines)
    bytes_down = sum(sum(x.get("bytes_down", {}).values()) for x in lines)
    seconds = sum(float(x.get("seconds", 0.0)) for x in lines)
    out = [
        ("Sites", str(len(options.get("sites", ())))),
        ("Rounds", f"{len(trained)} of {options.get('rounds', '?')}"),
        ("Local updates a round", str(options.get("updates", "?"))),
        ("Average", str(strategy.get("aggregate", "?"))),
        ("Deployed", f"round {chosen}" if chosen else "not yet chosen"),
        ("From the sites", megabytes(bytes_up)),
        ("To the sites", megabytes(bytes_down)),
        ("Time", f"{seconds / 60:.1f} min"),
    ]
    if strategy.get("coding", "none") != "none":
        out.append(("Updates sent as", str(strategy["coding"])))
    privacy = strategy.get("privacy")
    spent = (
        ended.get("epsilon") if ended else next((x["epsilon"] for x in lines[::-1] if "epsilon" in x), None)
    )
    if privacy and spent is not None:
        out.append(("Privacy spent", f"ε {spent:.3g} at δ {privacy.get('delta', 0):g}"))
        out.append(("Clipping, noise", f"{privacy.get('clip'):g}, {privacy.get('noise'):g}"))
        if privacy.get("budget") is not None:
            out.append(("Budget", f"ε {privacy['budget']:g}"))
    return tuple(out)


def _events(lines: Sequence[Mapping[str, Any]], roots: Sequence[str]) -> tuple[str, ...]:
    found = []
    for x in lines:
        said = {**{s: w for s, w in x.get("missing", {}).items() if not _unasked(w)}, **x.get("rejected", {})}
        found += [
            f"Round {x['round']}, {site}: {scrub(str(why), roots)}" for site, why in sorted(said.items())
        ]
        found += [f"Round {x['round']}, {site}: came too late, not used" for site in x.get("late", ())]
    if len(found) > MOST_EVENTS:
        return (*found[:MOST_EVENTS], f"and {len(found) - MOST_EVENTS} more, in rounds.jsonl")
    return tuple(found)


def _caveats(
    options: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], ended: Mapping[str, Any]
) -> tuple[str, ...]:
    out = _suspected(lines)
    privacy = options.get("strategy", {}).get("privacy")
    if privacy and not privacy.get("noise"):
        out.append("Changes were clipped but no noise was added: epsilon is infinite, nothing is protected.")
    if privacy and privacy.get("noise") and options.get("noise_seed") is not None:
        out.append(
            "The noise came from a seed, as in simulations: whoever knows the seed can take it away again."
        )
    if privacy and privacy.get("noise"):
        out.append(
            "Epsilon is of the weights. Losses, Dice, counts and the facts for the plan leave without noise."
        )
    never = [s for s in options.get("sites", ()) if not any(s in x.get("took_part", ()) for x in lines)]
    if lines and never:
        out.append(f"No update of {', '.join(sorted(never))} is in the model.")
    if not ended:
        out.append("The federated run has not ended.")
    return tuple(out)
