"""Tensors of networks that were trained elsewhere, from local files that cannot run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_checked


def tensors_from(path: Path, option: str, *, also: str = "") -> Mapping[str, Tensor]:
    """Return the tensors of a .safetensors file by name.

    Args:
        path: of the file.
        option: that it was given by, for the message.
        also: what else the option takes, for the message.

    Raises:
        ConfigError: another kind of file.
        DataError: no such file, or a damaged one.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{option}={path}: expected a .safetensors file{also}; a pickled checkpoint can run code when "
            "opened and is never loaded: convert its state_dict with safetensors where you trust it"
        )
    try:
        found: Mapping[str, Tensor] = parse(read_checked(path).data)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); copy it again") from error
    return found
