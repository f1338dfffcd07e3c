"""What a training run is made of: its options and the method's resolved config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from seguro.api.labelled import Labelled
from seguro.core.errors import ConfigError
from seguro.core.settings import merge

if TYPE_CHECKING:
    from seguro.data.planner import PlanOptions


@dataclass(frozen=True)
class TrainOptions:
    """What a training run is made of, besides the data.

    Exactly one of `updates` and `budget` bounds it; with neither, `budget` is one hour.
    """

    method: str = "supervised"
    preset: str = "auto"
    """A preset of the method; "auto" is "small" without a GPU and "default" with one."""
    network: str | None = None
    settings: Mapping[str, Any] | None = None
    """Config fields over the preset, nested as in the config."""
    fold: str = "0"
    updates: int | None = None
    budget: str | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"] = "auto"
    """"auto" is what the run began with, or what the machine does well: bf16-mixed on a GPU, else 32."""
    validations: int = 20
    patience: int = 0
    init: Path | None = None
    labelled: Labelled | None = None
    """Which patients keep their labels (api/labelled.py); None: all."""
    name: str | None = None
    workers: int = 1
    threads: int | None = None


def default_network(method: str) -> str:
    """Return the name of a method's default network, "" where it has its own or its presets differ in it."""
    from seguro.methods import get

    field = get(method).Config.model_fields.get("network")
    if field is None:
        return ""
    known = {str(field.default), *(str(p["network"]) for p in get(method).presets.values() if "network" in p)}
    return known.pop() if len(known) == 1 else ""


def needs_support(method: str) -> bool:
    """Return whether a run of the method predicts from annotated examples."""
    from seguro.methods import get

    return get(method).needs.support


def segments(method: str) -> bool:
    """Return whether a run of the method predicts at all."""
    from seguro.methods import get

    return get(method).needs.segments


def plan_fields(method: str) -> dict[str, Any]:
    """Return the plan's options in which a method leaves no choice."""
    from seguro.methods import get

    needs = get(method).needs
    fields: dict[str, Any] = {"dims": needs.dims[0]} if len(needs.dims) == 1 else {}
    return {**fields, "full_resolution": True} if needs.whole else fields


def planned_for(method: str, workspace: Path, given: PlanOptions | None) -> PlanOptions | None:
    """Return the plan's options: where there is no plan yet, what was not given is as the method needs it."""
    from seguro.data.planner import PlanOptions

    if (workspace / "plan" / "plan.json").exists():
        return given
    chosen = {} if given is None else given.model_dump(exclude_unset=True)
    return PlanOptions.model_validate({**plan_fields(method), **chosen})


def configure(options: TrainOptions, *, gpu: bool, sites: Sequence[str] = ()) -> tuple[str, Any]:
    """Return the preset used and the method's resolved config: defaults < preset < network < settings.

    What a method `inherits` from the run it starts from (`init`) lies between preset and settings.

    Args:
        options: as given.
        gpu: whether a preset is chosen for a GPU.
        sites: what the cases name; the `domains` of a method that tells sites apart, unless it was told them.

    Raises:
        ConfigError: unknown preset or fields, or values out of range; the message lists each.
    """
    from seguro.methods import get

    kind = get(options.method)
    preset = options.preset
    if preset == "auto":
        preset = "small" if not gpu and "small" in kind.presets else "default"
    if preset != "default" and preset not in kind.presets:
        raise ConfigError(
            f"method {options.method} has no preset {preset!r}; it has default, {', '.join(kind.presets)}"
        )
    fields: dict[str, Any] = merge({}, {} if preset == "default" else kind.presets[preset])
    if options.network and "network" not in kind.Config.model_fields:
        raise ConfigError(f"method {options.method} has networks of its own and takes no --network")
    network = (options.settings or {}).get("network", options.network)
    if network and "network" in kind.Config.model_fields:
        if fields.get("network", kind.Config.model_fields["network"].default) != network:
            fields.pop("network_options", None)  # the preset's are of another network
        fields = merge(fields, {"network": network})
    fields = merge({**fields, **_inherited(kind.Config, options.init)}, options.settings or {})
    if "domains" in kind.Config.model_fields and not fields.get("domains"):
        fields = merge(fields, {"domains": sorted(set(sites))})
    try:
        return preset, kind.Config.model_validate(fields)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ConfigError(f"settings of method {options.method}:\n  " + "\n  ".join(lines)) from error


def _inherited(config: Any, init: Path | None) -> dict[str, Any]:
    """Return the fields of the run `init` that a method with `inherits` in its config starts from."""
    names = getattr(config, "inherits", ())
    if init is None or not names:
        return {}
    from seguro.core.files import read_json
    from seguro.engine.model import model_folder

    found = read_json(model_folder(init) / "model.json")["config"]
    return {name: found[name] for name in names if name in found}
