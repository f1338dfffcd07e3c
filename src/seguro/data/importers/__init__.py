"""Published data sets as their owners hand them out, brought into a layout that `check` reads.

Adding one is a module here with a function `bring(source, out)` and a row in TABLE.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seguro.core.errors import ConfigError

TABLE: dict[str, tuple[str, str]] = {
    "msd": ("seguro.data.importers.msd", "Medical Segmentation Decathlon: TaskNN_NAME.tar or its folder"),
    "malc": (
        "seguro.data.importers.malc",
        "MALC brains: folder of NIfTI images and Neuromorphometrics labels",
    ),
    "covid": ("seguro.data.importers.covid", "MedSeg COVID-19 slices: folder of image and mask stacks"),
    "dicom": ("seguro.data.importers.dicom", "DICOM series: any folder with them"),
    "chaos": (
        "seguro.data.importers.chaos",
        "CHAOS T2-SPIR MR: folder with <id>/T2SPIR/DICOM_anon, Ground (extra: dicom)",
    ),
    "sabs": (
        "seguro.data.importers.sabs",
        "BTCV abdominal CT: folder with img/img0001.nii.gz and label/label0001.nii.gz, ...",
    ),
    "brats": (
        "seguro.data.importers.brats",
        "BraTS tumors: folder with a folder per case, a file per modality",
    ),
    "mms": ("seguro.data.importers.mms", "M&Ms cardiac MR: folder with its CSV and CODE_sa.nii.gz, _sa_gt"),
    "liver": ("seguro.data.importers.liver", "Livers: folder of NIfTI images and labels, onto PFSeg's grid"),
}
"""Name -> module, and what it takes."""


@dataclass(frozen=True)
class Imported:
    """A data set ready for `check`."""

    folder: Path
    n_cases: int
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())
    """Of the next command, as suits these data."""
    next: Literal["train", "plan", "check"] = "train"


OPTIONS: dict[str, tuple[str, ...]] = {
    "min_max": ("malc", "covid"),
    "resample": ("dicom",),
    "quarantine": ("dicom",),
    "keep_names": ("dicom",),
    "as_scanned": ("chaos", "sabs", "brats", "liver"),
    "regions": ("brats",),
    "split": ("brats", "liver"),
    "split_seed": ("brats", "liver"),
}
"""Argument of `bring` -> the importers that take it."""
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
