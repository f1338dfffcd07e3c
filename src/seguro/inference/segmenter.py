"""Trained models for use from Python: `load(run).predict(image)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seguro.core.types import Classes, Volume
from seguro.data.formats import read_image
from seguro.engine.model import Model, load_model
from seguro.inference.ensemble import Ensemble


class Segmenter:
    """A trained model, or several as an ensemble, for use from Python.

    Args:
        models: loaded models of the same task, on `device`.
        device: where they are.
    """

    def __init__(self, models: Sequence[Model], device: str = "cpu") -> None:
        self.models = tuple(models)
        self._ensemble = Ensemble(models, device=device)

    @property
    def classes(self) -> Classes:
        """The classes that it segments."""
        return self._ensemble.classes

    def predict(self, image: Volume | Path | str | Sequence[Path | str]) -> Volume:
        """Return the label (Z, Y, X) of file values on the image's own grid.

        Args:
            image: a volume, a file, or one file per channel. Save the result with
                `seguro.data.formats.write_label(path, label.array, label.source)`.

        Raises:
            DataError: a file that cannot be used, or other channels than the model's.
        """
        if not isinstance(image, Volume):
            files = [image] if isinstance(image, str | Path) else list(image)
            image = read_image([Path(f) for f in files], channels=len(self._ensemble.channels))
        return Volume(self._ensemble.label(image), image.grid, image.source)


def load(*paths: Path | str, device: str = "cpu") -> Segmenter:
    """Return the model of a run or model folder, ready to predict; several paths give an ensemble.

    Raises:
        DataError: no model there, or a damaged one.

    Example:
        >>> load("brains.seguro/runs/demo").predict("scan.nii.gz")  # doctest: +SKIP
    """
    return Segmenter([load_model(Path(p), device) for p in paths], device)
