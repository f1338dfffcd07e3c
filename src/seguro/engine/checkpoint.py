"""Checkpoints: safetensors plus a JSON file that is written last, kept in rotation, verified when read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor

from seguro.core.errors import DataError, RunError
from seguro.core.files import read_checked, read_json, write_bytes, write_json

KEEP = 2
"""Checkpoints kept besides the best."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on from `update`."""

    update: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """JSON values: spent seconds, schedule states, scaler, best score, world, batch."""


def save(folder: Path, checkpoint: Checkpoint, *, best: int | None, keep: int = KEEP) -> None:
    """Write the checkpoint and remove old ones, except the newest `keep` and the one of update `best`."""
    stem = folder / f"update-{checkpoint.update:08d}"
    data = packed(checkpoint.tensors)
    write_bytes(stem.with_suffix(".safetensors"), data)
    facts = {
        "update": checkpoint.update,
        "sha256": hashlib.sha256(data).hexdigest(),
        **checkpoint.facts,
    }
    write_json(stem.with_suffix(".json"), facts)
    for update in updates(folder)[:-keep]:
        if update != best:
            remove(folder, update)


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as safetensors bytes; ones that share memory (tied weights) are each written in full."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        cpu = tensor.detach().to("cpu").contiguous()
        out[name] = cpu.clone() if cpu.untyped_storage().data_ptr() in seen else cpu
        seen.add(cpu.untyped_storage().data_ptr())
    return pack(out)


def updates(folder: Path) -> list[int]:
    """Return the updates of which complete checkpoints lie in `folder`, ascending."""
    return sorted(int(p.stem.removeprefix("update-")) for p in folder.glob("update-*.json"))


def remove(folder: Path, update: int) -> None:
    """Remove one checkpoint, its JSON first so that a kill between the two leaves nothing that counts."""
    for suffix in (".json", ".safetensors"):
        (folder / f"update-{update:08d}{suffix}").unlink(missing_ok=True)


def load(folder: Path, update: int) -> Checkpoint:
    """Return the checkpoint of `update`.

    Raises:
        DataError: missing, or its content does not have the recorded hash.
    """
    stem = folder / f"update-{update:08d}"
    facts = dict(read_json(stem.with_suffix(".json")))
    file = read_checked(stem.with_suffix(".safetensors"))
    if file.sha256 != facts["sha256"]:
        raise DataError(
            f"{stem.with_suffix('.safetensors')}: corrupt "
            f"(SHA-256 {file.sha256[:12]}, expected {facts['sha256'][:12]})"
        )
    return Checkpoint(int(facts["update"]), parse(file.data), facts)


def latest(folder: Path, *, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is intact, None without one; says aloud which were passed over.

    Raises:
        RunError: checkpoints exist and all are corrupt.
    """
    found = updates(folder)
    for update in reversed(found):
        try:
            return load(folder, update)
        except DataError as error:
            say(f"{error}; going back to the one before")
            remove(folder, update)
    if found:
        raise RunError(f"{folder}: all {len(found)} checkpoints are corrupt; train again with another --name")
    return None


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors; numbers become float64 tensors."""
    out: dict[str, Tensor] = {}
    for index, entry in optimiser.state_dict()["state"].items():
        for key, value in entry.items():
            if value is not None:
                is_tensor = isinstance(value, Tensor)
                out[f"{prefix}.{index}.{key}"] = (
                    value if is_tensor else torch.tensor(float(value), dtype=torch.float64)
                )
    return out


def restore_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that `optimiser_tensors` returned."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, _, key = name[len(prefix) + 1 :].partition(".")
            state.setdefault(int(index), {})[key] = value.clone()
    blank = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": blank["param_groups"]})
