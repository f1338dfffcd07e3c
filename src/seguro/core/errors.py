"""The error tree. Every message says what, which file or case, what was expected, and what to do."""

from __future__ import annotations


class SeguroError(Exception):
    """Base of all errors that seguro raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 3


class ConfigError(SeguroError):
    """An option, config file or combination of options that cannot work (exit 1)."""

    exit_code = 1


class DataError(SeguroError):
    """A file or case that cannot be used as it is (exit 2)."""

    exit_code = 2


class GeometryError(DataError):
    """Grids that do not fit together, or an affine that is no rotation with spacing (exit 2)."""


class RunError(SeguroError):
    """A run that cannot go on: lock held, checkpoints corrupt, loss not finite (exit 3)."""


class ExtraMissing(ConfigError):
    """An optional dependency is needed; the message names the extra that brings it (exit 1)."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'seguro[{extra}]'")
