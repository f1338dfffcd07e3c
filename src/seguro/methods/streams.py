"""Labelled and unlabelled samples in one batch: which slot is which, and drawing a sample of either kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import IGNORE
from seguro.data.augment import Augment, intensities, patch_of
from seguro.data.augment import draw as draw_augmentation
from seguro.data.plan import Plan
from seguro.data.sampling import centre, patch_size
from seguro.data.store import Cases

NO_AUGMENT = Augment(p_spatial=0.0, mirror=False, p_noise=0.0, p_blur=0.0, p_intensity=0.0)
"""The image as it is."""


@dataclass(frozen=True)
class TwoStream:
    """One sample of either kind; stacked along a first axis they are the batch."""

    image: NDArray[np.float32]
    """(C, *patch), augmented in geometry and intensity."""
    views: NDArray[np.float32]
    """(K, C, *patch) further intensity views of the same geometry; K may be 0."""
    label: NDArray[np.uint8]
    """(*patch) stored labels; IGNORE everywhere when unlabelled."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for; zeros when unlabelled."""
    labelled: NDArray[np.float32]
    """() 1 or 0."""


def is_labelled(slot: int, share: float) -> bool:
    """Return whether `slot` holds a labelled sample where this share of the slots does.

    A function of the slot alone, so that ranks agree. With one half the even slots do; the first one always
    does.
    """
    part = Fraction(share).limit_denominator(1000)
    return ceil((slot + 1) * part) > ceil(slot * part)


def two_stream(
    cases: Cases,
    slot: int,
    rng: np.random.Generator,
    plan: Plan,
    augment: Augment,
    *,
    p_foreground: float,
    views: int = 0,
    strong: Augment | None = None,
    share: float = 0.5,
) -> TwoStream:
    """Return the sample of `slot`, of a random labelled or unlabelled case.

    Without unlabelled cases every slot is labelled. No label of an unlabelled case is ever read.

    Args:
        cases: labelled and unlabelled ones.
        slot: of the batch.
        rng: the only source of randomness.
        plan: gives patch, mirroring and classes.
        augment: of `image`.
        p_foreground: probability that a labelled patch is centered on a foreground voxel.
        views: number of further views.
        strong: intensity augmentation of the views; None: that of `augment`.
        share: of the slots that are labelled.
    """
    labelled = is_labelled(slot, share) or not cases.unlabelled
    case = cases[int(rng.choice(cases.labelled if labelled else cases.unlabelled))]
    if not labelled:
        case = replace(case, label=None)
    patch = patch_size(plan.patch, plan.slice_axis)
    middle = centre(case, patch, rng, p_foreground=p_foreground)
    spacing, mirror, classes = case.grid.spacing, plan.mirror, plan.classes
    drawn = draw_augmentation(rng, augment, spacing=spacing, patch=patch, mirror=mirror, classes=classes)
    geometry = replace(drawn, noise=None, blur_vox=None, brightness=None, contrast=None, gamma=None)
    plain, label = patch_of(case, middle, patch, geometry)
    shade = (strong or augment).model_copy(update={"p_spatial": 0.0, "mirror": False})
    others = [draw_augmentation(rng, shade, spacing=spacing, patch=patch) for _ in range(views)]
    shape = (-1, *plan.patch)
    seen = [intensities(plain, other).reshape(shape) for other in others]
    image = intensities(plain, drawn).reshape(shape)
    return TwoStream(
        image=image,
        views=np.stack(seen) if seen else np.zeros((0, *image.shape), np.float32),
        label=np.full(plan.patch, IGNORE, np.uint8) if label is None else label.reshape(plan.patch),
        annotated=case.annotated if labelled else np.zeros_like(case.annotated),
        labelled=np.asarray(labelled, np.float32),
    )
