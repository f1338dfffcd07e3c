"""Folder layouts: which one a folder has, and what it lists."""

from __future__ import annotations

from pathlib import Path

from seguro.core.errors import DataError
from seguro.core.files import read_json
from seguro.data.layouts.folder import list_folder
from seguro.data.layouts.listing import Findings, Found, Kind, Listing, Problem, some
from seguro.data.layouts.msd import DESCRIPTION, list_msd
from seguro.data.layouts.nnunet import list_nnunet

__all__ = ["Findings", "Found", "Kind", "Listing", "Problem", "list_cases", "some"]


def list_cases(root: Path) -> Listing:
    """Return what the folder lists, without opening an image.

    `dataset.json` with `channel_names` or `file_ending` is nnU-Net's, with `training` the Decathlon's;
    without it the names of the subfolders decide.

    Raises:
        DataError: no such folder, no known layout, a malformed description, or no case at all.
    """
    if not root.is_dir():
        what = "is a file, give the folder it lies in" if root.exists() else "does not exist; check the path"
        raise DataError(f"{root}: {what}")
    listing = _listing(root)
    if not listing.found and not listing.errors:
        raise DataError(
            f"{root}: {listing.layout} layout, but no case in it; check that the images were copied"
        )
    return listing


def _listing(root: Path) -> Listing:
    path = root / DESCRIPTION
    if not path.exists():
        return list_folder(root)
    description = read_json(path)
    if not isinstance(description, dict):
        raise DataError(f"{path}: expected an object, found {type(description).__name__}")
    if "channel_names" in description or "file_ending" in description:
        return list_nnunet(root, description)
    if "training" in description or "modality" in description:
        return list_msd(root, description)
    raise DataError(
        f"{path}: neither a Decathlon description ('training', 'modality') nor nnU-Net's "
        "('channel_names', 'file_ending'); "
        "its keys are " + some(sorted(description), 8)
    )
