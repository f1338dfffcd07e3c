"""Where a prediction may be wrong, by its own probabilities: which slice to look at, or to correct, next."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.core.types import Volume
from seguro.data.geometry import file_index
from seguro.inference.ensemble import Ensemble, along


class Doubt:
    """Collects the doubt of one case: at each voxel the probability that it is not what was decided.

    Summed over a slice that is the number of voxels expected to be wrong, as far as the probabilities are
    calibrated.

    Args:
        volume: the case.
        ensemble: that predicts it.

    Raises:
        ConfigError: models that slice along different axes.
    """

    def __init__(self, volume: Volume, ensemble: Ensemble) -> None:
        axes = {m.plan.slice_axis for m in ensemble.models}
        if len(axes) > 1:
            raise ConfigError("the models slice along different axes; ask for the doubt of each alone")
        self._axis = axes.pop()
        self._source = volume.source
        self._regions = ensemble.classes.regions
        n = volume.grid.shape[self._axis]
        self.percent = np.zeros(volume.grid.shape, np.uint8)
        """(Z, Y, X) doubt in percent."""
        self._wrong = np.zeros(n)
        self._foreground = np.zeros(n, np.int64)
        self._annotated: frozenset[int] = frozenset()

    def add(self, axis: int, start: int, p: Tensor) -> None:
        """Take a block of probabilities (classes, Z, Y, X) that begins at plane `start` along `axis`."""
        if self._regions:
            sure, found = 0.5 + (p - 0.5).abs().amin(dim=0), (p > 0.5).any(dim=0)
        else:
            sure, best = p.max(dim=0)
            found = best > 0
        doubt = (1 - sure).cpu().numpy()
        stop = start + p.shape[axis + 1]
        self.percent[along(axis, start, stop)] = np.rint(100 * doubt)
        plane = tuple(a for a in range(3) if a != self._axis)
        where = slice(start, stop) if axis == self._axis else slice(None)
        self._wrong[where] += doubt.sum(axis=plane, dtype=np.float64)
        self._foreground[where] += found.cpu().numpy().sum(axis=plane)

    def clear(self, annotated: Collection[int]) -> None:
        """Take out the canonical slices that somebody annotated: nothing of them is in doubt."""
        self._annotated = frozenset(annotated)
        for z in annotated:
            self.percent[along(self._axis, z, z + 1)] = 0
            self._wrong[z] = 0.0

    def slices(self) -> list[list[float]]:
        """Return rows of slice as the file counts, voxels expected wrong, foreground voxels, annotated."""
        return [
            [
                file_index(self._source, self._axis, z),
                round(float(self._wrong[z]), 3),
                int(self._foreground[z]),
                int(z in self._annotated),
            ]
            for z in range(len(self._wrong))
        ]
