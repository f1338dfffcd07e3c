"""Which method fits the data that were found, and the command that runs it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np

from seguro.core.types import Manifest

FEW = 10
"""Labelled patients below which unlabelled scans are worth a method of their own."""
LARGE = 200 * 200 * 150
"""Median voxels from which patches see only a small part of the volume."""


@dataclass(frozen=True)
class Recommendation:
    """A method for the data, why, and what to type."""

    method: str
    command: str
    why: str


def recommend(manifest: Manifest, data: str) -> Recommendation:
    """Return the method that fits the cases of `manifest`; `data` is the folder as the user typed it."""
    data = shlex.quote(data)
    train, unlabelled = manifest.of("train"), manifest.of("unlabelled")
    patients = len({c.patient for c in train})
    sites = len({c.site for c in (*train, *unlabelled)})
    voxels = float(np.median([np.prod(c.shape) for c in manifest.cases])) if manifest.cases else 0.0
    n, m = len(train), len(unlabelled)
    if n == 0:
        why = (
            f"no training case has a label ({m} unlabelled): label at least one and check again; --method "
            "alpnet (needs one annotated scan to predict) and factory (makes images) train without any"
        )
        return Recommendation("none", f"seguro check {data}", why)
    if n == 1:
        return _named("alpnet", f"one labelled scan and {m} unlabelled: learn from one example", data)
    bare = sorted({c.site for c in unlabelled} - {c.site for c in train})
    if bare:
        why = (
            f"{n} labelled scans, none from {', '.join(bare)}: make a data factory of all sites, then go on "
            "with seguro adapt"
        )
        return Recommendation("factory", f"seguro train {data} --method factory --dims 2", why)
    if sites > 1:
        why = f"{n} labelled scans from {sites} sites: train so that data may stay where they are"
        return Recommendation("federate", f"seguro federate simulate {data}", why)
    if patients < FEW and m >= n:
        why = f"{n} labelled scans of {patients} patients and {m} unlabelled: the unlabelled ones may help"
        return _named("roam", why, data)
    if voxels >= LARGE and min(np.median([c.shape for c in manifest.cases], axis=0)) > 1:
        why = f"volumes of {voxels / 1e6:.0f} million voxels: train on whole volumes, without patches"
        return _named("pfseg", why, data)
    few = "; more labels or unlabelled scans (imagesUn) would help" if patients < FEW else ""
    return _named("supervised", f"{n} labelled scans of {patients} patients{few}", data)


def _named(method: str, why: str, data: str) -> Recommendation:
    chosen = "" if method == "supervised" else f" --method {method}"
    return Recommendation(method, f"seguro train {data}{chosen}", why)
