"""Run under torchrun by test_training: trains METHOD on WORKSPACE in OUT, on to UPDATES of four."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

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
from seguro.inference.validate import dice_validation
from seguro.methods import get
from seguro.networks import build


def main(name: str, workspace: Path, out: Path, until: int) -> None:
    torch.set_num_threads(1)
    with Runtime("cpu") as runtime:
        manifest = manifests.load(workspace / "check" / "manifest.json")
        plan = planner.load(workspace / "plan" / "plan.json")
        store = workspace / "store" / plan.preprocessing_hash
        kind = get(name)
        torch.manual_seed(derive(0, "init"))
        method = kind(kind.Config.model_validate(kind.presets["tiny"]), plan, build)
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
        validate = dice_validation(Cases(store, validation, plan.classes), runtime) if watched else None
        limits = Limits(updates=4, validations=2)
        loop = Loop(method, cases, out, runtime, limits, batch=4, seed=0, validate=validate)
        if until < 4:
            loop.progress = lambda p: loop._stop.set() if p.update == until else None
        with suppress(Stopped):
            loop.fit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
