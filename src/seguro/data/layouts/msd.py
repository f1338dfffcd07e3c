"""Medical Segmentation Decathlon folders, with imagesUn for unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.types import Classes
from seguro.data.formats import split_name
from seguro.data.layouts.listing import Findings, Found, Listing, files, inside, refuse_repeats, some
from seguro.data.layouts.naming import lateral_pairs

DESCRIPTION = "dataset.json"


def list_msd(root: Path, description: dict[str, Any]) -> Listing:
    """Return the cases of a Decathlon folder.

    Images of the training list without a label file count as unlabelled; a label without an image is an
    error; files that the lists do not name are used when they have no label, and left out with a warning
    when they have one.

    Raises:
        DataError: a malformed description, or one that names files outside the folder.
    """
    findings = Findings()
    train = _train(root, description, findings)
    test = _test(root, description, findings)
    listed = {path for case in (*train, *test) for path in case.images}
    unlabelled = [Found(stem, (path,), (), "unlabelled") for stem, path in files(root, "imagesUn").items()]
    unlabelled += _unlisted(root, listed, findings)
    _labels_without_image(root, train, findings)
    found = (*train, *test, *unlabelled)
    refuse_repeats(found, root)
    return Listing(
        root=root,
        layout="msd",
        found=found,
        channels=_channels(root, description),
        classes=classes_of(root, description.get("labels")),
        errors=tuple(findings.errors),
        warnings=tuple(findings.warnings),
        sources=(Path(DESCRIPTION),),
        nominal=is_nominal(description),
    )


def is_nominal(description: dict[str, Any]) -> bool:
    """Return whether the description calls the spacing nominal."""
    return "nominal" in str(description.get("description", "")).lower()


def _train(root: Path, description: dict[str, Any], findings: Findings) -> list[Found]:
    out = []
    bare = []
    entries = description.get("training")
    if not isinstance(entries, list):
        raise DataError(
            f"{root / DESCRIPTION}: 'training' is {type(entries).__name__}, expected a list of cases"
        )
    for entry in entries:
        image, label = _entry(root, entry)
        case = split_name(image)[0]
        if not _present(root / image):
            findings.error(
                "pair", case, f"{image} is named in {DESCRIPTION} but missing; copy it or remove the entry"
            )
            continue
        if label is None or not _present(root / label):
            bare.append(case)
            out.append(Found(case, (image,), (), "unlabelled"))
        else:
            out.append(Found(case, (image,), (label,), "train"))
    if bare:
        findings.warn(
            "pair", "", f"{len(bare)} training images without label are used as unlabelled: {some(bare)}"
        )
    return out


def _present(path: Path) -> bool:
    """Return whether there is something of that name; a dead link counts, and fails when read."""
    return path.exists() or path.is_symlink()


def _test(root: Path, description: dict[str, Any], findings: Findings) -> list[Found]:
    labels = files(root, "labelsTs")
    listed = [_entry(root, entry) for entry in description.get("test") or ()]
    images = {split_name(image)[0]: (image, label) for image, label in listed}
    images |= {s: (p, None) for s, p in files(root, "imagesTs").items() if s not in images}
    out = []
    for stem, (image, named) in images.items():
        if not _present(root / image):
            findings.error(
                "pair", stem, f"{image} is named in {DESCRIPTION} but missing; copy it or remove the entry"
            )
            continue
        label = named if named is not None and _present(root / named) else labels.get(stem)
        out.append(Found(stem, (image,), (label,) if label else (), "test"))
    return out


def _entry(root: Path, entry: Any) -> tuple[Path, Path | None]:
    """Return image and label of one entry: an object with both, or the image's name alone."""
    if isinstance(entry, str):
        return inside(root, entry, DESCRIPTION), None
    if isinstance(entry, dict) and isinstance(entry.get("image"), str):
        label = entry.get("label")
        return inside(root, entry["image"], DESCRIPTION), inside(root, label, DESCRIPTION) if label else None
    raise DataError(
        f"{root / DESCRIPTION}: entry {str(entry)[:80]!r}, "
        'expected {"image": ..., "label": ...} or a file name'
    )


def _unlisted(root: Path, listed: set[Path], findings: Findings) -> list[Found]:
    """Return the images in imagesTr that no list names and that have no label."""
    labels = files(root, "labelsTr")
    extra = {s: p for s, p in files(root, "imagesTr").items() if p not in listed}
    labelled = [s for s in extra if s in labels]
    bare = [s for s in extra if s not in labels]
    if labelled:
        findings.warn(
            "pair",
            "",
            f"{len(labelled)} pairs in imagesTr that {DESCRIPTION} does not name are left out: "
            f"{some(labelled)}",
        )
    if bare:
        findings.warn(
            "pair", "", f"{len(bare)} images without label in imagesTr are used as unlabelled: {some(bare)}"
        )
    return [Found(s, (extra[s],), (), "unlabelled") for s in bare]


def _labels_without_image(root: Path, train: list[Found], findings: Findings) -> None:
    used = {label for case in train for label in case.labels}
    images = files(root, "imagesTr")
    for stem, path in files(root, "labelsTr").items():
        if path not in used and stem not in images:
            findings.error(
                "pair", stem, f"{path} is a label without image; add imagesTr/{path.name} or remove the label"
            )


def _channels(root: Path, description: dict[str, Any]) -> tuple[str, ...]:
    modality = description.get("modality") or {"0": "image"}
    if not isinstance(modality, dict) or not all(str(k).isdigit() for k in modality):
        raise DataError(
            f'{root / DESCRIPTION}: modality {modality!r}, expected an object such as {{"0": "MRI"}}'
        )
    return tuple(str(modality[k]) for k in sorted(modality, key=lambda k: int(k)))


def classes_of(root: Path, labels: Any) -> Classes:
    """Return the classes of {"value": "name"} or {"name": value}.

    Raises:
        DataError: not such an object, names or values twice, or no class beside the background.
    """
    if not isinstance(labels, dict) or not labels:
        raise DataError(
            f'{root / DESCRIPTION}: labels {labels!r}, expected an object such as {{"1": "liver"}}'
        )
    try:
        by_value = {int(k): str(v) for k, v in labels.items()}
    except ValueError:
        try:
            by_value = {int(v): str(k) for k, v in labels.items()}
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{root / DESCRIPTION}: labels {labels!r} are not pairs of value and name"
            ) from error
    by_value = {0: "background"} | by_value
    return make_classes(root, sorted(by_value.items()))


def make_classes(root: Path, pairs: list[tuple[int, str]], ignore: int | None = None) -> Classes:
    """Return exclusive classes of (value, name) pairs, background first, lateral pairs found by name."""
    names = tuple(name for _, name in pairs)
    try:
        return Classes(
            names=names, values=tuple((v,) for v, _ in pairs), ignore=ignore, pairs=lateral_pairs(names[1:])
        )
    except ValueError as error:
        raise DataError(f"{root}: these classes cannot be: {_first_line(error)}") from error


def _first_line(error: ValueError) -> str:
    text = str(error)
    return text.split("Value error, ")[-1].split(" [type=")[0]
