"""Splits by share: the published counts, nobody on two sides, seeds."""

from __future__ import annotations

import pytest

from seguro.core.errors import ConfigError
from seguro.data.importers.division import SCHEMES, divide

IDS = [f"case{i:03d}" for i in range(369)]


def test_published_counts_in_sorted_order():
    halves = divide(IDS, "8/2")
    assert (len(halves.train), len(halves.test), halves.folds) == (295, 74, ())
    assert halves.train == tuple(IDS[:295])
    thirds = divide(IDS, "6/2/2")
    (validation,) = thirds.folds
    assert (len(thirds.train) - len(validation), len(validation), len(thirds.test)) == (222, 74, 73)
    assert (validation, thirds.test) == (tuple(IDS[222:296]), tuple(IDS[296:]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [5, 6, 7, 9, 10, 16, 123])
@pytest.mark.parametrize("seed", [None, 0, 1], ids=str)
def test_every_case_is_on_one_side(scheme, n, seed):
    sides = divide(IDS[:n], scheme, seed=seed)
    assert sorted((*sides.train, *sides.test)) == IDS[:n]
    for held_out in sides.folds:
        assert held_out and set(held_out) < set(sides.train)
    if scheme == "5-fold":
        assert sorted(i for f in sides.folds for i in f) == IDS[:n]


def test_the_order_does_not_matter_and_the_seed_does():
    assert divide(IDS[::-1], "8/2", seed=3) == divide(IDS, "8/2", seed=3)
    assert divide(IDS, "8/2", seed=3) != divide(IDS, "8/2", seed=4)


@pytest.mark.parametrize(("ids", "scheme"), [(IDS, "7/3"), (IDS[:4], "8/2")], ids=["scheme", "few"])
def test_bad_splits_are_refused(ids, scheme):
    with pytest.raises(ConfigError, match="split"):
        divide(ids, scheme)
