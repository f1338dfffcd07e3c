"""The server's weights on disk: checkpoints that a run goes on from, and those of the best round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seguro.engine import checkpoint as checkpoints
from seguro.engine.checkpoint import Checkpoint
from seguro.federated.downlink import LEFT
from seguro.federated.message import Arrays


class Saved:
    """The weights in `folder`; those of a best round that was not saved in its time lie in `folder`/best.

    They lie apart since no site has its state of that round on disk: nobody can go on from it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_folder = folder / "best"

    def rounds(self) -> dict[int, Path]:
        """Return where the weights of each round on disk lie."""
        folders = (self.best_folder, self.folder)
        return {number: folder for folder in folders for number in checkpoints.updates(folder)}

    def weights(self, number: int) -> Arrays:
        """Return the weights of a round; DataError where the file is damaged."""
        found = checkpoints.load(self.rounds()[number], number)
        return {k: v.numpy() for k, v in found.tensors.items() if not k.startswith(LEFT)}

    def save(
        self, number: int, arrays: Arrays, facts: Mapping[str, Any], *, best: int | None, best_arrays: Arrays
    ) -> None:
        """Write the weights of a round, and before them those of the best one where they are not on disk."""
        if best and best != number and best not in self.rounds():
            checkpoints.save(self.best_folder, _checkpoint(best, best_arrays, {}), best=None)
        checkpoints.save(self.folder, _checkpoint(number, arrays, facts), best=best)

    def forget_after(self, number: int) -> None:
        """Remove best weights of later rounds: of a future that was lost and is done again."""
        for later in checkpoints.updates(self.best_folder):
            if later > number:
                checkpoints.remove(self.best_folder, later)


def _checkpoint(number: int, arrays: Arrays, facts: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(number, {k: torch.from_numpy(v) for k, v in arrays.items()}, facts)
