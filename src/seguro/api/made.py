"""What a generating method makes: watched while it trains, and audited before it may leave a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seguro.core.files import read_object, write_json

if TYPE_CHECKING:
    from torch import nn

    from seguro.data.store import Cases
    from seguro.methods.contract import Maker

WATCHED = 128
"""Made and real slices per domain that are compared at a validation."""
AUDITED = 512
"""Made and held-out slices per domain in the audit."""
REMEMBERED = 4096
"""Training slices per domain in the audit, at most."""
AUDIT = "audit.json"
START_AUDIT = "start_audit.json"
"""The audit of the generator that a run began from."""
PREVIEWS = "previews"
SETS = "generated"
"""What `generate` made with a run's model: NAME.json of each set."""


def watching(
    method: Maker, train: Cases, folder: Path, *, seed: int
) -> Callable[[int, nn.ModuleDict], Mapping[str, float]]:
    """Return what looks at the modules after an update: writes previews, returns scores.

    `distance.<domain>`: Frechet distance of made slices to training slices of the domain. `recognized`: part
    of the made slices that a classifier of the real ones takes for the domain asked for, where there are two.
    """
    from seguro.evaluation.generated import Recognizer, descriptors, frechet
    from seguro.inference import previews

    domains = method.domains
    real = [descriptors(method.seen(train, d, WATCHED)) for d in range(len(domains))]
    known = len(domains) > 1 and all(len(rows) > 1 for rows in real)
    recognizer = Recognizer.fitted(real) if known else None

    def look(update: int, modules: nn.ModuleDict) -> dict[str, float]:
        previews.write(folder / PREVIEWS, f"{update:08d}", method, modules)
        scores, hits = {}, []
        for number, domain in enumerate(domains):
            made = descriptors(previews.made(method, modules, number, WATCHED, seed=seed))
            if len(real[number]) > 1:
                scores[f"distance.{domain}"] = frechet(made, real[number])
            if recognizer is not None:
                hits.append(float((recognizer.domains(made) == number).mean()))
        return scores | ({"recognized": float(np.mean(hits))} if hits else {})

    return look


def audited(
    method: Maker, modules: nn.ModuleDict, train: Cases, held_out: Cases, *, seed: int
) -> dict[str, Any]:
    """Return the memorization audit of every domain, as JSON values, and whether the model may be released.

    It may where made slices of every domain are, in the median, at least 0.9 times as far from the nearest
    training slice as held-out slices are.
    """
    from seguro.evaluation.generated import AUDIT_RATIO, audit
    from seguro.inference import previews

    found: dict[str, Any] = {}
    for number, domain in enumerate(method.domains):
        known = method.seen(train, number, REMEMBERED)
        fresh = method.seen(held_out, number, AUDITED)
        if not (len(known) and len(fresh)):
            found[domain] = {"passed": False, "reason": "no held-out slice to compare with"}
            continue
        done = audit(previews.made(method, modules, number, AUDITED, seed=seed), known, fresh)
        found[domain] = {**vars(done), "ratio": done.ratio, "passed": done.passed}
    releasable = all(d["passed"] for d in found.values())
    return {"releasable": releasable, "needed_ratio": AUDIT_RATIO, "domains": found}


def write_audit(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the audit into a run's folder and return its path."""
    write_json(folder / AUDIT, dict(facts))
    return folder / AUDIT


def keep_audit(start: Path, folder: Path) -> list[Path]:
    """Copy the audit that a run's start has, its own or its start's, into the run's folder; return the copy.

    The sites of a federation audit their generator together (`audit.json` beside its model); nobody else can.
    """
    from seguro.engine.model import model_folder

    begun = model_folder(start).parent
    for name in (AUDIT, START_AUDIT):
        if (begun / name).exists():
            write_json(folder / START_AUDIT, read_object(begun / name))
            return [folder / START_AUDIT]
    return []
