"""Scores of a few-shot model under the published protocol, and of its baselines; used by alpnet_folds.py."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.core.seeds import derive
from seguro.core.types import IGNORE, Case, Classes
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.engine.model import Model
from seguro.evaluation import protocol
from seguro.evaluation.overlap import Overlap
from seguro.inference.components import largest_components
from seguro.inference.fewshot import segment_of, variant
from seguro.inference.snap import Snapped
from seguro.methods import get
from seguro.methods.contract import Bound, Predictor, Support
from seguro.networks import build

GLOBAL = {"foreground": "global", "background": "global"}
PUBLISHED = {"prior": "none", "nearest": 0}
SNAP = 0.5
BEFORE, AFTER = "other slices before correction", "other slices after correction"
FEWEST = 5
"""Slices without the organ that a query must have for the test of its absence."""


@dataclass(frozen=True)
class Scan:
    """One scan on the planned grid, slices first."""

    id: str
    image: Tensor
    label: NDArray[np.uint8]

    @cached_property
    def classes(self) -> set[int]:
        """Class indices it shows."""
        return set(np.unique(self.label).tolist()) - {0, IGNORE}


@dataclass(frozen=True)
class Arm:
    """One training: a fold, a setting with its group of organs, a seed."""

    split: protocol.Split
    setting: str
    group: str
    organs: tuple[int, ...]
    """Class indices to find."""
    seed: int
    training: str = ""
    """Name of how it is trained; empty where the experiment knows one way."""

    @property
    def name(self) -> str:
        """Of the run and of its scores."""
        end = f"-{self.training.replace(' ', '-')}" if self.training else ""
        return f"fold{self.split.name}-set{self.setting}-{self.group}-seed{self.seed}{end}"


def scans(workspace: Path, plan: Plan, cases: Sequence[Case]) -> dict[str, Scan]:
    """Return labelled cases of the store, slices along the first axis."""
    if plan.slice_axis != 0:
        sys.exit("the published protocol slices along z; write the data with slices along z")
    stored = Cases(workspace / "store" / plan.preprocessing_hash, cases, plan.classes)
    whole = (slice(None),) * 3
    return {s.id: Scan(s.id, torch.from_numpy(s.patch(whole)), np.array(s.label)) for s in stored}


def untrained(model: Model, seed: int) -> Predictor:
    """Return the same encoder as training began with."""
    kind = get(model.method)
    torch.manual_seed(derive(seed, "init"))
    method = kind(kind.Config.model_validate({**model.config, **PUBLISHED}), model.plan, build)
    return method.predictor(method.modules).eval().requires_grad_(False)


def support_of(scan: Scan, organs: Sequence[int], classes: Classes) -> Support:
    """Return the whole annotated scan, its organs numbered in order."""
    names = ("background", *(classes.names[k] for k in organs))
    label = np.zeros(scan.label.shape, np.int64)
    for index, k in enumerate(organs, start=1):
        label[scan.label == k] = index
    mine = Classes(names=names, values=tuple((i,) for i in range(len(names))))
    return Support((scan.image,), (torch.from_numpy(label),), mine)


@torch.inference_mode()
def decided(predictor: Predictor, image: Tensor) -> NDArray[np.uint8]:
    """Return the class (Z, Y, X) of an image (C, Z, Y, X)."""
    return np.asarray(predictor(image[None])[0].argmax(0).numpy().astype(np.uint8))


def row(arm: Arm, case: str, organ: str, what: str, found: Overlap) -> dict[str, Any]:
    """Return one score as JSON values."""
    return {"case": case, "class": organ, "setting": arm.setting, "what": what, "dice": found.dice}


class Remembered(nn.Module):
    """An encoder that encodes a slice once, however many ways of using its features are compared."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._known: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, D, h, w) of slices (N, C, H, W)."""
        keys = [hashlib.sha256(one.numpy().tobytes()).digest() for one in x.contiguous()]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            found = self.encoder(x[list(new.values())])
            self._known.update(zip(new, found, strict=True))
        return torch.stack([self._known[key] for key in keys])


class Ways:
    """Predictors with the same weights, and so the same features, that use a support differently."""

    def __init__(self, model: Model, seed: int) -> None:
        self.model = model
        self._encoders = [Remembered(made.encoder) for made in (model.predictor, untrained(model, seed))]

    def __call__(self, *, trained: bool = True, **changes: Any) -> Predictor:
        """Return the predictor of a model with other options of how a support is used."""
        made = variant(self.model, **changes).predictor
        made.encoder = self._encoders[0 if trained else 1]
        return made.eval().requires_grad_(False)


def by_slices(arm: Arm, ways: Ways, support: Scan, query: Scan) -> Iterator[dict[str, Any]]:
    """Yield scores of the published rule and its baselines: one organ at a time, three references."""
    alp, names = ways(**PUBLISHED), ways.model.plan.classes.names
    arms = {
        "alp": alp,
        "global prototype": ways(**PUBLISHED, **GLOBAL),
        "global foreground": ways(**PUBLISHED, foreground="global"),
        "untrained": ways(**PUBLISHED, trained=False),
    }
    for k in arm.organs:
        given, truth, organ = support.label == k, query.label == k, names[k]
        if not (given.any() and truth.any()):
            continue
        mask = torch.from_numpy(given)
        for name, predictor in arms.items():
            segment = segment_of(predictor, query.image, support.image, mask)
            yield row(arm, query.id, organ, f"ep1 {name}", protocol.ep1(segment, given, truth))
        for name, predictor in {"nearest 3": alp, "nearest 3, snap": Snapped(alp, SNAP)}.items():
            segment = segment_of(predictor, query.image, support.image, mask)
            yield row(arm, query.id, organ, f"ep1 {name}", protocol.ep1(segment, given, truth, nearest=3))
        copied = protocol.copied(given)
        yield row(arm, query.id, organ, "ep1 copied mask", protocol.ep1(copied, given, truth))
        segment = segment_of(alp, query.image, support.image, mask)
        all_of_it = protocol.everywhere(segment, given, len(truth))
        yield row(arm, query.id, organ, "ep2 everywhere", protocol.ep2(all_of_it, truth))
        volume = protocol.copied_volume(given, len(truth))
        yield row(arm, query.id, organ, "ep2 copied mask", protocol.ep2(volume, truth))


def by_volume(arm: Arm, ways: Ways, support: Scan, query: Scan) -> Iterator[dict[str, Any]]:
    """Yield scores of whole-volume prediction: all organs at once, every slice of the support."""
    model = ways.model
    shown = support_of(support, arm.organs, model.plan.classes)
    bound = Bound(model.predictor, shown).eval()
    start = time.monotonic()
    found = decided(bound, query.image)
    seconds = time.monotonic() - start
    default = ways()
    sharp = decided(Snapped(Bound(default, shown), SNAP), query.image)
    answers = {
        "default": found,
        "fraction": decided(Bound(ways(prior="fraction"), shown), query.image),
        "no prior": decided(Bound(ways(prior="none"), shown), query.image),
        "all slices": decided(Bound(ways(nearest=0), shown), query.image),
        "snap": sharp,
        "largest": largest_components(found)[0],
        "snap, largest": largest_components(sharp)[0],
        "untrained": decided(Bound(ways(trained=False), shown), query.image),
    }
    cycle = back(default, found, query, shown)
    for index, k in enumerate(arm.organs, start=1):
        truth, organ = query.label == k, model.plan.classes.names[k]
        if not truth.any():
            continue
        for name, answer in answers.items():
            yield row(arm, query.id, organ, f"ep2 {name}", protocol.ep2(answer == index, truth))
        yield row(arm, query.id, organ, "ep1 volume", protocol.within(found == index, truth))
        absent = [z for z in range(len(truth)) if not truth[z].any()]
        without = None
        if len(absent) >= FEWEST:
            part = Scan(query.id, query.image[:, absent], query.label[absent])
            without = back(default, decided(Bound(default, shown), part.image), part, shown)[index]
        yield {
            "case": query.id, "class": organ, "setting": arm.setting, "what": "quality",
            "dice": protocol.ep2(found == index, truth).dice, "cycle": cycle[index],
            "cycle_absent": without, "seconds": seconds,
        }  # fmt: skip
    yield from corrected(arm, model, shown, query, found)


def back(predictor: Predictor, found: NDArray[np.uint8], query: Scan, shown: Support) -> dict[int, float]:
    """Return the cycle Dice of each class of `shown`, 0 where nothing was found."""
    out = dict.fromkeys(range(1, shown.classes.n), 0.0)
    present = [k for k in out if (found == k).any()]
    if not present:
        return out
    names = tuple(shown.classes.names[k] for k in (0, *present))
    label = np.zeros(found.shape, np.int64)
    for index, k in enumerate(present, start=1):
        label[found == k] = index
    classes = Classes(names=names, values=tuple((i,) for i in range(len(names))))
    again = decided(
        Bound(predictor, Support((query.image,), (torch.from_numpy(label),), classes)), shown.images[0]
    )
    truth = shown.labels[0].numpy()
    for index, k in enumerate(present, start=1):
        out[k] = protocol.ep2(again == index, truth == k).dice or 0.0
    return out


def corrected(
    arm: Arm, model: Model, shown: Support, query: Scan, found: NDArray[np.uint8]
) -> Iterator[dict[str, Any]]:
    """Yield the Dice of the other slices before and after the worst slice was corrected."""
    truth = np.zeros(query.label.shape, np.uint8)
    for index, k in enumerate(arm.organs, start=1):
        truth[query.label == k] = index
    wrong = (truth != found).sum((1, 2))
    worst = int(wrong.argmax())
    label = np.full(truth.shape, IGNORE, np.int64)
    label[worst] = truth[worst]
    better = Support((*shown.images, query.image), (*shown.labels, torch.from_numpy(label)), shown.classes)
    start = time.monotonic()
    after = decided(Bound(model.predictor, better), query.image)
    seconds = time.monotonic() - start
    others = [z for z in range(len(truth)) if z != worst]
    for index, k in enumerate(arm.organs, start=1):
        if (truth[others] == index).any():
            for what, answer in ((BEFORE, found), (AFTER, after)):
                result = protocol.ep2(answer[others] == index, truth[others] == index)
                made = row(arm, query.id, model.plan.classes.names[k], what, result)
                yield {**made, "seconds": seconds}
