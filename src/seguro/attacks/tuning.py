"""Fields of single attacks set by hand, over those that a suite gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from pydantic import TypeAdapter, ValidationError

from seguro.attacks.victim import Attack
from seguro.core.errors import ConfigError

SHARED = {
    "steps": "--iters",
    "restarts": "--restarts",
    "queries": "--queries",
    "bar": "--threshold",
    "name": "--suite",
    "objective": "--suite",
}
"""Fields that all attacks of a suite share, or that say which attack it is, by the option that sets them."""

Settings = Mapping[str, Mapping[str, Any]]
"""Attack -> field -> value."""


def tuned(attacks: Sequence[Attack], settings: Settings) -> tuple[Attack, ...]:
    """Return the attacks with the fields set; what `settings` says of other attacks changes nothing.

    Raises:
        ConfigError: a field that the attack has not or that a common option sets, or a value out of range.

    Example:
        >>> from seguro.attacks.pgd import PGD
        >>> tuned([PGD("dice")], {"pgd-dice": {"momentum": 1}})[0].momentum
        1.0
    """
    return tuple(_tuned(a, settings[a.name]) if a.name in settings else a for a in attacks)


def check(attacks: Sequence[Attack], settings: Any) -> None:
    """Refuse settings of attacks that are not in a suite, besides what `tuned` refuses.

    Raises:
        ConfigError: lists the attacks that are.
    """
    names = [a.name for a in attacks]
    for name, values in settings.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"--set {name}={values}: expected ATTACK.FIELD=VALUE, such as fab.trust=0.1")
        if name not in names:
            raise ConfigError(f"--set {name}: no attack of this suite; it has {', '.join(names)}")
    tuned(attacks, settings)


def told(settings: Settings) -> str:
    """Return settings as they are written, in a fixed order: "fab.trust=0.1, square.tiles=False"."""
    return ", ".join(f"{a}.{f}={v}" for a, fs in sorted(settings.items()) for f, v in sorted(fs.items()))


def _tuned(attack: Attack, values: Mapping[str, Any]) -> Attack:
    own = [f.name for f in fields(attack) if f.name not in SHARED]  # type: ignore[arg-type]
    for field, value in values.items():
        if field in SHARED:
            raise ConfigError(f"--set {attack.name}.{field}: use {SHARED[field]}")
        if field not in own:
            raise ConfigError(f"--set {attack.name}.{field}: unknown; {attack.name} has {', '.join(own)}")
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"--set {attack.name}.{field}={value}: expected a finite number")
    kind: Any = type(attack)
    try:
        made: Attack = TypeAdapter(kind).validate_python({**asdict(attack), **values})  # type: ignore[call-overload]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--set {attack.name}.{where}={first['input']}: {first['msg']}") from error
    return made
