"""Options as people write them: YAML files, `a.b=c` texts, times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_checked

MAX_YAML_BYTES = 1 << 20
_PART = r"(?:(\d+(?:\.\d+)?){})?"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid over it, nested mappings merged."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def settings_from(pairs: Sequence[str]) -> dict[str, Any]:
    """Return nested settings from `a.b=c` texts; values are read as YAML scalars.

    Example:
        >>> settings_from(["augment.p_noise=0.2", "network=unet"])
        {'augment': {'p_noise': 0.2}, 'network': 'unet'}
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r}: expected key=value, e.g. learning_rate=0.001")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of at most 1 MiB, aliases refused.

    Raises:
        DataError: not YAML, not a mapping, or with aliases (which can expand without bound).
    """
    text = read_checked(path, limit=MAX_YAML_BYTES).data.decode("utf-8", errors="replace")
    try:
        if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise DataError(f"{path}: YAML aliases are not accepted; write the values out")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a mapping of options")
    return value


def seconds(text: str) -> float:
    """Return seconds of a time such as "90s", "45m", "2h", "1h30m"; a bare number is minutes.

    Raises:
        ConfigError: not of that form, or not positive.

    Example:
        >>> seconds("1h30m")
        5400.0
    """
    bare = re.fullmatch(r"\d+(?:\.\d+)?", text.strip())
    found = re.fullmatch(f"{_PART.format('h')}{_PART.format('m')}{_PART.format('s')}", text.strip().lower())
    if bare is not None:
        return _positive(60 * float(text), text)
    if found is None:
        raise ConfigError(f"--budget {text!r}: expected a time such as 45m, 2h or 1h30m")
    hours, minutes, rest = (float(g or 0) for g in found.groups())
    return _positive(3600 * hours + 60 * minutes + rest, text)


def _positive(total: float, text: str) -> float:
    if total <= 0:
        raise ConfigError(f"--budget {text!r}: must be more than nothing, such as 45m, 2h or 1h30m")
    return total
