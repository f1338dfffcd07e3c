"""Published data sets as their owners hand them out, brought into a layout that `check` reads.

Adding one is a module here with a function `bring(source, out)` and a row in TABLE.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from seguro.core.errors import ConfigError

TABLE: dict[str, tuple[str, str]] = {
    "msd": ("seguro.data.importers.msd", "Medical Segmentation Decathlon: TaskNN_NAME.tar or its folder"),
    "malc": (
        "seguro.data.importers.malc",
        "MALC brains: folder of NIfTI images and Neuromorphometrics labels",
    ),
    "covid": ("seguro.data.importers.covid", "MedSeg COVID-19 slices: folder of image and mask stacks"),
}
"""Name -> module, and what it takes."""


@dataclass(frozen=True)
class Imported:
    """A data set ready for `check`."""

    folder: Path
    n_cases: int
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())
    """Of the `train` command that suits these data."""


MIN_MAX = ("malc", "covid")
"""Those whose `bring` takes `min_max=True`: images scaled to [0, 1] by their own range."""
Bring = Callable[..., Imported]
"""(what was downloaded, folder to write or None for a default beside nothing of the source) -> Imported."""


def importer(name: str) -> Bring:
    """Return the importer `name`.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    if name not in TABLE:
        raise ConfigError(f"no importer {name!r}; known are {', '.join(TABLE)}")
    found: Bring = importlib.import_module(TABLE[name][0]).bring
    return found
