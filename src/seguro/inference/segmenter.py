"""Trained models for use from Python: `load(run).predict(image)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError
from seguro.core.types import Classes, Volume, Warnings
from seguro.data.formats import read_image
from seguro.data.shots import SliceChoice, read_shots
from seguro.data.support import Bank, extended
from seguro.engine.model import Model, load_model
from seguro.inference.annotated import Annotated
from seguro.inference.ensemble import Ensemble
from seguro.inference.fewshot import bind, refuse_unsupported, shot_of


class Segmenter:
    """A trained model, or several as an ensemble, for use from Python.

    Args:
        models: loaded models of the same task, on `device`.
        device: where they are.
    """

    def __init__(self, models: Sequence[Model], device: str = "cpu") -> None:
        self.models = tuple(models)
        self._device = device
        self._ensemble = Ensemble(models, device=device)

    @property
    def classes(self) -> Classes:
        """The classes that it segments."""
        return self._ensemble.classes

    def predict(
        self, image: Volume | Path | str | Sequence[Path | str], *, support: Bank | None = None
    ) -> Volume:
        """Return the label (Z, Y, X) of file values on the image's own grid.

        With a support its `notes` say what makes the result doubtful: a support unlike the training data, and
        classes that were not found or do not lead back to it.

        Args:
            image: a volume, a file, or one file per channel. Save the result with
                `seguro.data.formats.write_label(path, label.array, label.source)`.
            support: annotated examples, for methods that segment what these show: see `support`.

        Raises:
            ConfigError: a method that needs a support without one, or the reverse.
            DataError: a file that cannot be used, or other channels than the model's.
        """
        image = self._read(image)
        if support is None:
            refuse_unsupported(self.models)
            return Volume(self._ensemble.label(image), image.grid, image.source)
        bound = [bind(m, support) for m in self.models]
        label = Ensemble(bound, device=self._device).label(image)
        warnings = Warnings()
        seen = Annotated(support, bound, warnings)
        label, _, cycle = seen.settle(image, label)
        return Volume(label, image.grid, image.source, notes=(*warnings.lines(), *seen.flags(cycle, None)))

    def support(
        self,
        *pairs: tuple[Path | str, Path | str],
        classes: Mapping[str, int] | None = None,
        slices: SliceChoice = "auto",
    ) -> Bank:
        """Return annotated examples, each an image and a mask, to predict with.

        Args:
            pairs: (image, mask) files.
            classes: name -> value in the masks; all values of the masks when not given.
            slices: which slices of the masks were annotated: auto, labelled, all, or numbers as in the file.

        Raises:
            DataError: an empty or full mask, a mask in the place of an image, a damaged file.

        Example:
            >>> model = load("abdomens.seguro/runs/alpnet")  # doctest: +SKIP
            >>> liver = model.support(("a.nii.gz", "a-liver.nii.gz"))  # doctest: +SKIP
            >>> model.predict("b.nii.gz", support=liver)  # doctest: +SKIP
        """
        plan = self.models[0].plan
        files = [([Path(image)], Path(mask)) for image, mask in pairs]
        named, shots = read_shots(
            files,
            channels=len(plan.channels),
            axis=plan.slice_axis,
            known=plan.classes,
            named=classes,
            slices=slices,
        )
        bank = None
        for shot, _ in shots:
            bank = extended(bank, shot, named)
        return cast(Bank, bank)

    def correct(
        self,
        support: Bank,
        image: Volume | Path | str | Sequence[Path | str],
        label: NDArray[np.integer],
        slices: Sequence[int],
    ) -> Bank:
        """Return the support with corrected slices of a query; the one given is unchanged: undo is to use it.

        Args:
            support: that the query was predicted with.
            image: the query.
            label: (Z, Y, X) file values, right on `slices`.
            slices: canonical numbers of the corrected slices.

        Raises:
            ConfigError: a label of another shape, or no slice.
        """
        volume = self._read(image)
        if label.shape != volume.grid.shape or not slices:
            raise ConfigError(
                f"a correction of {len(slices)} slices and shape {label.shape}; expected at least one and "
                f"{volume.grid.shape}, the shape of the query"
            )
        shot = shot_of(volume, label, slices, support.classes, self.models[0].plan.slice_axis)
        return extended(support, shot, support.classes)

    def _read(self, image: Volume | Path | str | Sequence[Path | str]) -> Volume:
        if isinstance(image, Volume):
            return image
        files = [image] if isinstance(image, str | Path) else list(image)
        return read_image([Path(f) for f in files], channels=len(self._ensemble.channels))


def load(*paths: Path | str, device: str = "cpu") -> Segmenter:
    """Return the model of a run or model folder, ready to predict; several paths give an ensemble.

    Raises:
        DataError: no model there, or a damaged one.

    Example:
        >>> load("brains.seguro/runs/demo").predict("scan.nii.gz")  # doctest: +SKIP
    """
    return Segmenter([load_model(Path(p), device) for p in paths], device)
