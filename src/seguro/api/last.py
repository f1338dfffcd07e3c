"""The model of a run's last update, beside the one that validation chose."""

from __future__ import annotations

from pathlib import Path

from seguro.core.errors import RunError
from seguro.core.files import read_json
from seguro.core.stage import STAGE_FILE

FOLDER = "last"


def last_model(run: Path) -> Path:
    """Return RUN/last, the model after a finished run's last update; written from its newest checkpoint.

    Validation had no part in its choice, so it may be scored on the cases that the run validated on.

    Raises:
        RunError: the run is not finished, or the checkpoint of its last update is gone.
        DataError: that checkpoint is corrupt.
    """
    from seguro.engine import checkpoint as checkpoints
    from seguro.engine.loop import load_modules
    from seguro.engine.model import load_model, save_model
    from seguro.engine.run import LoopRun
    from seguro.engine.runtime import Runtime
    from seguro.methods import get
    from seguro.networks import build

    if not (run / STAGE_FILE).exists():
        raise RunError(f"{run}: no finished run (no {STAGE_FILE}), and only that has a last update; train it")
    update = read_json(run / STAGE_FILE)["recorded"]["updates"]
    if update not in checkpoints.updates(run / "checkpoints"):
        raise RunError(f"{run}/checkpoints: the one of update {update}, the last, is gone; train again")
    found = checkpoints.load(run / "checkpoints", update)
    chosen = load_model(run)
    kind = get(chosen.method)
    method = kind(kind.Config.model_validate(chosen.config), chosen.plan, build)
    held = LoopRun(method, Runtime("cpu"), seed=0, batch=method.needs.group, updates=1)
    load_modules(method.modules, found, "modules.", run / "checkpoints")
    load_modules(held.averaged, found, "averaged.", run / "checkpoints")
    save_model(
        run / FOLDER,
        method=chosen.method,
        config=chosen.config,
        plan=chosen.plan,
        predictor=method.predictor(held.deployable()),
    )
    return run / FOLDER
