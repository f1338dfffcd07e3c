"""Who trains, who validates and who is tested, where a paper gives only shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seguro.core.errors import ConfigError
from seguro.core.files import write_json
from seguro.core.seeds import generator
from seguro.data.folds import SPLITS

SCHEMES = ("8/2", "6/2/2", "5-fold")
N_FOLDS = 5


@dataclass(frozen=True)
class Division:
    """Ids of the cases on each side; `folds` is empty where the planner may make its own."""

    train: tuple[str, ...]
    """Validation cases of the folds among them."""
    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...] = ()
    """Validation cases of each fold; its training cases are the others."""

    def write(self, folder: Path) -> None:
        """Write the folds as `splits_final.json`, if there are any."""
        if self.folds:
            splits = [
                {"train": sorted(set(self.train) - set(held_out)), "val": sorted(held_out)}
                for held_out in self.folds
            ]
            write_json(folder / SPLITS, splits)


def divide(ids: Sequence[str], scheme: str, *, seed: int | None = None) -> Division:
    """Return the cases on each side.

    8/2: four fifths train, the rest is the test set. 6/2/2: three fifths train, one validates (fold 0), one
    is the test set. 5-fold: every case validates once, none is set apart. Of 369 cases these are 295 and 74,
    and 222, 74 and 73, as for BraTS 2020 in PFSeg.

    Args:
        ids: of all cases.
        scheme: one of SCHEMES.
        seed: of a random order; None takes them as sorted, which is what PFSeg's code does.

    Raises:
        ConfigError: an unknown scheme, or too few cases for it.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"split {scheme!r}: expected {', '.join(SCHEMES)}")
    order = sorted(ids)
    n = len(order)
    if n < N_FOLDS:
        raise ConfigError(f"split {scheme} of {n} case(s): at least {N_FOLDS} are needed")
    if seed is not None:
        order = [order[i] for i in generator(seed, "division").permutation(n)]
    if scheme == "8/2":
        n_train = n * 8 // 10
        return Division(tuple(order[:n_train]), tuple(order[n_train:]))
    if scheme == "6/2/2":
        n_test = n // 5
        n_validation = (2 * n + 5) // 10  # a fifth, rounded
        rest = tuple(order[: n - n_test])
        return Division(rest, tuple(order[n - n_test :]), (rest[len(rest) - n_validation :],))
    return Division(tuple(order), (), tuple(tuple(order[k::N_FOLDS]) for k in range(N_FOLDS)))
