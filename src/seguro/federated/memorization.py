"""The memorization audit of a method that makes images, each part of it at the site whose images it is about.

A site compares what the final weights make of it with its own training slices, and says two median distances
and three counts; no slice leaves. The server needs them of every site whose updates are in the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from seguro.data.store import Cases
from seguro.evaluation.generated import AUDIT_RATIO, Audit, audit
from seguro.inference import previews
from seguro.methods.contract import Maker, Method

COMPARED = 512
"""Made and held-out slices in the audit, at most."""
REMEMBERED = 4096
"""Training slices in the audit, at most."""
PREFIX = "audit."
"""Of the names of its numbers; a site's policy must list them as "audits"."""
DISTANCES, COUNTS = ("made", "held_out"), ("n_made", "n_held_out", "n_train")


def measured(
    method: Method, modules: nn.ModuleDict, train: Cases, held_out: Cases, *, site: str, seed: int
) -> dict[str, float]:
    """Return the numbers of the audit of a site's own domain; none without training or held-out slices.

    Args:
        method: one that makes no images has no numbers.
        modules: its trained modules, as they are deployed.
        train: the site's training cases.
        held_out: cases of other patients of the site.
        site: names its domain, where the method tells sites apart.
        seed: of what is made.
    """
    if not isinstance(method, Maker):
        return {}
    number = method.domains.index(site) if site in method.domains else 0
    known, fresh = method.seen(train, number, REMEMBERED), method.seen(held_out, number, COMPARED)
    if not (len(known) and len(fresh)):
        return {}
    found = audit(previews.made(method, modules, number, COMPARED, seed=seed), known, fresh)
    return {PREFIX + k: float(v) for k, v in vars(found).items()}


def together(
    told: Mapping[str, Mapping[str, float]], sites: Sequence[str], why: Mapping[str, str]
) -> dict[str, Any]:
    """Return the audit of the whole model as JSON values: releasable where every site's part passed.

    Args:
        told: metrics of the sites that answered.
        sites: all whose updates are in the model.
        why: reasons of those that did not answer.
    """
    domains = {s: _verdict(told.get(s, {}), why.get(s, "the site told no numbers")) for s in sorted(sites)}
    releasable = bool(domains) and all(d["passed"] for d in domains.values())
    return {"releasable": releasable, "needed_ratio": AUDIT_RATIO, "domains": domains}


def _verdict(metrics: Mapping[str, float], why: str) -> dict[str, Any]:
    if any(PREFIX + name not in metrics for name in (*DISTANCES, *COUNTS)):
        return {"passed": False, "reason": f"not audited: {why}"}
    counts = {name: int(metrics[PREFIX + name]) for name in COUNTS}
    if min(counts.values()) < 1:
        return {"passed": False, "reason": "not audited: no slice to compare with"}
    made, held_out = (metrics[PREFIX + name] for name in DISTANCES)
    found = Audit(made, held_out, **counts)
    return {**vars(found), "ratio": found.ratio, "passed": found.passed}
