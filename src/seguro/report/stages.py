"""What the finished stages of a workspace say of themselves, in their `stage.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seguro.core.files import read_object, sha256_file, sha256_json
from seguro.core.stage import STAGE_FILE
from seguro.core.types import Manifest
from seguro.report.headline import plural
from seguro.report.page import StageFact
from seguro.report.privacy import scrub


def finished(workspace: Path, run: Path, scores: Path | None, predictions: Path) -> tuple[StageFact, ...]:
    """Return what each finished stage recorded, in the order of the arrow."""
    folders = [
        workspace / "check",
        workspace / "plan",
        *sorted(p.parent for p in workspace.glob(f"store/*/{STAGE_FILE}")),
    ]
    folders += [run, predictions, *([scores] if scores else [])]
    folders += sorted(p.parent for p in run.glob(f"attacks/*/{STAGE_FILE}"))
    out = []
    for folder in folders:
        raw = read_object(folder / STAGE_FILE)
        if not raw:
            continue
        recorded = raw.get("recorded", {})
        seed = recorded.get("seed", raw.get("config", {}).get("seed"))
        out.append(
            StageFact(
                name=str(raw.get("stage", "")),
                key=str(raw.get("key", "")),
                outputs=sha256_json(raw.get("outputs", {})),
                seconds=recorded.get("seconds"),
                version=str(recorded.get("seguro", "")),
                machine=_machine(recorded.get("machine", {})),
                seed="" if seed is None else str(seed),
            )
        )
    return tuple(out)


def plan_edited(folder: Path) -> bool:
    """Return whether the plan in `folder` differs from what its stage wrote."""
    recorded = read_object(folder / STAGE_FILE).get("outputs", {}).get("plan.json")
    plan = folder / "plan.json"
    return bool(recorded) and plan.is_file() and sha256_file(plan) != recorded


def _machine(facts: Mapping[str, Any]) -> str:
    parts = [str(facts.get("system", "")), str(facts.get("processor", ""))]
    if "cores" in facts:
        parts.append(plural(int(facts["cores"]), "core", "cores"))
    if "python" in facts:
        parts.append(f"Python {facts['python']}")
    return ", ".join(p for p in parts if p)


def warnings(
    workspace: Path,
    run: Path,
    manifest: Manifest | None,
    scores: Path | None,
    predictions: Path,
    roots: Sequence[str],
) -> tuple[str, ...]:
    """Return the warnings of all stages, without folders and without repeats."""
    found = list(manifest.warnings) if manifest else []
    for folder in (workspace / "check", workspace / "plan", run, predictions, scores):
        raw = read_object(folder / STAGE_FILE) if folder else {}
        found += [str(w) for w in raw.get("recorded", {}).get("warnings", ())]
    return tuple(dict.fromkeys(scrub(w, roots) for w in found))
