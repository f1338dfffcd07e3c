"""Which prediction answers which reference label: from a workspace's manifest or two folders of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seguro.core.errors import ConfigError, DataError, GeometryError
from seguro.core.files import read_json, sha256_file
from seguro.core.types import Case, Classes, Excluded, FileFact, Grid, Manifest, ThreeF, Unit, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = Path("check") / "manifest.json"
LISTING = "predictions.json"
PREDICTIONS = "predictions"
PROBABILITIES = "probabilities"
OF_DATA_SET = "data set "
"""How predictions.json begins the name of a data set among its inputs."""


@dataclass(frozen=True)
class Predictions:
    """What a folder of label files holds; `listed` when it was written by predict and says so itself."""

    folder: Path
    files: dict[str, Path]
    failed: dict[str, str]
    classes: Classes | None
    listed: bool
    probabilities: dict[str, Path]
    """Of the cases that have them; a file that predict does not list is of another prediction."""
    inputs: tuple[str, ...] = ()
    """What predict says was predicted: "data set NAME", or folders."""


@dataclass(frozen=True)
class Job:
    """One case to score."""

    id: str
    patient: str
    site: str
    truth: str
    """The label's path, for messages."""
    read: Callable[[], Volume]
    """Returns the truth, with the file values of the task's classes."""
    sha256: tuple[str, ...]
    """What the truth's files must hash to."""
    content: tuple[str, ...]
    """What they hash to now; "missing" for one that is not there."""
    prediction: Path | None
    probabilities: Path | None = None
    annotated: tuple[str, ...] | None = None
    """None: every class."""
    spacing: ThreeF | None = None
    """As the manifest has it; None: as the label file says."""
    unit: Unit | None = None


def find_predictions(folder: Path) -> Predictions:
    """Return the prediction files in `folder`, or in the one set of predictions below it, by case id.

    Raises:
        ConfigError: a run, or its folder of predictions, with several sets.
        DataError: not a folder, or two files for one case.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that seguro predict wrote")
    inside = sets_below(folder)
    if len(inside) > 1:
        raise ConfigError(
            f"{folder}: {len(inside)} sets of predictions ({', '.join(map(str, inside[:5]))}"
            f"{', ...' if len(inside) > 5 else ''}); name one of them"
        )
    folder = inside[0] if inside else folder
    listing = folder / LISTING
    if not listing.exists():
        files = labels_by_stem(folder)
        places = {i: _probabilities(folder, i) for i in files}
        return Predictions(folder, files, {}, None, False, {i: p for i, p in places.items() if p})
    content = read_json(listing)
    try:
        files = {str(k): folder / Path(str(v["file"])).name for k, v in content["cases"].items()}
        p = {str(k): v["probabilities"] for k, v in content["cases"].items() if v.get("probabilities")}
        probabilities = {k: folder / PROBABILITIES / Path(str(v)).name for k, v in p.items()}
        failed = {str(k): str(v) for k, v in content["failed"].items()}
        classes = Classes.model_validate(content["classes"])
        inputs = tuple(map(str, content.get("inputs") or ()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{listing}: not as seguro predict writes it ({error}); predict again") from error
    return Predictions(
        folder,
        {k: p for k, p in files.items() if p.is_file()},
        failed
        | {
            k: "listed in predictions.json, but the file is gone" for k, p in files.items() if not p.is_file()
        },
        classes,
        True,
        {k: p for k, p in probabilities.items() if p.is_file()},
        inputs,
    )


def refuse_other_data(found: Predictions, manifest: Manifest) -> None:
    """Refuse predictions of cases of another data set: ids may be the same in both.

    Raises:
        ConfigError: they are.
    """
    others = [i for i in found.inputs if i.startswith(OF_DATA_SET) and i != OF_DATA_SET + manifest.name]
    if others:
        raise ConfigError(
            f"{found.folder}: predictions of {others[0]}, but it lies in the workspace of {manifest.name}; "
            "say whose truth it is: --data WORKSPACE"
        )


def sets_below(folder: Path) -> list[Path]:
    """Return the sets of predictions of a run, or those in a folder that holds no label of its own."""
    inside = sorted(p.parent for p in folder.glob(f"{PREDICTIONS}/**/{LISTING}"))
    if inside or (folder / LISTING).exists() or labels_by_stem(folder):
        return inside
    return sorted(p.parent for p in folder.glob(f"*/{LISTING}"))


def labels_by_stem(folder: Path) -> dict[str, Path]:
    """Return the readable label files directly in `folder` by stem, sorted.

    Raises:
        DataError: two files share a stem.
    """
    from seguro.data.formats import split_name

    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem, suffix = split_name(path)
        if not suffix or path.name.startswith(".") or not path.is_file():
            continue
        if stem in files:
            raise DataError(f"{folder}: {files[stem].name} and {path.name} are both case {stem}; keep one")
        files[stem] = path
    return files


def manifest_for(predictions: Path, data: Path | None, data_root: Path | None = None) -> Manifest:
    """Return the manifest that the predictions are scored against.

    Args:
        predictions: their folder, looked at when `data` is None: the workspace around it.
        data: a workspace, or the dataset's folder (then its files are read there, wherever they were before).
        data_root: where the dataset's files lie now, if they were moved.

    Raises:
        ConfigError: none found where it was looked for.
    """
    from seguro.data import manifest

    if data is None:
        places = [p for p in predictions.resolve().parents if (p / MANIFEST).is_file()]
        if not places:
            raise ConfigError(
                f"{predictions} lies in no workspace; say what is true: --data WORKSPACE or --truth FOLDER"
            )
        return manifest.load(places[0] / MANIFEST, data_root=data_root)
    if (data / MANIFEST).is_file():
        return manifest.load(data / MANIFEST, data_root=data_root)
    workspace = Path(f"{data.resolve().name}.seguro")
    if not (workspace / MANIFEST).is_file():
        raise ConfigError(f"{data}: no {MANIFEST} in it or in {workspace}; run first: seguro check {data}")
    return manifest.load(workspace / MANIFEST, data_root=data_root or data)


def jobs_from_manifest(
    manifest: Manifest, found: Predictions, split: Literal["train", "test"] | None
) -> tuple[list[Job], Classes, list[Excluded]]:
    """Return the cases to score, their classes, and what is left out with the reason.

    Raises:
        DataError: no class, or no labeled case among the predictions.
    """
    if manifest.classes is None:
        raise DataError(f"{manifest.name}: no case has a label, so there is nothing to compare with")
    cases = {c.id: c for c in manifest.cases}
    answered = set(found.files) | set(found.failed)
    if split is not None:
        expected = {c.id for c in manifest.of(split)}
    else:
        # A fold predicts part of the training cases, so a list decides there; a test set is expected whole.
        splits = {cases[i].split for i in answered if i in cases}
        whole = {s for s in splits if s == "test" or not found.listed}
        expected = {c.id for c in manifest.cases if c.split in whole} | (answered & set(cases))
    excluded = [Excluded(id=i, reason="not in the manifest") for i in sorted(answered - set(cases))]
    labeled = {i for i in expected if cases[i].label is not None}
    excluded += [Excluded(id=i, reason="no reference label") for i in sorted(expected - labeled)]
    jobs = [_job(cases[i], manifest, found) for i in sorted(labeled)]
    if not jobs:
        raise DataError(
            f"{found.folder}: none of its {len(answered)} cases has a reference label in {manifest.name} "
            f"(predicted: {few(answered)}; labeled: {few({c.id for c in manifest.cases if c.label})})"
        )
    return jobs, manifest.classes, excluded


def _job(case: Case, manifest: Manifest, found: Predictions) -> Job:
    labels = [m for m in case.masks if m] or ([case.label] if case.label else [])
    return Job(
        case.id,
        case.patient,
        case.site,
        str(Path(manifest.root) / labels[0].path),
        partial(_read_truth, case, manifest),
        tuple(f.sha256 for f in labels),
        tuple(_content(Path(manifest.root) / f.path, f) for f in labels),
        found.files.get(case.id),
        found.probabilities.get(case.id),
        case.annotated,
        case.spacing,
        case.unit,
    )


def _content(path: Path, fact: FileFact) -> str:
    """Return the hash of a file, read again only where size or time are not those of the check."""
    if not path.is_file():
        return "missing"
    now = path.stat()
    same = (now.st_size, now.st_mtime_ns) == (fact.size, fact.mtime_ns)
    return fact.sha256 if same else sha256_file(path)


def _read_truth(case: Case, manifest: Manifest) -> Volume:
    """Return the label of a case on its image's grid.

    Raises:
        DataError: a file is gone, damaged or on another grid than the image.
    """
    from seguro.data import formats
    from seguro.data.manifest import paths, read_case_label

    spacing = None if case.unit == "px" else case.spacing
    grid = formats.read_facts(paths(case, manifest)[0][0], spacing=spacing).grid
    label = read_case_label(case, manifest, like=grid)
    if label is None:
        raise DataError(f"case {case.id}: no reference label in the manifest")
    return label


def _probabilities(folder: Path, case: str) -> Path | None:
    places = [folder / PROBABILITIES / f"{case}{suffix}" for suffix in (".nii.gz", ".nii", ".npy")]
    return next((p for p in places if p.is_file()), None)


def jobs_from_folder(truth: Path, found: Predictions) -> tuple[list[Job], Classes, list[Excluded]]:
    """Return a job per reference label; each case is its own patient, and every class is annotated.

    Without a list of classes from predict, each value found in any file is a class, 0 the background.

    Raises:
        DataError: not a folder, or no stem in common.
    """
    from seguro.data import formats

    if not truth.is_dir():
        raise DataError(f"{truth}: no such folder; give the folder with the reference labels")
    labels = labels_by_stem(truth)
    answered = set(found.files) | set(found.failed)
    if not answered & set(labels):
        raise DataError(
            f"{found.folder} and {truth} have no case in common (predicted: {few(answered)}; "
            f"labeled: {few(set(labels))}); name both by the same stems"
        )
    excluded = [Excluded(id=i, reason="no reference label") for i in sorted(answered - set(labels))]
    classes = found.classes
    if classes is None:
        values = _values(
            [*labels.values(), *(found.files[i] for i in sorted(set(labels) & set(found.files)))]
        )
        foreground = sorted(values - {0})
        if not foreground:
            raise DataError(
                f"{truth}: no label holds a class, or none can be read; there is nothing to score"
            )
        names = ("background", *(f"label {v}" for v in foreground))
        classes = Classes(names=names, values=((0,), *((v,) for v in foreground)))
    jobs = [
        Job(
            i,
            i,
            "site1",
            str(path),
            partial(formats.read_label, path),
            (digest,),
            (digest,),
            found.files.get(i),
            found.probabilities.get(i),
        )
        for i, path in sorted(labels.items())
        for digest in (sha256_file(path),)
    ]
    return jobs, classes, excluded


def _values(paths: Sequence[Path]) -> set[int]:
    """Return the label values in any of the files; one that cannot be read is reported when it is scored."""
    import numpy as np

    from seguro.data import formats

    values: set[int] = set()
    for path in paths:
        with suppress(DataError):
            values |= {int(v) for v in np.unique(formats.read_label(path).array)}
    return values


def few(names: set[str]) -> str:
    """Return the first three names, and dots when there are more."""
    return (", ".join(sorted(names)[:3]) or "none") + (", ..." if len(names) > 3 else "")


def on_grid(prediction: Volume, grid: Grid, job: Job, *, resample: bool) -> tuple[NDArray[Any], bool]:
    """Return the prediction on the truth's `grid` and whether it had to be resampled.

    Raises:
        GeometryError: another grid and no request; both are shown.
    """
    from seguro.data import geometry

    apart = geometry.same_grid(prediction.grid, grid)
    if apart < 0.5 * min(grid.spacing):
        return prediction.array, False
    if not resample:
        ours, theirs = prediction.grid, grid
        raise GeometryError(
            f"case {job.id}: {job.prediction} lies on another grid than its truth: "
            f"shape {ours.shape} and {theirs.shape} (z, y, x), "
            f"spacing {_numbers(ours.spacing)} and {_numbers(theirs.spacing)}, corners "
            f"{'not comparable' if ours.shape != theirs.shape else f'{apart:.2f} {theirs.unit} apart'}; "
            "predict on the original images, or bring predictions to the truth's grid with --resample"
        )
    return nearest(prediction, grid), True


def nearest(volume: Volume, grid: Grid) -> NDArray[Any]:
    """Return the label of `volume` at the nearest voxel for each voxel of `grid`; 0 outside."""
    import numpy as np
    from scipy.ndimage import affine_transform

    to_source = np.linalg.inv(volume.grid.affine) @ grid.affine  # voxel (x, y, z) to voxel (x, y, z)
    matrix = to_source[:3, :3][::-1, ::-1]  # (z, y, x)
    moved: NDArray[Any] = affine_transform(
        volume.array,
        matrix,
        offset=to_source[:3, 3][::-1],
        output_shape=grid.shape,
        order=0,
        mode="constant",
        cval=0,
    )
    return moved


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
