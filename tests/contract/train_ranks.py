"""Run under torchrun by test_training: OUT METHOD=WORKSPACE ...: two updates of each, resumed for two.

In double precision: Adam divides small gradients by their own size, so that in single precision the rounding
of another order of sums may not be told from a fault.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seguro import api
from seguro.core.seeds import derive
from seguro.data import manifest as manifests
from seguro.data import planner
from seguro.data.store import Cases
from seguro.data.superpixels import compute
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.runtime import Runtime
from seguro.engine.signals import Stopped
from seguro.inference import validate
from seguro.methods import get
from seguro.networks import build

FLOAT, DECIDE = Tensor.float, validate.decide


def doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def precise(double: bool) -> None:
    """Make `Tensor.float`, by which losses leave mixed precision, and new tensors double, or not."""
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    Tensor.float = Tensor.double if double else FLOAT  # type: ignore[method-assign]


class Double(Loop):
    """Gives the method batches in double precision."""

    def _batch(self, update: int) -> Any:
        batch, ids = super()._batch(update)
        return replace(batch, **{f.name: doubled(getattr(batch, f.name)) for f in fields(batch)}), ids


def single(predictor: Any, image: Any, runtime: Runtime) -> Any:
    """Decide in single precision, in which inference allocates."""
    precise(False)
    try:
        return DECIDE(deepcopy(predictor).float(), image, runtime)
    finally:
        precise(True)


def main(name: str, workspace: Path, out: Path, until: int) -> None:
    torch.set_num_threads(1)
    precise(True)
    validate.decide = single
    with Runtime("cpu") as runtime:
        manifest = manifests.load(workspace / "check" / "manifest.json")
        plan = planner.load(workspace / "plan" / "plan.json")
        store = workspace / "store" / plan.preprocessing_hash
        kind = get(name)
        torch.manual_seed(derive(0, "init"))
        method = kind(kind.Config.model_validate(kind.presets["tiny"]), plan, build)
        method.modules.double()
        train, validation = api.cases_of_fold(manifest, plan, "0", kind.needs.labels)
        hide, regions = kind.needs.labels == "none", method.needs.regions
        # half are without labels where a method mixes both kinds, as in conftest
        some = kind.needs.labels == "some" and all(c.label for c in train)
        hidden = [c.id for c in train[::2]] if some else []
        cases = Cases(store, train, plan.classes, hide_labels=hide, hidden=hidden, regions=regions)
        if regions and runtime.rank == 0:
            compute(cases, regions, axis=plan.slice_axis)
        runtime.barrier()
        watched = kind.needs.segments and kind.needs.monitor
        score = validate.dice_validation(Cases(store, validation, plan.classes), runtime) if watched else None
        limits = Limits(updates=4, validations=2)
        batch = max(4, 2 * method.needs.group)
        loop = Double(method, cases, out, runtime, limits, batch=batch, seed=0, validate=score)
        if until < 4:
            loop.progress = lambda p: loop._stop.set() if p.update == until else None
        with suppress(Stopped):
            loop.fit()


if __name__ == "__main__":
    for asked in sys.argv[2:]:
        name, _, workspace = asked.partition("=")
        sys.stderr.write(f"{name}\n")  # whose error follows
        for until in (2, 4):
            main(name, Path(workspace), Path(sys.argv[1]) / name, until)
