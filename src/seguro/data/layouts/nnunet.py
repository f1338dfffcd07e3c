"""nnU-Net v2 raw folders: one file per channel (`_0000`), regions and an ignore label in dataset.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.types import Classes, Split
from seguro.data.formats import SUFFIXES, raster, split_name
from seguro.data.layouts.listing import Findings, Found, Listing, files, refuse_repeats, some
from seguro.data.layouts.msd import DESCRIPTION, is_nominal, make_classes
from seguro.data.layouts.naming import lateral_pairs

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def list_nnunet(root: Path, description: dict[str, Any]) -> Listing:
    """Return the cases of an nnU-Net v2 raw folder; `imagesUn` holds unlabelled ones.

    Raises:
        DataError: a malformed description or an unknown file ending.
    """
    findings = Findings()
    channels = _channels(root, description)
    ending = str(description.get("file_ending", ".nii.gz")).lower()
    if ending not in SUFFIXES:
        raise DataError(
            f"{root / DESCRIPTION}: file_ending {ending!r} cannot be read; known are {', '.join(SUFFIXES)}"
        )
    found: list[Found] = []
    parts: tuple[tuple[str, str, Split], ...] = (
        ("imagesTr", "labelsTr", "train"),
        ("imagesTs", "labelsTs", "test"),
        ("imagesUn", "", "unlabelled"),
    )
    for images, labels, split in parts:
        found += _part(root, images, labels, split, len(channels), findings)
    refuse_repeats(found, root)
    return Listing(
        root=root,
        layout="nnunet",
        found=tuple(found),
        channels=channels,
        classes=_classes(root, description),
        errors=tuple(findings.errors),
        warnings=tuple(findings.warnings),
        sources=(Path(DESCRIPTION),),
        nominal=is_nominal(description),
    )


def _part(
    root: Path, images: str, labels: str, split: Split, n_channels: int, findings: Findings
) -> list[Found]:
    """Return the cases of one pair of folders."""
    groups: dict[str, dict[int, Path]] = {}
    for stem, path in files(root, images).items():
        match = _CHANNEL.match(stem)
        if match is None:
            findings.error(
                "pair", stem, f"{path} has no channel number; nnU-Net names files like {stem}_0000"
            )
            continue
        groups.setdefault(match.group(1), {})[int(match.group(2))] = path
    label_files = files(root, labels) if labels else {}
    out, bare = [], []
    for case, channels in groups.items():
        colour = list(channels) == [0] and n_channels == 3 and split_name(channels[0])[1] in raster.SUFFIXES
        n_files = 1 if colour else n_channels  # a colour picture holds its three channels itself
        if sorted(channels) != list(range(n_files)):
            have = ", ".join(f"{c:04d}" for c in sorted(channels))
            findings.error(
                "pair",
                case,
                f"channels {have} present, {DESCRIPTION} names {n_channels}; add the missing files",
            )
            continue
        label = label_files.get(case)
        if label is None and split == "train":
            bare.append(case)
        kind: Split = "unlabelled" if label is None and split == "train" else split
        out.append(Found(case, tuple(channels[i] for i in range(n_files)), (label,) if label else (), kind))
    if bare:
        findings.warn(
            "pair", "", f"{len(bare)} images without label in {images} are used as unlabelled: {some(bare)}"
        )
    for case, path in label_files.items():
        if case not in groups:
            findings.error(
                "pair", case, f"{path} is a label without image; add its channels to {images} or remove it"
            )
    return out


def _channels(root: Path, description: dict[str, Any]) -> tuple[str, ...]:
    names = description.get("channel_names") or description.get("modality")
    if not isinstance(names, dict) or not all(str(k).isdigit() for k in names):
        raise DataError(
            f'{root / DESCRIPTION}: channel_names {names!r}, expected an object such as {{"0": "CT"}}'
        )
    return tuple(str(names[k]) for k in sorted(names, key=lambda k: int(k)))


def _classes(root: Path, description: dict[str, Any]) -> Classes:
    """Return exclusive classes, or regions where a label is a list of values."""
    labels = description.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError(f'{root / DESCRIPTION}: labels {labels!r}, expected an object such as {{"liver": 1}}')
    try:
        values = {
            str(n): tuple(int(x) for x in v) if isinstance(v, list) else (int(v),) for n, v in labels.items()
        }
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{root / DESCRIPTION}: labels {labels!r} are not whole numbers or lists of them"
        ) from error
    ignore = values.pop("ignore", (None,))[0]
    if all(len(v) == 1 for v in values.values()):
        pairs = sorted((v[0], n) for n, v in values.items())
        if not pairs or pairs[0][0] != 0:
            pairs.insert(0, (0, "background"))
        return make_classes(root, pairs, ignore)
    return _regions(root, description, {n: v for n, v in values.items() if v != (0,)}, ignore)


def _regions(
    root: Path, description: dict[str, Any], values: dict[str, tuple[int, ...]], ignore: int | None
) -> Classes:
    paint = description.get("regions_class_order")
    if not isinstance(paint, list) or len(paint) != len(values):
        raise DataError(
            f"{root / DESCRIPTION}: {len(values)} regions need 'regions_class_order' with "
            f"{len(values)} values, found {paint!r}"
        )
    if max(max(v) for v in values.values()) > 254:
        raise DataError(
            f"{root / DESCRIPTION}: region values go up to {max(map(max, values.values()))}; 254 "
            "is the largest"
        )
    names = tuple(values)
    return Classes(
        names=names,
        values=tuple(values.values()),
        regions=True,
        paint=tuple(int(p) for p in paint),
        ignore=ignore,
        pairs=lateral_pairs(names),
    )
