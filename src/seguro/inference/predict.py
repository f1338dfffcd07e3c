"""Prediction of files: case by case, resumable, each output in the geometry and type of its input."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from seguro.core.errors import DataError, RunError
from seguro.core.files import sha256_file, sha256_json, write_json, write_text
from seguro.core.stage import Stage, locked
from seguro.core.types import Classes, ThreeF, Volume, Warnings
from seguro.data.formats import write_label, write_scores
from seguro.data.support import Bank
from seguro.engine.model import load_model, take
from seguro.engine.runtime import Precision, Runtime
from seguro.inference import listing, novelty
from seguro.inference.annotated import Annotated
from seguro.inference.components import largest_components
from seguro.inference.decision import file_values, voxels
from seguro.inference.doubt import Doubt
from seguro.inference.ensemble import Ensemble, along, empty_label
from seguro.inference.fewshot import bind, refuse_unsupported, snapped
from seguro.inference.inputs import Item, Repair, from_paths, readable, refuse_unsafe
from seguro.inference.record import CaseProgress, Predicted, doubt_csv, load, plain, quality_csv, volumes_csv
from seguro.inference.refine import BLOCKS, refined
from seguro.inference.tiling import planned_slabs

__all__ = ["CaseProgress", "Predicted", "PredictionReport", "planned_slabs", "predict"]

SCHEMA = 1
RECORDS = ".cases"
"""Folder of one JSON file per finished case, from which a stopped command goes on."""


@dataclass(frozen=True)
class PredictionReport:
    """What `predict` did."""

    out: Path
    cases: tuple[Predicted, ...]
    failed: Mapping[str, str]
    """Case id -> why it could not be predicted."""
    reused: tuple[str, ...]
    """Cases that were there already, made from the same input with the same models and options."""
    outputs: Mapping[str, str]
    """Path relative to `out` -> SHA-256."""
    warnings: tuple[str, ...]
    items: tuple[Item, ...]
    """What was to be predicted, to be read again."""
    classes: Classes

    @property
    def exit_code(self) -> int:
        """0, or 2 when a case failed."""
        return DataError.exit_code if self.failed else 0


def predict(
    models: Sequence[Path],
    inputs: Path | Sequence[Path] | Sequence[Item],
    out: Path,
    *,
    device: str = "cpu",
    precision: Precision = "32",
    flips: bool = False,
    overlap: float | None = None,
    probabilities: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    spacing: ThreeF | None = None,
    repair: Repair | None = None,
    support: Bank | None = None,
    snap: float = 0.0,
    largest: bool = False,
    way: str | None = None,
    doubt: bool = False,
    second: Path | None = None,
    blocks: int = BLOCKS,
    progress: Callable[[CaseProgress], None] | None = None,
    warnings: Warnings | None = None,
) -> PredictionReport:
    """Segment images with one model or several and write labels, volumes and a list of what was done.

    A case that cannot be used is listed with the reason while the others go on. Finished cases are recorded
    one by one, and the same command goes on where it was stopped. One image is in memory at a time, and its
    scores never as a whole (except with `probabilities`, which are written as one file).

    Args:
        models: run or model folders; several are an ensemble whose probabilities are averaged.
        inputs: a file, files, a folder of images, or items.
        out: where to write; never the folder of the inputs.
        device: auto, cpu, cuda, cuda:N.
        precision: of the forward passes.
        flips: average over the axes that the plan mirrors; 2, 4 or 8 passes for 1, 2 or 3 of them.
        overlap: of windows, instead of the model's own.
        probabilities: also write `probabilities/<id>` (float32, one per class).
        batch: windows or slices per call.
        threads: CPU threads of torch; its own default when not given.
        spacing: (z, y, x) for files that state none.
        repair: "nan=min" replaces NaN and infinite voxels of files; items are repaired as checked.
        support: annotated examples, for methods that segment what these show.
        snap: how far probabilities are drawn to the mean of their superpixel, 0 to 1.
        largest: keep only the largest connected part of each class.
        way: of an adapted model, intra, inter or ensemble; its run's when not given.
        doubt: also write `doubt/<id>` (percent, 0 to 100) and doubt.csv: which slices to look at first.
        second: run or model that does the most uncertain blocks of whole-volume predictions again.
        blocks: how many, at most.
        progress: told where the work stands.
        warnings: collects notes for the end of the command.

    Raises:
        ConfigError: models that do not go together, or an output folder inside the inputs or of other ones.
        DataError: no usable model, or nothing to predict.
        RunError: another process works in `out`, the disk is full, the device's memory too small.
    """
    warnings = Warnings() if warnings is None else warnings
    if threads is not None:
        torch.set_num_threads(threads)
    runtime = Runtime(device, precision)
    loaded = [load_model(path, runtime.device) for path in models]
    if way is not None:
        for model in loaded:
            take(model, way)
    if second is not None:
        fine = load_model(second, runtime.device)
        loaded = [refined(m, fine, blocks=blocks) for m in loaded]
    seen = None
    if support is not None:
        loaded = [bind(m, support) for m in loaded]
        seen = Annotated(support, loaded, warnings)
    refuse_unsupported(loaded)
    ensemble = Ensemble(
        [snapped(m, snap) for m in loaded] if snap else loaded,
        device=runtime.device,
        flips=flips,
        overlap=overlap,
        batch=batch,
        autocast=runtime.autocast,
    )
    items = _items(inputs, len(ensemble.channels), spacing, repair, warnings)
    listing.refuse_inside(inputs, items, out)
    if flips:
        _warn_unflipped(ensemble, warnings)
    options = {
        "flips": flips,
        "overlap": overlap,
        "batch": batch,
        "precision": precision,
        "device": runtime.device.type,
        "probabilities": probabilities,
        # only where they were given: predictions from before there were these options keep their key
        **{k: v for k, v in {"snap": snap, "largest": largest, "way": way, "doubt": doubt}.items() if v},
        **({"support": support.hash} if support else {}),
    }
    with locked(out):
        told = {"spacing": spacing, "repair": repair}
        job = _Job(ensemble, out, options, warnings, progress, told, seen)
        listing.refuse_other(out, models=job.models, inputs=listing.sources(items))
        return job.run(items)


def _items(
    inputs: Path | Sequence[Path] | Sequence[Item],
    channels: int,
    spacing: ThreeF | None,
    repair: Repair | None,
    warnings: Warnings,
) -> list[Item]:
    if not isinstance(inputs, Path) and inputs and all(isinstance(i, Item) for i in inputs):
        return list(cast(Sequence[Item], inputs))
    paths = cast("Path | Sequence[Path]", inputs)
    return from_paths(paths, channels=channels, spacing=spacing, repair=repair, warnings=warnings)


def _warn_unflipped(ensemble: Ensemble, warnings: Warnings) -> None:
    """Say which models no flip is averaged for."""
    for model in ensemble.models:
        if not model.plan.mirror:
            warnings.add(f"{model.folder}: flips have no effect, its plan mirrors no axis")


class _Job:
    """One call of `predict`: what is the same for all its cases."""

    def __init__(
        self,
        ensemble: Ensemble,
        out: Path,
        options: Mapping[str, Any],
        warnings: Warnings,
        progress: Callable[[CaseProgress], None] | None,
        told: Mapping[str, Any],
        seen: Annotated | None,
    ) -> None:
        self.told = told
        self.seen = seen
        self.ensemble = ensemble
        self.out = out
        self.options = options
        self.warnings = warnings
        self.progress = progress
        self.models = [m.sha256 for m in ensemble.models]

    def run(self, items: Sequence[Item]) -> PredictionReport:
        done: list[Predicted] = []
        failed: dict[str, str] = {}
        reused: list[str] = []
        for index, item in enumerate(items):
            tell = self._teller(index, len(items), item.id)
            tell(0.0)
            try:
                case = self._finished(item)
                if case is None:
                    case = self._predict(item, tell)
                else:
                    reused.append(item.id)
                done.append(case)
            except DataError as error:
                failed[item.id] = self._reason(item, error)
                if readable(item):
                    self._forget(item)
            tell(1.0)
        outputs = self._write(items, done, failed)
        return PredictionReport(
            self.out,
            tuple(done),
            failed,
            tuple(reused),
            outputs,
            tuple(self.warnings.lines()),
            tuple(items),
            self.ensemble.classes,
        )

    def _teller(self, index: int, total: int, case: str) -> Callable[[float], None]:
        def tell(fraction: float) -> None:
            if self.progress:
                self.progress(CaseProgress(index, total, case, fraction))

        return tell

    def _key(self, item: Item, inputs: Sequence[str]) -> str:
        return sha256_json(
            {
                "inputs": list(inputs),
                "read": dict(item.options),
                "models": self.models,
                "options": dict(self.options),
                "schema": SCHEMA,
            }
        )

    def _record(self, item: Item) -> Path:
        return self.out / RECORDS / f"{sha256_json(item.id)[:16]}.json"

    def _finished(self, item: Item) -> Predicted | None:
        """Return the case if it was predicted here from the same input in the same way, files intact."""
        case = load(self._record(item))
        if case is None or case.id != item.id:
            return None
        try:
            same = case.key == self._key(item, [sha256_file(f) for f in item.files])
            same = same and all(sha256_file(self.out / name) == digest for name, digest in case.files.items())
        except OSError:
            return None
        return case if same else None

    def _predict(self, item: Item, tell: Callable[[float], None]) -> Predicted:
        start = time.monotonic()
        refuse_unsafe(item.id)
        volume = item.read()
        doubt = Doubt(volume, self.ensemble) if self.options.get("doubt") else None
        label, p = self._segment(volume, tell, doubt)
        files: dict[str, str] = {}
        notes, suffix = volume.notes, volume.source.suffix
        if self.options.get("largest"):
            label, gone = largest_components(label)
            notes = (*notes, f"{gone} voxels outside the largest parts removed")
        cycle = None
        if self.seen is not None:
            label, kept, cycle = self.seen.settle(volume, label)
            notes = (*notes, *([f"{kept} slices are as they were annotated"] if kept else []))
        targets = [write_label(self.out / f"{item.id}{suffix}", label, volume.source)]
        if p is not None:
            ending = suffix if volume.source.kind == "nifti" else ".npy"
            targets.append(
                write_scores(self.out / listing.PROBABILITIES / f"{item.id}{ending}", p, volume.source)
            )
        slices = None
        if doubt is not None:
            doubt.clear(() if self.seen is None else self.seen.slices(volume))
            targets.append(
                write_label(self.out / listing.DOUBT / f"{item.id}{suffix}", doubt.percent, volume.source)
            )
            slices = doubt.slices()
        for path in targets:
            files[path.relative_to(self.out).as_posix()] = sha256_file(path)
        count = voxels(label, self.ensemble.classes)
        ml = None if volume.grid.unit == "px" else {n: c * volume.grid.voxel_ml for n, c in count.items()}
        case = Predicted(
            item.id, self._key(item, volume.sha256), volume.sha256, files, count, ml,
            self._flags(volume, ml, cycle), notes, round(time.monotonic() - start, 2), cycle, slices,
        )  # fmt: skip
        self._remove(item, keep=files)
        write_json(self._record(item), plain(case))
        return case

    def _segment(
        self, volume: Volume, tell: Callable[[float], None], doubt: Doubt | None
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32] | None]:
        """Return the native label (Z, Y, X) and, if wanted, the probabilities (classes, Z, Y, X)."""
        classes, shape = self.ensemble.classes, volume.grid.shape
        label = empty_label(self.ensemble, shape)
        kept = np.empty((classes.n, *shape), dtype=np.float32) if self.options["probabilities"] else None
        try:
            with torch.inference_mode():
                axis, blocks = self.ensemble.probabilities(volume)
                for start, stop, p in blocks:
                    where = along(axis, start, stop)
                    label[where] = file_values(p, classes)
                    if doubt is not None:
                        doubt.add(axis, start, p)
                    if kept is not None:
                        kept[(slice(None), *where)] = p.cpu().numpy()
                    tell(stop / shape[axis])
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"an image of {shape} voxels does not fit into memory; use --device cpu or less --batch"
            ) from error
        return label, kept

    def _flags(
        self, volume: Volume, ml: Mapping[str, float] | None, cycle: Mapping[str, float | None] | None
    ) -> tuple[str, ...]:
        lines: dict[str, None] = dict.fromkeys(self.seen.flags(cycle, ml) if self.seen else ())
        for model in self.ensemble.models:
            lines |= dict.fromkeys(
                novelty.flags(volume, model.plan) + novelty.volume_flags(ml or {}, model.plan)
            )
        return tuple(lines)

    def _reason(self, item: Item, error: DataError) -> str:
        """Return the message, with the file's path in front where it does not name it."""
        text = str(error)
        return text if any(str(f) in text for f in item.files) else f"{item.files[0]}: {text}"

    def _forget(self, item: Item) -> None:
        """Remove what an earlier, usable version of the input left here: it is no prediction of this one."""
        self._remove(item)
        self._record(item).unlink(missing_ok=True)

    def _remove(self, item: Item, *, keep: Container[str] = ()) -> None:
        """Remove the files that the last prediction of a case wrote, besides those to `keep`."""
        old = load(self._record(item))
        for name in old.files if old else ():
            if name not in keep:
                (self.out / name).unlink(missing_ok=True)

    def _write(
        self, items: Sequence[Item], done: Sequence[Predicted], failed: Mapping[str, str]
    ) -> dict[str, str]:
        """Write volumes.csv, predictions.json and stage.json; return the hashes of the outputs."""
        tables = {
            "volumes.csv": volumes_csv(done),
            "quality.csv": quality_csv(done),
            "doubt.csv": doubt_csv(done),
        }
        for name, text in tables.items():
            if text:
                write_text(self.out / name, text)
        write_json(
            self.out / listing.FILE,
            {
                "cases": {c.id: listing.entry(c) for c in done},
                "failed": dict(failed),
                "inputs": listing.sources(items),
                "models": self.models,
                "classes": self.ensemble.classes.model_dump(mode="json"),
                "options": dict(self.options),
            },
        )
        reads = {f"model/{i}": sha for i, sha in enumerate(self.models)}
        reads |= {f"case/{c.id}": c.key for c in done}
        stage = Stage(self.out, "predict", reads=reads, config=self.options, schema=SCHEMA)
        files = [self.out / name for c in done for name in c.files]
        return stage.finish(
            [*(self.out / name for name, text in tables.items() if text), *files],
            failed=dict(failed),
            n_cases=len(items),
            warnings=self.warnings.lines(),
            **self.told,
        )
