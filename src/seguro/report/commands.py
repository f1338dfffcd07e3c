"""The commands that make a run again, as a user would type them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from seguro.report.stages import read_object

Defaults = Callable[[str, str, str | None], Mapping[str, Any]]
"""The resolved fields of (method, preset, network) with nothing set by hand."""
OPTIONS = {"seed": 0, "precision": "auto", "validations": 20, "patience": 0}
"""Options of `seguro train` by the name they have in config.yaml; the default is not written out."""
PLAN_OPTIONS = {"memory": "memory_gib", "dims": "dims", "seed": "seed"}
"""Options of `seguro plan`, by the names that its stage records."""
CASES = ("test", "validation")
"""Names of predicted sets that `seguro predict --cases` knows."""


def commands(
    workspace: Path, run: Path, scored: str, config: Mapping[str, Any], defaults: Defaults
) -> tuple[str, ...]:
    """Return the commands from the data folder (written DATA) to this report.

    Args:
        workspace: the run's workspace; only its name is shown.
        run: the run's folder.
        scored: name of the set on the page, "" for none.
        config: content of config.yaml; {} when it cannot be read.
        defaults: tells which fields were set by hand.
    """
    place = ["DATA", "--out", workspace.name]
    where = f"{workspace.name}/runs/{run.name}"
    known = scored in CASES
    lines = (
        ["check", *place],
        ["plan", *place, *_plan(workspace)],
        ["train", *place, "--name", run.name, *_train(run, config, defaults)],
        ["predict", where, *(["--cases", scored] if known else ["IMAGES"])],
        ["evaluate", f"{where}/predictions/{scored}" if known else where],
        ["report", where],
    )
    return tuple(shlex.join(["seguro", *line]) for line in lines)


def _plan(workspace: Path) -> Iterator[str]:
    """Yield the options that the plan was made with."""
    made = read_object(workspace / "plan" / "stage.json").get("config", {})
    for option, key in PLAN_OPTIONS.items():
        if made.get(key) is not None:
            yield from (f"--{option}", str(made[key]))


def _train(run: Path, config: Mapping[str, Any], defaults: Defaults) -> Iterator[str]:
    """Yield the options of `seguro train` after the name."""
    if not isinstance(config.get("config"), Mapping):
        return
    method, preset = str(config.get("method")), str(config.get("preset"))
    fields = config["config"]
    network = fields.get("network")
    fold = str(config.get("fold"))
    yield from ("--method", method, "--preset", preset, "--folds", "none" if fold == "all" else fold)
    usual = defaults(method, preset, None)
    if network and network != usual.get("network"):
        yield from ("--network", str(network))
        usual = defaults(method, preset, str(network))
    for key, value in _changed(fields, usual):
        yield from ("--set", f"{key}={_scalar(value)}")
    if config.get("updates"):
        yield from ("--updates", str(config["updates"]))
    elif config.get("budget_s"):
        yield from ("--budget", f"{config['budget_s']:.6f}".rstrip("0").rstrip(".") + "s")
    if config.get("batch"):
        yield from ("--batch", str(config["batch"]))
    for key, default in OPTIONS.items():
        value = config.get(key, default)
        if key == "seed" or value != default:
            yield from (f"--{key}", str(value))
    if "init" in read_object(run / "stage.json").get("reads", {}):
        yield from ("--init", "MODEL")


def _changed(
    fields: Mapping[str, Any], usual: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of each field that differs."""
    for key, value in fields.items():
        before = usual.get(key)
        if isinstance(value, Mapping) and value:
            yield from _changed(value, before if isinstance(before, Mapping) else {}, f"{path}{key}.")
        elif key not in usual or value != before:
            yield f"{path}{key}", value


def _scalar(value: Any) -> str:
    """Return a value as `--set` reads it: YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()
