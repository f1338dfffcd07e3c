"""What a support says of a case: slices that were annotated, and whether the prediction leads back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import IGNORE, Volume, Warnings
from seguro.data.support import Bank, annotated_slices
from seguro.engine.model import Model
from seguro.inference.fewshot import annotated_here, cycle_dice, quality_flags, support_flags
from seguro.inference.outline import outline_flags

SIZE_FACTOR = 3.0
"""How many times larger or smaller than in the support a class may be unflagged."""
FEW = 5
"""Labelled slices up to which a scan that counts as annotated throughout is asked about."""


class Annotated:
    """The support of one call of `predict`.

    Args:
        bank: the examples.
        models: bound to it.
        warnings: told where the examples are unlike the training data.
    """

    def __init__(self, bank: Bank, models: Sequence[Model], warnings: Warnings) -> None:
        self._bank = bank
        self._models = tuple(models)
        self._axis = models[0].plan.slice_axis
        for model in models:
            for line in support_flags(bank, model.plan):
                warnings.add(line)
        for line in few_flags(bank, self._axis):
            warnings.add(line)
        self._unfit = outline_flags(bank, self._axis)

    def settle(
        self, volume: Volume, label: NDArray[np.unsignedinteger]
    ) -> tuple[NDArray[np.unsignedinteger], int, dict[str, float | None]]:
        """Return the label with annotated voxels as annotated, the number of their slices, and cycle Dice.

        Args:
            volume: the case.
            label: (Z, Y, X) predicted file values.
        """
        cycles = [cycle_dice(m, volume, label) for m in self._models]
        mean: dict[str, float | None] = {}
        for name in cycles[0]:
            known = [v for c in cycles if (v := c[name]) is not None]
            mean[name] = round(float(np.mean(known)), 6) if known else None
        here = annotated_here(self._bank, volume)
        if here is None:
            return label, 0, mean
        values = np.array([v[0] for v in self._bank.classes.values], label.dtype)
        seen = here != IGNORE
        out = label.copy()
        out[seen] = values[here[seen]]
        return out, len(self.slices(volume)), mean

    def flags(self, cycle: Mapping[str, float | None] | None, ml: Mapping[str, float] | None) -> list[str]:
        """Return a sentence for each class whose result is not to be trusted without a look."""
        return [*self._unfit, *quality_flags(cycle or {}), *(self.size_flags(ml) if ml else ())]

    def size_flags(self, ml: Mapping[str, float]) -> list[str]:
        """Return a sentence for each class found much larger or smaller than the support shows it.

        Only scans that were annotated throughout say how large a class is.

        Args:
            ml: predicted volume of each class in millilitres; one not found is flagged elsewhere.
        """
        shown: dict[str, list[float]] = {}
        for shot in self._bank.shots:
            if (shot.label != IGNORE).all():
                for k, name in enumerate(self._bank.classes.names):
                    if k and (n := int((shot.label == k).sum())):
                        shown.setdefault(name, []).append(n * shot.grid.voxel_ml)
        return [
            f"{name}: {ml[name]:.4g} ml, the support shows {min(sizes):.4g} ml"
            + (f" to {max(sizes):.4g} ml" if len(sizes) > 1 else "")
            for name, sizes in shown.items()
            if ml[name] > 0 and not min(sizes) / SIZE_FACTOR <= ml[name] <= max(sizes) * SIZE_FACTOR
        ]

    def slices(self, volume: Volume) -> list[int]:
        """Return the canonical slices of a case that the support annotates."""
        here = annotated_here(self._bank, volume)
        return [] if here is None else annotated_slices(here, self._axis)


def few_flags(bank: Bank, axis: int) -> list[str]:
    """Return a sentence for each scan that counts as annotated throughout though few slices show a class.

    Where only those were annotated, the others would wrongly teach that the class is not there.
    """
    out = []
    plane = tuple(a for a in range(3) if a != axis)
    for i, shot in enumerate(bank.shots, start=1):
        n = shot.label.shape[axis]
        shows = int(((shot.label > 0) & (shot.label != IGNORE)).any(axis=plane).sum())
        if (shot.label != IGNORE).all() and shows <= min(FEW, n - 1):
            out.append(
                f"support {i}: all its {n} slices count as annotated, a class is on {shows}; "
                "if only these were annotated, give --support-slices labelled"
            )
    return out
