"""Few-shot prediction: a model and its annotated examples as one model, and whether its answer holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError, GeometryError
from seguro.core.types import IGNORE, Classes, Source, Volume
from seguro.data.geometry import SAME_MM, resample_label, same_grid
from seguro.data.plan import Plan
from seguro.data.preprocess import to_planned
from seguro.data.support import Bank, Shot
from seguro.engine.model import Model
from seguro.inference import novelty
from seguro.inference.snap import Snapped
from seguro.inference.tiling import planned_slabs
from seguro.methods import get
from seguro.methods.contract import Bound, Predictor, Support
from seguro.networks import build

LOW = 0.5
"""Cycle Dice below which a class is flagged."""


def planned_support(bank: Bank, plan: Plan, device: torch.device | str = "cpu") -> Support:
    """Return the examples of a bank on the planned grid of a model.

    Raises:
        DataError: another number of channels than planned, or an image without contrast.
    """
    images, labels = [], []
    for shot in bank.shots:
        image, grid = to_planned(_volume(shot), plan)
        images.append(torch.from_numpy(image).to(device))
        label = resample_label(shot.label, grid.shape)
        labels.append(torch.from_numpy(label.astype(np.int64)).to(device))
    return Support(tuple(images), tuple(labels), bank.classes)


def bind(model: Model, bank: Bank) -> Model:
    """Return a model that segments the classes of `bank`; its plan says so, all else is unchanged.

    Args:
        model: of a method that needs a support.
        bank: annotated examples.

    Raises:
        ConfigError: the model's method takes no support.
    """
    if not get(model.method).needs.support:
        raise ConfigError(
            f"{model.folder}: method {model.method} segments what it was trained for and takes no support; "
            "leave --support out, or train with --method alpnet"
        )
    device = next((p.device for p in model.predictor.parameters()), torch.device("cpu"))
    predictor = Bound(model.predictor, planned_support(bank, model.plan, device))
    predictor.eval().requires_grad_(False)
    return replace(model, predictor=predictor, plan=model.plan.model_copy(update={"classes": bank.classes}))


def variant(model: Model, **changes: Any) -> Model:
    """Return a few-shot model with the same weights and other options of how a support is used.

    Args:
        model: not bound.
        changes: config fields, such as prior="none" or foreground="global".
    """
    kind = get(model.method)
    config = kind.Config.model_validate({**model.config, **changes})
    method = kind(config, model.plan, build)
    predictor = method.predictor(method.modules)
    predictor.load_state_dict(model.predictor.state_dict())
    predictor.eval().requires_grad_(False)
    return replace(model, predictor=predictor, config=config.model_dump(mode="json"))


def segment_of(
    predictor: Predictor, query: Tensor, image: Tensor, mask: Tensor
) -> Callable[[Sequence[int], Sequence[int]], NDArray[np.bool_]]:
    """Return a function that segments some query slices from some support slices and nothing else.

    One class against the background, as published: what `evaluation.protocol.ep1` asks. Give it a predictor
    without prior (`variant(model, prior="none", nearest=0)`), since some slices have no height.

    Args:
        predictor: few-shot, not bound.
        query: (C, Z, Y, X) planned.
        image: (C, Z, Y, X) the support, planned.
        mask: (Z, Y, X) bool, its class. Slices lie along the first axis here.
    """
    one = Classes(names=("background", "class"), values=((0,), (1,)))

    @torch.inference_mode()
    def segment(slices: Sequence[int], given: Sequence[int]) -> NDArray[np.bool_]:
        shown = Support((image[:, list(given)],), (mask[list(given)].long(),), one)
        logits = predictor(query[None, :, list(slices)], shown)[0]
        return np.asarray((logits[1] > logits[0]).cpu().numpy())

    return segment


def snapped(model: Model, weight: float) -> Model:
    """Return a model whose edges follow those of the image.

    Args:
        model: of any method that works on whole slices or volumes.
        weight: how far probabilities are drawn to the mean of their superpixel, 0 to 1.
    """
    return replace(model, predictor=Snapped(model.predictor, weight, axis=model.plan.slice_axis).eval())


def refuse_unsupported(models: Sequence[Model]) -> None:
    """Refuse to predict with models that need a support and have none.

    Raises:
        ConfigError: one does; it says what to give.
    """
    for model in models:
        if get(model.method).needs.support and not isinstance(model.predictor, Bound):
            raise ConfigError(
                f"{model.folder}: method {model.method} segments what an annotated scan shows; give one with "
                "--support IMAGE --support-label MASK"
            )


def support_flags(bank: Bank, plan: Plan) -> list[str]:
    """Return a sentence for each respect in which an example is unlike the training cases of `plan`."""
    many = len(bank.shots) > 1
    return [
        f"support{f' {i}' if many else ''}: {line}"
        for i, shot in enumerate(bank.shots, start=1)
        for line in novelty.flags(_volume(shot), plan)
    ]


def annotated_here(bank: Bank, volume: Volume) -> NDArray[np.uint8] | None:
    """Return what the bank holds of this very image: indices (Z, Y, X), IGNORE elsewhere; or None."""
    for shot in bank.shots:
        same = shot.image.shape == volume.array.shape and same_grid(shot.grid, volume.grid) < SAME_MM
        if same and bool((shot.image == volume.array).all()):
            return shot.label
    return None


@torch.inference_mode()
def cycle_dice(model: Model, volume: Volume, label: NDArray[np.integer]) -> dict[str, float | None]:
    """Return per class how well the prediction, taken as a support, finds the support's own annotation again.

    Dice over all annotated voxels of all examples; None where the prediction is empty, so that nothing can be
    said. A wrong prediction seldom leads back: the check needs no truth (brief of SSL-ALPNet, 7.4.8).

    Args:
        model: bound to its support.
        volume: the query as read.
        label: (Z, Y, X) its predicted file values.
    """
    bound, classes = cast(Bound, model.predictor), model.plan.classes
    support = bound.support
    image, grid = to_planned(volume, model.plan)
    found = resample_label(_indices(label, classes), grid.shape)
    present = [k for k in range(1, classes.n) if (found == k).any()]
    out: dict[str, float | None] = dict.fromkeys(classes.foreground)
    if not present:
        return out
    device = support.images[0].device
    some = _subset(classes, present)
    shown = torch.from_numpy(_renumbered(found, present)).to(device)
    query = Support((torch.from_numpy(image).to(device),), (shown,), some)
    back = Bound(bound.predictor, query).eval()
    counts = np.zeros((some.n, 2))
    for x, truth in zip(support.images, support.labels, strict=True):
        seen, again = truth != IGNORE, _argmax(back, x)
        for i, k in enumerate(present, start=1):
            a, b = (again == i) & seen, truth == k
            counts[i] += (2 * int((a & b).sum()), int(a.sum()) + int(b.sum()))
    for i, name in enumerate(some.names):
        if i and counts[i, 1]:
            out[name] = float(counts[i, 0] / counts[i, 1])
    return out


def quality_flags(cycle: Mapping[str, float | None]) -> list[str]:
    """Return a sentence for each class whose result is not to be trusted without a look."""
    out = []
    for name, dice in cycle.items():
        if dice is None:
            out.append(f"{name}: nothing found; the scan may not show it, or the support is unlike it")
        elif dice < LOW:
            out.append(f"{name}: low quality, it leads back to the support with Dice {dice:.2f}, below {LOW}")
    return out


def corrected_slices(
    correction: Volume, query: Volume, before: NDArray[np.integer], axis: int, chosen: Sequence[int] | None
) -> tuple[NDArray[np.integer], list[int]]:
    """Return a correction on the query's grid (Z, Y, X) and which of its slices, canonical, were corrected.

    Args:
        correction: a label on the query's grid, or of one of its slices alone.
        query: the image.
        before: (Z, Y, X) the prediction that was corrected, in file values.
        axis: slice axis.
        chosen: canonical slices that were corrected; None: those that differ from `before`.

    Raises:
        GeometryError: the correction lies on another grid.
        ConfigError: no slice was corrected.
    """
    label = correction.array
    if label.shape == query.grid.shape:
        apart = same_grid(correction.grid, query.grid)
        if apart >= 0.5 * min(query.grid.spacing):
            raise GeometryError(
                f"the correction lies {apart:.2f} {query.grid.unit} from the query, though of the same "
                "shape: save it on the query's own grid"
            )
        plane = tuple(a for a in range(3) if a != axis)
        slices = (
            list(chosen) if chosen is not None else np.flatnonzero((label != before).any(axis=plane)).tolist()
        )
        if not slices:
            raise ConfigError(
                "the correction is the same as the prediction on every slice; if a slice is right as it is, "
                "say which with --slices"
            )
        return label, slices
    at = _slice_of(correction, query, axis)
    whole = np.zeros(query.grid.shape, label.dtype)
    where = [slice(None)] * 3
    where[axis] = slice(at, at + 1)
    whole[tuple(where)] = label
    return whole, [at]


def _slice_of(correction: Volume, query: Volume, axis: int) -> int:
    """Return which slice of the query a correction of one slice is, by its affine."""
    expected = [n if a != axis else 1 for a, n in enumerate(query.grid.shape)]
    if list(correction.array.shape) != expected:
        raise GeometryError(
            f"the correction has shape {correction.array.shape}, (z, y, x); expected {query.grid.shape} as "
            f"the query, or {tuple(expected)} for one slice of it"
        )
    at = (np.linalg.inv(query.grid.affine) @ correction.grid.affine[:, 3])[:3][::-1]  # voxel (z, y, x)
    index = round(float(at[axis]))
    off = np.abs(np.delete(at, axis)).max()
    if not 0 <= index < query.grid.shape[axis] or abs(at[axis] - index) > 0.5 or off > 0.5:
        raise GeometryError(
            f"the corrected slice lies at voxel ({', '.join(f'{v:.2f}' for v in at)}) (z, y, x) of the "
            "query, which is no slice of it; save it with the query's affine"
        )
    return index


def shot_of(
    volume: Volume, label: NDArray[np.integer], slices: Sequence[int], classes: Classes, axis: int
) -> Shot:
    """Return an example of some annotated slices of an image.

    Args:
        volume: the image.
        label: (Z, Y, X) file values; what is no class is background.
        slices: annotated ones, canonical.
        classes: of the bank.
        axis: slice axis.
    """
    stored = np.full(label.shape, IGNORE, np.uint8)
    where: list[slice | list[int]] = [slice(None)] * 3
    where[axis] = [int(s) for s in slices]
    stored[tuple(where)] = _indices(label, classes)[tuple(where)]
    return Shot(volume.array, stored, volume.grid, volume.sha256)


def _indices(label: NDArray[np.integer], classes: Classes) -> NDArray[np.uint8]:
    """Return class indices of file values."""
    out = np.zeros(label.shape, np.uint8)
    for index, (value,) in enumerate(classes.values):
        out[label == value] = index
    return out


def _subset(classes: Classes, kept: Sequence[int]) -> Classes:
    """Return the background and the classes of the indices `kept`."""
    names = tuple(classes.names[k] for k in (0, *kept))
    return Classes(names=names, values=tuple(classes.values[k] for k in (0, *kept)))


def _renumbered(label: NDArray[np.uint8], kept: Sequence[int]) -> NDArray[np.int64]:
    """Return a label whose class kept[i - 1] is now i; others are background."""
    out = np.zeros(label.shape, np.int64)
    for i, k in enumerate(kept, start=1):
        out[label == k] = i
    return out


def _argmax(predictor: Predictor, x: Tensor) -> Tensor:
    """Return the likeliest class (Z, Y, X) of an image (C, Z, Y, X)."""
    axis = getattr(predictor.tiling, "axis", 0)
    parts = [part.max(0).indices for _, _, part in planned_slabs(predictor, x, axis=axis, device=x.device)]
    return torch.cat(parts, dim=axis)


def _volume(shot: Shot) -> Volume:
    return Volume(shot.image, shot.grid, Source("nifti", ".nii.gz", shot.grid.shape[::-1]))
