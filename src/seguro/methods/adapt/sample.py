"""What adaptation draws: slices of the source and of the target in turn, in the generator's frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from seguro.core.types import IGNORE
from seguro.data.augment import draw as draw_augmentation
from seguro.data.augment import intensities, patch_of
from seguro.data.frame import Frame
from seguro.data.plan import Plan
from seguro.data.sampling import at_slice, centre, middle_slice
from seguro.data.store import Cases, Stored
from seguro.methods.adapt.config import AdaptConfig
from seguro.methods.painter import SOURCE, TARGET, sides
from seguro.methods.streams import NO_AUGMENT


@dataclass(frozen=True)
class Shown:
    """One slice; stacked along a first axis it is the batch."""

    image: NDArray[np.float32]
    """(C, size, size) in [-1, 1]."""
    view: NDArray[np.float32]
    """As `image`, with other intensities: what the encoder sees."""
    label: NDArray[np.uint8]
    """(size, size) stored labels; IGNORE everywhere when unlabelled."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for; zeros when unlabelled."""
    domain: NDArray[np.int64]
    """() SOURCE or TARGET."""


def draw(
    cases: Cases, slot: int, rng: np.random.Generator, *, config: AdaptConfig, plan: Plan, frame: Frame
) -> Shown:
    """Return a slice of the source in even slots, of the target in odd ones; in stage source all are its.

    Where the target has labels, every second of its slots shows one.
    """
    sites, adapts = [c.site for c in cases.facts], config.stage == "adapt"
    source, target = sides(sites, cases.labelled, config, adapts=adapts)
    if not adapts or slot % 2 == 0:
        return _shown(cases[int(rng.choice(source))], SOURCE, rng, config=config, plan=plan, frame=frame)
    known = set(cases.labelled)
    with_label = [i for i in target if i in known]
    if with_label and (slot // 2) % 2 == 0:
        case = cases[int(rng.choice(with_label))]
        return _shown(case, TARGET, rng, config=config, plan=plan, frame=frame)
    case = cases[int(rng.choice(target))]
    bare = replace(
        case, label=None, annotated=np.zeros_like(case.annotated), locations=np.zeros((0, 4), np.int32)
    )
    return _shown(bare, TARGET, rng, config=config, plan=plan, frame=frame)


def _shown(
    case: Stored, domain: int, rng: np.random.Generator, *, config: AdaptConfig, plan: Plan, frame: Frame
) -> Shown:
    window = frame.window
    middle = centre(case, window, rng, p_foreground=config.p_foreground)
    if domain == TARGET and case.label is not None and config.target_slices == "middle":
        middle = at_slice(middle, frame.axis, middle_slice(case, frame.axis))
    drawn = draw_augmentation(
        rng, config.augment, spacing=case.grid.spacing, patch=window, mirror=plan.mirror, classes=plan.classes
    )
    image, label = patch_of(case, middle, window, drawn)
    shown = _in_frame(image, frame)
    view = shown
    if config.view != NO_AUGMENT:
        shade = draw_augmentation(rng, config.view, spacing=case.grid.spacing, patch=window)
        view = _in_frame(intensities(image, shade), frame)
    return Shown(
        image=shown,
        view=view,
        label=np.full((frame.size,) * 2, IGNORE, np.uint8) if label is None else frame.labels(label),
        annotated=case.annotated,
        domain=np.asarray(domain),
    )


def _in_frame(image: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    plane = torch.from_numpy(image.reshape(1, -1, frame.side, frame.side))
    shown: NDArray[np.float32] = frame.shown(plane)[0].numpy()
    return shown
