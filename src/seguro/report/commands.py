"""The commands that make a run again, as a user would type them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seguro.core.files import read_object, sha256_json
from seguro.core.stage import STAGE_FILE

Defaults = Callable[[str, str, str | None], Mapping[str, Any]]
"""The resolved fields of (method, preset, network) with nothing set by hand."""
OPTIONS = {"seed": 0, "precision": "auto", "validations": 20, "patience": 0}
"""Options of `seguro train` by the name they have in config.yaml; the default is not written out."""
PLAN_OPTIONS = {
    "memory": "memory_gib",
    "dims": "dims",
    "full-resolution": "full_resolution",
    "recipe": "recipe",
    "window": "window",
    "slices": "slices",
    "seed": "seed",
}
"""Options of `seguro plan`, by the names that its stage records."""
FOLDS = 5
"""Of a plan that was told nothing; not written out."""
CHECK_OPTIONS = ("spacing", "classes", "channels", "quarantine", "repair")
"""Options of `seguro check` that its stage records; the table of patients is among what it reads."""
PREDICT_OPTIONS = {
    "flips": False,
    "overlap": None,
    "probabilities": False,
    "batch": None,
    "device": None,
    "precision": "32",
    "support": None,
    "snap": 0.0,
    "largest": False,
    "doubt": False,
}
"""Options of `seguro predict` by the names that its stage records, with what is not written out."""
CASES = ("test", "validation", "train", "unlabelled")
"""Names of predicted sets that `seguro predict --cases` knows."""


def commands(
    workspace: Path,
    run: Path,
    scored: str,
    config: Mapping[str, Any],
    defaults: Defaults,
    *,
    scores: Path | None = None,
    metrics: Sequence[str] = (),
    caveats: Sequence[str] = (),
    segments: bool = True,
) -> tuple[str, ...]:
    """Return the commands from the data folder (written DATA) to this report.

    Args:
        workspace: the run's workspace; only its name is shown.
        run: the run's folder.
        scored: name of the set on the page, "" for none.
        config: content of config.yaml; {} when it cannot be read.
        defaults: tells which fields were set by hand.
        scores: folder of the scores on the page, None for none.
        metrics: those that `seguro evaluate` computes when none are named.
        caveats: sentences that the report was given.
        segments: whether the run can predict.

    Words in capitals stand for what the folders do not say: where the data, images or labels lie.
    """
    place = ["DATA", "--out", workspace.name]
    where = _place(workspace, run)
    predictions = run / "predictions" / scored
    named = f"{where}/predictions/{scored}" if scored else where
    federation = read_object(run / "federation.json")
    if federation:
        trained = [_federate(workspace, run, federation, defaults)]
    else:
        trained = [
            ["check", *place, *_check(workspace)],
            ["plan", *place, *_plan(workspace)],
            ["train", *place, "--name", run.name, *_train(run, config, defaults)],
        ]
    scoring = [
        ["predict", *_predict(workspace, run, scored, read_object(predictions / STAGE_FILE))],
        [
            "evaluate",
            named,
            *_elsewhere(workspace, predictions),
            *_evaluate(read_object(scores / STAGE_FILE) if scores else {}, metrics),
        ],
    ]
    lines = (
        *trained,
        *(scoring if segments else []),
        ["report", where, *(w for c in caveats for w in ("--caveat", c))],
    )
    return tuple(shlex.join(["seguro", *line]) for line in lines)


def _place(workspace: Path, run: Path) -> str:
    """Return where a run lies: in its workspace, or, trained over folders of several sites, in a folder."""
    return (
        f"{workspace.name}/runs/{run.name}" if run.parent.name == "runs" else f"{run.parent.name}/{run.name}"
    )


def _option(name: str, value: Any) -> Iterator[str]:
    """Yield an option as words; nothing for one that is off or not given."""
    if value is None or value is False or value == []:
        return
    yield f"--{name}"
    if isinstance(value, list):
        yield ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    elif value is not True:
        yield str(value)


def _check(workspace: Path) -> Iterator[str]:
    """Yield what the check was told about the data."""
    stage = read_object(workspace / "check" / STAGE_FILE)
    for name in CHECK_OPTIONS:
        yield from _option(name, stage.get("config", {}).get(name))
    if "--patients" in stage.get("reads", {}):
        yield from ("--patients", "PATIENTS.csv")  # its folder is nobody's business


def _plan(workspace: Path) -> Iterator[str]:
    """Yield the options that the plan was made with."""
    made = read_object(workspace / "plan" / STAGE_FILE).get("config", {})
    for option, key in PLAN_OPTIONS.items():
        yield from _option(option, made.get(key))
    if made.get("folds", FOLDS) != FOLDS:
        yield from _option("folds", made["folds"])


def _predict(workspace: Path, run: Path, scored: str, stage: Mapping[str, Any]) -> Iterator[str]:
    """Yield the models of the prediction, whose cases it is of, and its options."""
    where = _place(workspace, run)
    reads = stage.get("reads", {})
    others = [reads[f"model/{i}"] for i in range(1, sum(name.startswith("model/") for name in reads))]
    cases = scored.removesuffix(f"-ensemble{len(others) + 1}") if others else scored
    yield where
    elsewhere = _elsewhere(workspace, run / "predictions" / scored)
    which = cases.rpartition("-")[2]
    if elsewhere and which in CASES:
        cases = which
    elif cases not in CASES:
        yield "IMAGES"
    for sha in others:
        yield from ("--also", _named(workspace, sha, _model_sha256))
    if cases in CASES:
        yield from (*elsewhere, "--cases", cases)
    elif scored:
        yield from ("--out", f"{where}/predictions/{scored}")
    for name, usual in PREDICT_OPTIONS.items():
        value = stage.get("config", {}).get(name, usual)
        yield from _option(name, None if value == usual else value)
    for name in ("spacing", "repair"):
        yield from _option(name, stage.get("recorded", {}).get(name))


def _elsewhere(workspace: Path, predictions: Path) -> tuple[str, ...]:
    """Return the option for cases of another data set, whose workspace is nobody's business; else nothing."""
    own = read_object(workspace / "check" / "manifest.json").get("name")
    inputs = read_object(predictions / "predictions.json").get("inputs") or ()
    other = any(str(i).startswith("data set ") and i != f"data set {own}" for i in inputs)
    return ("--data", "OTHER_WORKSPACE") if other and own is not None else ()


def _named(workspace: Path, sha: str, of: Callable[[Mapping[str, Any]], str]) -> str:
    """Return the run of the workspace whose model has this hash, or a word for a model from elsewhere."""
    for file in sorted((workspace / "runs").glob("*/model/model.json")):
        if of(read_object(file)) == sha:
            return f"{workspace.name}/runs/{file.parent.parent.name}"
    return "MODEL"


def _model_sha256(facts: Mapping[str, Any]) -> str:
    """Return the hash that a prediction records of its model: over its weights and what describes them."""
    return sha256_json([facts.get("weights_sha256"), facts])


def _evaluate(stage: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[str]:
    """Yield the options that the scores were made with."""
    config, recorded = stage.get("config", {}), stage.get("recorded", {})
    if recorded.get("truth"):
        yield from ("--truth", "LABELS")
    if config.get("tolerance_mm", 2.0) != 2.0:
        yield from _option("tolerance", config["tolerance_mm"])
    if config.get("metrics") and config["metrics"] != list(metrics):
        yield from _option("metrics", config["metrics"])
    yield from _option("split", recorded.get("split"))
    yield from _option("resample", config.get("resample"))
    if config.get("seed"):
        yield from _option("seed", config["seed"])


def _train(run: Path, config: Mapping[str, Any], defaults: Defaults) -> Iterator[str]:
    """Yield the options of `seguro train` after the name."""
    if not isinstance(config.get("config"), Mapping):
        return
    method, preset = str(config.get("method")), str(config.get("preset"))
    fold = str(config.get("fold"))
    yield from ("--method", method, "--preset", preset, "--folds", "none" if fold == "all" else fold)
    yield from _fields(method, preset, config["config"], defaults)
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
    if labelled := config.get("labelled"):
        names = [str(p) for p in labelled]
        yield from ("--labelled", ",".join(names) + "," * (len(names) == 1))  # "3," is an id, "3" a number
    if init := read_object(run / STAGE_FILE).get("reads", {}).get("init"):
        yield from (
            "--init",
            _named(run.resolve().parent.parent, init, lambda m: str(m.get("weights_sha256"))),
        )


def _fields(method: str, preset: str, fields: Mapping[str, Any], defaults: Defaults) -> Iterator[str]:
    """Yield the network and the fields of the method that were set by hand."""
    network, usual = fields.get("network"), defaults(method, preset, None)
    if network and network != usual.get("network"):
        yield from ("--network", str(network))
        usual = defaults(method, preset, str(network))
    for key, value in _changed(fields, usual):
        yield from ("--set", f"{key}={_scalar(value)}")


def _federate(workspace: Path, run: Path, made: Mapping[str, Any], defaults: Defaults) -> list[str]:
    """Return the words that train over the sites again on one machine, with the same numbers.

    A run in a workspace had one data set, whose cases may name the sites; another one a folder for each.
    """
    names = sorted(map(str, made.get("sites", ())))
    words, cases = ["federate", "simulate"], read_object(workspace / "check" / "manifest.json").get("cases")
    if cases is None:
        words += [*(f"DATA_OF_{name}" for name in names), "--out", run.parent.name]
    else:
        words += ["DATA", "--out", workspace.name]
        if sorted({str(c.get("site")) for c in cases}) != names:
            words += ["--sites", str(len(names))]
    words += ["--name", run.name, "--method", str(made.get("method")), "--preset", str(made.get("preset"))]
    words += _fields(str(made.get("method")), str(made.get("preset")), made.get("config", {}), defaults)
    for option in ("rounds", "updates", "batch", "seed"):
        words += _option(option, made.get(option))
    words += _option("memory", made.get("plan", {}).get("memory_gib"))
    for key, value in _changed(made.get("strategy", {}), {}):
        if value is not None:
            words += ["--strategy", f"{key}={_scalar(value)}"]
    return words


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
