"""Plain folders: images and labels in folders of their own, one folder per mask class, or side by side."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Set
from pathlib import Path

from seguro.core.errors import DataError
from seguro.core.types import Split
from seguro.data.formats import raster, split_name
from seguro.data.formats.dicom.reading import holds_dicom
from seguro.data.layouts.listing import Findings, Found, Listing, files, refuse_repeats, some

IMAGE_FOLDERS = ("imagesTr", "images", "image", "imgs", "img", "scans", "ct", "mr", "mri", "data")
LABEL_FOLDERS = (
    *("labelsTr", "labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg"),
    *("annotations", "manual", "gt", "groundtruth", "ground_truth"),
)
EXTRA: tuple[tuple[str, str, Split], ...] = (
    ("imagesTs", "labelsTs", "test"),
    ("imagesUn", "", "unlabelled"),
    ("unlabelled", "", "unlabelled"),
    ("unlabeled", "", "unlabelled"),
)
_LABEL_WORD = re.compile(r"seg|mask|label|manual|truth|gt|annot|lesion|vessel|^\d(st|nd|rd|th)", re.I)
_OBSERVER = re.compile(r"^(\d(st|nd|rd|th)|rater|reader|observer|expert)", re.I)
_FILLER = re.compile(r"seg(mentation)?s?|masks?|labels?|manual|groundtruth|truth|gt|annot\w*|[\W_]+", re.I)


def list_folder(root: Path) -> Listing:
    """Return the cases of a folder without description.

    Known are: an image folder (`images`, `imagesTr`, `ct`, ...) beside label folders with files of the same
    stem, or stem + suffix such as `_seg`; several such folders hold one mask class each; the same below
    site folders; or images and labels side by side in one folder, told apart by the suffix.

    Raises:
        DataError: nothing that looks like this; the message says what was found and what is expected.
    """
    findings = Findings()
    subfolders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    image_folder = next((f for f in IMAGE_FOLDERS if f in subfolders and files(root, f)), None)
    if image_folder is not None:
        found, masks = _pair_folders(root, image_folder, subfolders, "", findings)
    elif sites := [s for s in subfolders if _image_folder(root, s)]:
        found, masks = _sites(root, sites, findings)
    elif files(root, "."):
        found, masks = _side_by_side(root, findings)
    else:
        raise DataError(_unknown(root, subfolders))
    refuse_repeats(found, root)
    suffixes = Counter(split_name(case.images[0])[1] for case in found)
    is_raster = suffixes.most_common(1)[0][0] in raster.SUFFIXES
    return Listing(
        root=root,
        layout="raster" if is_raster else "folder",
        found=tuple(found),
        masks=masks,
        errors=tuple(findings.errors),
        warnings=tuple(findings.warnings),
    )


def _image_folder(root: Path, site: str) -> str | None:
    """Return the image folder of a site folder, which is opened once: there may be very many."""
    inside = {e.name for e in os.scandir(root / site) if e.is_dir()}
    return next((f for f in IMAGE_FOLDERS if f in inside and files(root, f"{site}/{f}")), None)


def _unknown(root: Path, subfolders: list[str]) -> str:
    seen = f"subfolders {some(subfolders)}" if subfolders else "no subfolders"
    if holds_dicom(root):
        return (
            f"{root}: holds DICOM files, which are read by series: bring them into a folder of images with "
            f"`seguro import dicom {root} --out FOLDER`, then check that"
        )
    kinds = Counter(p.suffix or p.name for p in root.iterdir() if p.is_file())
    listed = ", ".join(f"{n} {k}" for k, n in kinds.most_common(5)) or "no files"
    return (
        f"{root}: no images found ({seen}; {listed}). Expected is one of: dataset.json with "
        "imagesTr and labelsTr "
        "(Decathlon or nnU-Net); images/ and labels/ with the same file names; or scan.nii.gz "
        "beside scan_seg.nii.gz. "
        "Files may be .nii, .nii.gz, .png, .jpg or .tif"
    )


def _pair_folders(
    root: Path,
    image_folder: str,
    subfolders: list[str],
    prefix: str,
    findings: Findings,
    site: str | None = None,
) -> tuple[list[Found], tuple[str, ...]]:
    """Return the cases of an image folder and its label folders, and the mask classes if several."""
    base = f"{prefix}/" if prefix else ""
    images = files(root, base + image_folder)
    special = {f for part in EXTRA for f in part[:2] if f} | {image_folder}
    named = [f for f in LABEL_FOLDERS if f in subfolders]
    others = [f for f in subfolders if f not in special and f not in named]
    matching = [f for f in others if _match(set(images), files(root, base + f), Findings(), f)]
    folders = named or matching
    maps = {f: _match(set(images), files(root, base + f), findings, f) for f in folders}
    masks = tuple(folders) if len(folders) > 1 else ()
    found, bare = [], []
    for stem, path in images.items():
        labels = tuple(maps[f].get(stem) for f in folders)
        if any(labels):
            found.append(Found(stem, (path,), labels, "train", site))
        else:
            bare.append(stem)
            found.append(Found(stem, (path,), (), "unlabelled", site))
    if bare:
        findings.warn(
            "pair",
            "",
            f"{len(bare)} of {len(images)} images have no label and are used as unlabelled: {some(bare)}",
        )
    for image_part, label_part, split in EXTRA:
        extra = files(root, base + image_part)
        labels_of = (
            _match(set(extra), files(root, base + label_part), findings, label_part) if label_part else {}
        )
        found += [
            Found(s, (p,), (labels_of[s],) if s in labels_of else (), split, site) for s, p in extra.items()
        ]
    return found, masks


def _match(stems: set[str], labels: dict[str, Path], findings: Findings, folder: str) -> dict[str, Path]:
    """Return label files by image stem: equal, or stem and suffix; what fits no image is an error."""
    out: dict[str, Path] = {}
    lost: list[tuple[str, Path]] = []
    tails: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        tails[stem.split("_", 1)[-1]].append(stem)
    for stem, path in labels.items():
        owner = stem if stem in stems else _owner(stem, stems)
        if owner is None and len(tails.get(stem, ())) == 1:  # G_2023.png has the label 2023.png
            owner = tails[stem][0]
        if owner is None:
            lost.append((stem, path))
        elif owner in out:
            findings.error(
                "pair", owner, f"{out[owner]} and {path} are both labels of this image; remove one"
            )
        else:
            out[owner] = path
    for stem, path in lost:
        findings.error(
            "pair", stem, f"{path} is a label without image; add the image or remove {folder}/{path.name}"
        )
    return out


def _owner(stem: str, stems: Set[str]) -> str | None:
    """Return the longest image stem that `stem` begins with, up to a separator."""
    for match in reversed(list(re.finditer(r"[_\-.]", stem))):
        if stem[: match.start()] in stems:
            return stem[: match.start()]
    return None


def _sites(root: Path, sites: list[str], findings: Findings) -> tuple[list[Found], tuple[str, ...]]:
    """Return the cases below one folder per site; stems that repeat get the site as prefix."""
    parts: list[Found] = []
    kinds: set[tuple[str, ...]] = set()
    for site in sites:
        subfolders = sorted(e.name for e in os.scandir(root / site) if e.is_dir())
        image_folder = _image_folder(root, site)
        if image_folder is None:
            continue
        found, masks = _pair_folders(root, image_folder, subfolders, site, findings, site)
        parts += found
        kinds.add(masks)
    if len(kinds) > 1:
        raise DataError(
            f"{root}: the sites have other mask folders ({sorted(kinds)}); give all sites the same folders"
        )
    repeated = {i for i, n in Counter(c.id for c in parts).items() if n > 1}
    renamed = [
        Found(f"{c.site}_{c.id}" if c.id in repeated else c.id, c.images, c.labels, c.split, c.site)
        for c in parts
    ]
    return renamed, kinds.pop()


def _side_by_side(root: Path, findings: Findings) -> tuple[list[Found], tuple[str, ...]]:
    """Return the cases of one folder that holds both images and labels, named `scan` and `scan_seg`."""
    all_files = files(root, ".")
    owners: dict[str, tuple[str, str]] = {}
    for stem in all_files:
        owner = _owner(stem, all_files.keys())
        if owner and _LABEL_WORD.search(stem[len(owner) + 1 :]):
            owners[stem] = (owner, stem[len(owner) + 1 :])
    images = [s for s in all_files if s not in owners]
    kinds = sorted({kind for _, kind in owners.values()})
    observers = [k for k in kinds if _OBSERVER.match(k)]
    if observers and len(observers) == len(kinds) > 1:
        findings.warn(
            "pair", "", f"labels of {len(kinds)} observers ({', '.join(kinds)}): {kinds[0]} is used"
        )
        kinds = kinds[:1]
    masks = tuple(dict.fromkeys(class_name(k) for k in kinds)) if len(kinds) > 1 else ()
    if masks and len(masks) != len(kinds):
        masks = tuple(kinds)
    labels_of: dict[str, dict[str, Path]] = defaultdict(dict)
    for label, (owner, kind) in owners.items():
        labels_of[owner][kind] = all_files[label]
    found, bare = [], []
    for stem in images:
        mine = labels_of.get(stem, {})
        labels = tuple(mine.get(k) for k in kinds)
        if any(labels):
            found.append(Found(stem, (all_files[stem],), labels, "train"))
        else:
            bare.append(stem)
            found.append(Found(stem, (all_files[stem],), (), "unlabelled"))
    if bare:
        findings.warn(
            "pair",
            "",
            f"{len(bare)} of {len(images)} images have no label and are used as unlabelled: {some(bare)}",
        )
    return found, masks


def class_name(kind: str) -> str:
    """Return what a label suffix says of the class: "gmseg_manual" is "gm", "seg-manual" is "foreground"."""
    return _FILLER.sub("", kind) or "foreground"
