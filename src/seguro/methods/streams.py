"""Labelled and unlabelled samples in one batch: which slot is which, drawing them, watching the guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.types import IGNORE, Classes
from seguro.data.augment import Augment, intensities, patch_of, unshaded
from seguro.data.augment import draw as draw_augmentation
from seguro.data.plan import Plan
from seguro.data.sampling import centre, patch_size
from seguro.data.store import Cases, Stored
from seguro.losses import one_hot
from seguro.methods.contract import SHARE, Batch, Run

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

    Without unlabelled cases every slot is labelled, and without labelled ones (a site of a federation) none
    is. No label of an unlabelled case is ever read.

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
    labelled = bool(cases.labelled) and (is_labelled(slot, share) or not cases.unlabelled)
    case = cases[int(rng.choice(cases.labelled if labelled else cases.unlabelled))]
    case = case if labelled else replace(case, label=None)
    return shown(case, plan, augment, rng, p_foreground=p_foreground, views=views, strong=strong)


def shown(
    case: Stored,
    plan: Plan,
    augment: Augment,
    rng: np.random.Generator,
    *,
    p_foreground: float,
    views: int = 0,
    strong: Augment | None = None,
) -> TwoStream:
    """Return a patch of one case, unlabelled if it has no label; arguments as of `two_stream`."""
    patch = patch_size(plan.patch, plan.slice_axis)
    middle = centre(case, patch, rng, p_foreground=p_foreground)
    spacing, mirror, classes = case.grid.spacing, plan.mirror, plan.classes
    drawn = draw_augmentation(rng, augment, spacing=spacing, patch=patch, mirror=mirror, classes=classes)
    geometry = unshaded(drawn)
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
        annotated=np.zeros_like(case.annotated) if label is None else case.annotated,
        labelled=np.asarray(label is not None, np.float32),
    )


class Shares:
    """How much of the unlabelled patches each class takes, against what it takes of the labelled ones.

    A method that learns from its own guesses can lose a rare class for good; this shows it. Both shares are
    averages over the last updates, about `1 / (1 - DECAY)` of them.
    """

    DECAY = 0.98

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self._kept: Tensor | None = None
        """(2, n): on labelled, on unlabelled."""

    @torch.no_grad()
    def observe(self, target: Tensor, counts: Tensor, labelled: Tensor, run: Run) -> dict[str, Tensor]:
        """Take one batch into account and return `share.<class>`, unlabelled over labelled share.

        Classes that no labelled patch has shown yet are left out.

        Args:
            target: (N, n, *size) probabilities: labels and guesses, not mixed.
            counts: (N, *size) 0 where a label is to be ignored; guesses count everywhere.
            labelled: (N,) bool, of both kinds at least one.
            run: averages over ranks.
        """
        dims = (0, *range(2, target.ndim))
        hard = target > 0.5 if self.classes.regions else target == target.amax(1, keepdim=True)
        known = (hard * counts.unsqueeze(1))[labelled].sum(dims) / counts[labelled].sum().clamp(min=1)
        now = run.mean(torch.stack([known, hard[~labelled].float().mean(dims)]))
        kept = torch.zeros_like(now) if self._kept is None else self._kept
        self._kept = kept = self.DECAY * kept + (1 - self.DECAY) * now
        first = 0 if self.classes.regions else 1
        return {
            f"{SHARE}{name}": kept[1, i] / kept[0, i]
            for i, name in enumerate(self.classes.foreground, start=first)
            if kept[0, i] > 0
        }

    def guessed(self, batch: Batch, label: Tensor, run: Run) -> dict[str, Tensor]:
        """As `observe`, of a batch of both kinds and what its unlabelled rows are taken for, (M, *size)."""
        known, both = batch.labelled > 0, batch.label.clone()
        both[~known] = label
        return self.observe(one_hot(both, self.classes), (both != IGNORE).float(), known, run)

    def state(self) -> dict[str, Tensor]:
        """Return both shares, once there are some."""
        return {} if self._kept is None else {"shares": self._kept}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if "shares" in state:
            self._kept = state["shares"].clone()
