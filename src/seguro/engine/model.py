"""The deployed model: a folder with `weights.safetensors` and `model.json`, loadable with nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as parse

from seguro import __version__
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_checked, read_json, sha256_file, sha256_json, write_bytes, write_json
from seguro.data.plan import Plan
from seguro.engine.checkpoint import packed
from seguro.methods import get
from seguro.methods.contract import Predictor
from seguro.networks import build

FORMAT = 1
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True)
class Model:
    """A loaded model, in evaluation mode on its device."""

    predictor: Predictor
    plan: Plan
    """Without the training cases' names."""
    method: str
    config: Mapping[str, Any]
    sha256: str
    """Over weights and description; names the model in predictions."""
    folder: Path


def save_model(
    folder: Path, *, method: str, config: Mapping[str, Any], plan: Plan, predictor: torch.nn.Module
) -> list[Path]:
    """Write the model folder in one rename and return its files. No case name of the plan goes along.

    For a method that does not segment, `predictor` is its modules: weights for other runs to start from.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    write_bytes(temporary / "weights.safetensors", packed(predictor.state_dict()))
    write_json(
        temporary / "model.json",
        {
            "format": FORMAT,
            "method": method,
            "config": dict(config),
            "plan": plan.model_copy(update={"folds": ()}).model_dump(mode="json"),
            "weights_sha256": sha256_file(temporary / "weights.safetensors"),
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return [folder / "model.json", folder / "weights.safetensors"]


def model_folder(path: Path) -> Path:
    """Return the model folder at `path`, which may be the folder itself or a run.

    Raises:
        DataError: neither; a pickled checkpoint is named as such.
    """
    for candidate in (path / "model", path):
        if (candidate / "model.json").exists():
            return candidate
    if path.suffix in PICKLES:
        raise DataError(
            f"{path}: a pickled checkpoint can run code when opened and is never loaded; convert its "
            "state_dict to safetensors where you trust it, then use a model folder "
            "(model.json + weights.safetensors)"
        )
    unfinished = (
        " (the run has not finished: run its train command again)" if (path / "config.yaml").exists() else ""
    )
    raise DataError(f"{path}: no model here, expected model/model.json or model.json{unfinished}")


def load_model(path: Path, device: str | torch.device = "cpu") -> Model:
    """Return the model at `path` (a run or a model folder), ready to predict on `device`.

    Raises:
        DataError: missing or corrupt files, weights whose hash does not match, a newer format.
    """
    folder = model_folder(path)
    facts = read_json(folder / "model.json")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise DataError(
            f"{folder / 'model.json'}: format {found!r}, seguro {__version__} reads {FORMAT}; update seguro"
        )
    file = read_checked(folder / "weights.safetensors")
    if file.sha256 != facts["weights_sha256"]:
        raise DataError(
            f"{folder / 'weights.safetensors'}: SHA-256 {file.sha256[:12]} but model.json says "
            f"{facts['weights_sha256'][:12]}; the weights were changed or damaged: copy the model again"
        )
    kind = get(facts["method"])
    if not kind.needs.segments:
        raise DataError(
            f"{folder}: made by method {facts['method']}, which does not segment; "
            "it can only start another run"
        )
    try:
        plan = Plan.model_validate(facts["plan"])
        config = kind.Config.model_validate(facts["config"])
    except ValidationError as error:
        raise DataError(
            f"{folder / 'model.json'}: not understood by seguro {__version__} ({error})"
        ) from error
    method = kind(config, plan, build)
    predictor = method.predictor(method.modules)
    try:
        predictor.load_state_dict(parse(file.data))
    except RuntimeError as error:
        raise DataError(f"{folder}: weights do not fit the described network ({error})") from error
    predictor.to(device).eval().requires_grad_(False)
    sha = sha256_json([file.sha256, facts])
    return Model(predictor, plan, facts["method"], facts["config"], sha, folder)


def load_weights(modules: torch.nn.Module, path: Path) -> tuple[list[str], list[str]]:
    """Start `modules` from another run or model; return (loaded, not loaded) names of `modules`.

    A weight is taken where name and shape agree; everything else keeps its initialization and is reported.

    Raises:
        ConfigError: nothing agrees.
    """
    folder = model_folder(path)
    source = parse(read_checked(folder / "weights.safetensors").data)
    own = modules.state_dict()
    loaded = [k for k, v in own.items() if k in source and source[k].shape == v.shape]
    missing = [k for k in own if k not in set(loaded)]
    if not loaded:
        raise ConfigError(
            f"--init {path}: none of its {len(source)} weights fits this network in name and shape"
        )
    modules.load_state_dict({k: source[k] if k in set(loaded) else own[k] for k in own})
    return loaded, missing


def take(model: Model, way: str) -> None:
    """Let a model predict in one of its ways.

    Raises:
        ConfigError: it has no such way.
    """
    ways = model.predictor.ways
    if way not in ways:
        known = f"it knows {', '.join(ways)}" if ways else f"method {model.method} has one way only"
        raise ConfigError(f"--way {way}: {model.folder}: {known}")
    model.predictor.way = way
