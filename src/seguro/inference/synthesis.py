"""Volumes of a data factory: one style per volume, its slices swept through the positions, with labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.seeds import derive
from seguro.core.types import Classes, Grid
from seguro.data.frame import Frame
from seguro.data.plan import Plan
from seguro.inference.decision import file_values, probabilities

BATCH = 8
"""Slices at a time."""


@dataclass(frozen=True)
class Synthetic:
    """One volume with the label that a model gives it."""

    image: NDArray[np.float32]
    """(C, n, size, size) in [-1, 1], slices first."""
    label: NDArray[np.int64]
    """(n, size, size) values as in label files."""


def swept(generator: Any, domain: int, steps: int, rng: torch.Generator) -> Tensor:
    """Return codes ((z_bins - 1) x steps, latent) of one random style from the first position to the last.

    Between neighboring positions the codes are interpolated linearly; every position but the last is met
    exactly once, and no slice twice. A generator with one position gives one slice.

    Args:
        generator: a `networks.generator.Generator`.
        domain: whose slices.
        steps: slices from one position to the next.
        rng: of the style.
    """
    z = torch.randn(1, generator.latent, generator=rng, device=rng.device)
    bins = torch.arange(generator.z_bins, device=rng.device)
    y = generator.conditions(torch.full_like(bins, domain), bins)
    w: Tensor = generator.codes(z.expand(len(bins), -1), y)  # (z_bins, latent)
    if len(w) == 1:
        return w
    t = torch.arange(steps, device=w.device, dtype=w.dtype).view(1, steps, 1) / steps
    between = w[:-1, None] * (1 - t) + w[1:, None] * t  # (z_bins - 1, steps, latent)
    return between.reshape(-1, w.shape[1])


@torch.no_grad()
def volumes(
    predictor: Any, classes: Classes, domain: int, n: int, *, steps: int, seed: int
) -> Iterator[Synthetic]:
    """Yield n volumes of a domain, labelled by the predictor; volume i depends on (seed, domain, i) alone.

    Args:
        predictor: of method adapt, in evaluation mode; it labels the domain that it learned last.
        classes: of the predictor.
        domain: number of the generator's domain.
        n: volumes.
        steps: slices from one position to the next.
        seed: of the styles.
    """
    generator = predictor.generator
    device = next(generator.parameters()).device
    for number in range(n):
        rng = torch.Generator(device=device)
        rng.manual_seed(derive(seed, "synthesis", domain, number))
        codes = swept(generator, domain, steps, rng)
        images, labels = [], []
        for part in torch.split(codes, BATCH):
            # the stored noise: drawn anew it would flicker from slice to slice
            image = generator.synthesize(generator.spread(part), noise="fixed").clamp(-1, 1)
            logits = predictor.logits(image).movedim(1, 0)  # (classes, N, size, size)
            images.append(image.cpu().numpy())
            labels.append(file_values(probabilities(logits, classes), classes))
        whole = np.concatenate(images).swapaxes(0, 1)
        yield Synthetic(np.ascontiguousarray(whole, np.float32), np.concatenate(labels))


def placed(made: Synthetic, frame: Frame, plan: Plan) -> tuple[Synthetic, Grid]:
    """Return the volume in canonical order, (C, Z, Y, X) and (Z, Y, X), and the grid that it lies on.

    A pixel is as large as the frame makes it; the slices share the usual field of view.
    """
    axis, n = frame.axis, made.label.shape[0]
    spacing = [s * frame.side / frame.size for s in plan.spacing]
    spacing[axis] = plan.fingerprint.extent[axis].median / n
    image = np.ascontiguousarray(np.moveaxis(made.image, 1, axis + 1))
    label = np.ascontiguousarray(np.moveaxis(made.label, 0, axis))
    z, y, x = label.shape
    affine = np.diag([*spacing[::-1], 1.0])
    return Synthetic(image, label), Grid((z, y, x), affine, plan.unit)


def as_read(image: NDArray[np.float32], frame: Frame, plan: Plan) -> NDArray[np.float32]:
    """Return intensities (C, ...) as a file has them, so that the plan scales them to what was made.

    Channels that every case scales by itself stay in [-1, 1].
    """
    out = np.array(image, np.float32)
    for index, how in enumerate(plan.channels):
        if how.scheme == "zscore":
            continue
        low, high = frame.low[index], frame.high[index]
        planned = (out[index] + 1) / 2 * (high - low) + low
        if how.scheme == "unit":
            planned = planned * 255
        elif how.scheme == "ct":
            planned = planned * how.sd + how.mean
        out[index] = planned
    return out
