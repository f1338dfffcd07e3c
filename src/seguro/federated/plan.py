"""One plan for all sites, made from their facts, and what it is at a site with its own label values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import sha256_json
from seguro.core.types import Case, Classes, FileFact, Grid, Manifest
from seguro.data.fingerprint import QUANTITIES, Measured
from seguro.data.patch import Bytes
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions, make
from seguro.federated.facts import VOXEL_LEVELS, at, checked, classes_of
from seguro.federated.message import Refusal

MOST = 200
"""Cases that stand for a site in the plan, at most; its share of them is that of its cases."""
SAMPLES = 50
"""Foreground voxels that stand for each case's."""
_NO_FILE = FileFact(path="", size=0, mtime_ns=0, sha256="")


def merged(
    name: str, facts: Mapping[str, Mapping[str, Any]], options: PlanOptions, step_bytes: Bytes
) -> Plan:
    """Return one plan for all sites, by the rules of one data set (`data.planner.make`).

    In place of cases stand as many made ones, spread over the quantiles that each site told; the rules see
    nothing else. It has no folds: each site holds out patients of its own.

    Args:
        name: of the plan.
        facts: by site.
        options: what is not left to the data.
        step_bytes: the network's memory estimate.

    Raises:
        DataError: sites that do not fit together; the message names them.
        ConfigError: a recipe that needs more than the facts.
    """
    if options.recipe == "rog":
        raise ConfigError("--recipe rog measures organs voxel by voxel, which no site tells; use seguro's")
    sites = sorted(facts)
    told = {site: checked(site, facts[site]) for site in sites}
    first = sites[0]
    for site in sites[1:]:
        for key in ("channels", "unit"):
            if told[site][key] != told[first][key]:
                raise DataError(
                    f"site {site} has {key} {told[site][key]}, site {first} {told[first][key]}; "
                    "one federation has one kind of image"
                )
    classes = merged_classes({site: classes_of(told[site]) for site in sites})
    most = max(int(f["n_cases"]) for f in told.values())
    parts = {site: _stand_ins(site, told[site], min(1.0, MOST / most), classes) for site in sites}
    cases = [pair for site in sites for pair in parts[site]]
    cases = [p for p in cases if p[0].label] + [p for p in cases if not p[0].label]
    manifest = Manifest(
        name=name,
        root="",
        layout="folder",
        channels=tuple(told[first]["channels"]),
        classes=classes,
        cases=tuple(case for case, _ in cases),
    )
    measured = {case.id: m for case, m in cases}
    order = (*manifest.of("train"), *manifest.of("unlabelled"))
    plan = make(manifest, [measured[c.id] for c in order], options, step_bytes=step_bytes)
    counts = {
        "n_cases": sum(int(f["n_cases"]) for f in told.values()),
        "n_labelled": sum(int(f["n_labelled"]) for f in told.values()),
        "present": {
            n: sum(int(f["present"].get(n, 0)) for f in told.values()) for n in plan.classes.foreground
        },
    }
    reasons = (*(r for r in plan.reasons if not r.startswith("folds:")), "folds: each site holds out its own")
    return plan.model_copy(
        update={
            "folds": (),
            "reasons": reasons,
            "fingerprint": plan.fingerprint.model_copy(update=counts),
        }
    )


def merged_classes(found: Mapping[str, Classes | None]) -> Classes | None:
    """Return the classes of all sites by name, None where no site has labels.

    Exclusive classes are numbered anew, in the order in which sites (by name) and their files have them;
    regions must be the same everywhere they are annotated.

    Raises:
        DataError: exclusive classes at one site and regions at another, or other regions.
    """
    known = {site: c for site, c in found.items() if c is not None}
    if not known:
        return None
    first, like = next(iter(known.items()))
    for site, classes in known.items():
        if classes.regions != like.regions:
            raise DataError(f"sites {first} and {site}: one has overlapping regions, the other has not")
        if classes.regions and (classes.names, classes.values, classes.paint) != (
            like.names,
            like.values,
            like.paint,
        ):
            raise DataError(f"sites {first} and {site} have other regions: {like.names}, {classes.names}")
    if like.regions:
        return like
    names = list(dict.fromkeys(n for c in known.values() for n in c.foreground))
    pairs = dict.fromkeys(tuple(p) for c in known.values() for p in c.pairs)
    return Classes(
        names=(like.names[0], *names),
        values=tuple((i,) for i in range(len(names) + 1)),
        pairs=tuple((a, b) for a, b in pairs),
    )


def at_site(plan: Plan, manifest: Manifest) -> Plan:
    """Return the plan with the file values of this site's labels, whose training it is.

    Raises:
        Refusal: the plan has other channels or another unit, or lacks a class of this site.
    """
    planned = tuple(c.name for c in plan.channels)
    if planned != manifest.channels:
        raise Refusal(f"the plan has channels {', '.join(planned)}, here are {', '.join(manifest.channels)}")
    units = {c.unit for c in manifest.cases}
    if units - {plan.unit}:
        raise Refusal(f"the plan is in {plan.unit}, cases here in {', '.join(sorted(units))}")
    own = manifest.classes
    if own is None:
        return plan
    missing = sorted(set(own.foreground) - set(plan.classes.foreground))
    if missing:
        raise Refusal(f"the plan does not have the classes {', '.join(missing)}")
    if own.regions != plan.classes.regions:
        raise Refusal("the plan has overlapping regions and this site has not, or the other way round")
    if plan.classes.regions:
        return plan
    value = dict(zip(own.foreground, (v[0] for v in own.values[1:]), strict=True))
    free = iter(range(max(v[0] for v in own.values) + 1, 256 + len(plan.classes.names)))
    values = [own.values[0], *((value[n] if n in value else next(free),) for n in plan.classes.foreground)]
    classes = plan.classes.model_copy(update={"values": tuple(values), "ignore": own.ignore})
    return plan.model_copy(update={"classes": classes})


def plan_hash(plan: Plan) -> str:
    """Return the hash that all sites must agree on."""
    return sha256_json(plan.model_dump(mode="json"))


def _stand_ins(
    site: str, facts: Mapping[str, Any], share: float, classes: Classes | None
) -> list[tuple[Case, Measured]]:
    """Return made cases with the measurements that the site's quantiles say, its labelled ones first."""
    n = max(1, round(share * int(facts["n_cases"])))
    labelled = min(n, -(-n * int(facts["n_labelled"]) // int(facts["n_cases"])))
    spacing = np.array([at(facts["spacing"][a], n) for a in range(3)]).T
    extent = np.array([at(facts["extent"][a], n) for a in range(3)]).T
    shapes = np.maximum(np.rint(extent / spacing), 1).astype(int)
    channels = range(len(facts["channels"]))
    intensity = [{q: at(facts["intensity"][c][q], n) for q in QUANTITIES} for c in channels]
    voxels = [at(facts["foreground"][c], SAMPLES * labelled, of=VOXEL_LEVELS) for c in channels]
    names = classes.foreground if classes else ()
    volume = {k: _volumes(facts, k, labelled) for k in names if facts["annotated"].get(k)}
    lateral = {k: at(facts["lateral"][k], labelled) for k in volume if facts["lateral"].get(k)}
    out = []
    for i in range(n):
        has = i < labelled
        grid = Grid(_three(shapes[i]), np.diag([*spacing[i][::-1], 1.0]), facts["unit"])
        known = {k: v[i] for k, v in volume.items()} if has else {}
        case = Case(
            id=f"{site}/{i:04d}",
            patient=f"{site}/{i:04d}",
            site=site,
            split="train" if has else "unlabelled",
            images=(_NO_FILE,),
            label=_NO_FILE if has else None,
            annotated=tuple(known),
            shape=grid.shape,
            spacing=grid.spacing,
            unit=facts["unit"],
        )
        foreground = [v[i * SAMPLES : (i + 1) * SAMPLES] if has else [] for v in voxels]
        out.append(
            (
                case,
                Measured(
                    grid=grid,
                    intensity=tuple({q: v[i] for q, v in c.items()} for c in intensity),
                    lowest=tuple(facts["lowest"]),
                    foreground=np.array(foreground, np.float32).reshape(len(facts["channels"]), -1),
                    volume_ml=known,
                    lateral={k: lateral[k][i] for k in known if k in lateral and known[k] > 0},
                ),
            )
        )
    return out


def _volumes(facts: Mapping[str, Any], name: str, n: int) -> list[float]:
    """Return the volumes of a class in `n` cases: zero where the class is absent."""
    present = round(n * facts["present"][name] / facts["annotated"][name])
    present = max(present, min(1, int(facts["present"][name])))
    return [*at(facts["volume_ml"][name], present), *[0.0] * (n - present)]


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(v) for v in values)
    return z, y, x
