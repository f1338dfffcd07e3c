"""The stages before training: check and plan, and the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seguro.api.workspace import Count, Say, manifest_of, quiet, workspace_of
from seguro.core.stage import locked
from seguro.core.types import Manifest

if TYPE_CHECKING:
    from seguro.data.plan import Plan
    from seguro.data.planner import PlanOptions

WAIT_S = 600.0
"""How long a second run waits while another one checks, plans or prepares in the same workspace."""


def plan(
    data: Path,
    *,
    out: Path | None = None,
    options: PlanOptions | None = None,
    width: int = 32,
    jobs: int = 2,
    progress: Count | None = None,
    say: Say = quiet,
) -> tuple[Path, Manifest, Plan]:
    """Check and plan; returns the workspace, the manifest and the plan.

    Args:
        data: a data folder or a workspace.
        out: the workspace; `./<name>.seguro` when not given.
        options: what to decide instead of the data; fields not set are those of the last plan.
        width: of the U-Net whose memory the patch is fitted to.
        jobs: cases read at a time.
        progress: called with (done, total) while cases are read.
        say: takes lines for people.
    """
    from functools import partial

    from seguro.data import planner
    from seguro.networks.unet import training_bytes

    workspace = workspace_of(data, out)
    manifest = manifest_of(data, workspace, progress=progress, say=say)
    made = planner.ensure(
        workspace,
        manifest,
        options,
        step_bytes=partial(training_bytes, width=width),
        jobs=jobs,
        progress=progress,
        say=say,
    )
    return workspace, manifest, made


def prepare(
    data: Path,
    *,
    out: Path | None = None,
    options: PlanOptions | None = None,
    jobs: int = 2,
    progress: Count | None = None,
    say: Say = quiet,
) -> Path:
    """Check, plan and write the store; returns its folder. Arguments as in `plan`.

    Raises:
        DataError: a case cannot be prepared.
        RunError: the disk has too little room, or another process works in the workspace.
    """
    import shutil

    from seguro.core.errors import RunError
    from seguro.data import store

    with locked(workspace_of(data, out), wait_s=WAIT_S):
        workspace, manifest, made = plan(
            data, out=out, options=options, jobs=jobs, progress=progress, say=say
        )
        cases = (*manifest.of("train"), *manifest.of("unlabelled"))
        size, free = store.predicted_bytes(cases, made), shutil.disk_usage(workspace).free
        say(f"store {size / 2**20:.0f} MiB for {len(cases)} cases")
        if size > free:
            raise RunError(f"{workspace}: the store needs {size} bytes, {free} are free; use another --out")
        return store.prepare(workspace, manifest, made, jobs=jobs, progress=progress)
