"""Averages against values worked out by hand, and what is rejected before them."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.federated import aggregate

FEDAVG = 1e-6
"""Relative to float32 values of order one: one rounding of a float64 sum."""


def updates(n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {"w": rng.normal(size=(5, 4)).astype(np.float32), "n": np.array(int(rng.integers(100)), np.int64)}
        for _ in range(n)
    ]


def test_the_weighted_mean_is_the_one_by_hand():
    found, weights = updates(3), [5.0, 1.0, 2.0]
    mean = aggregate.mean(found, weights)
    by_hand = sum(w * u["w"].astype(np.float64) for w, u in zip(weights, found, strict=True)) / 8
    assert np.abs(mean["w"] - by_hand).max() < FEDAVG
    assert mean["w"].dtype == np.float32
    assert mean["n"] == round(sum(w * int(u["n"]) for w, u in zip(weights, found, strict=True)) / 8)
    assert mean["n"].dtype == np.int64 and mean["n"].shape == ()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], ids=["equal", "all-zero"])
def test_equal_weights_and_none_at_all_are_the_plain_mean(weights):
    found = updates(3)
    plain = np.mean([u["w"] for u in found], axis=0, dtype=np.float64)
    assert np.abs(aggregate.mean(found, weights)["w"] - plain).max() < FEDAVG


def test_one_site_is_its_own_mean():
    (found,) = updates(1)
    for mean in (aggregate.mean([found], [3.0]), aggregate.trimmed([found], 0.2)):
        assert all(np.array_equal(mean[k], found[k]) for k in found)


@pytest.mark.parametrize(
    ("n", "share", "dropped"),
    [(5, 0.2, 1), (10, 0.2, 2), (3, 0.1, 1), (4, 0.0, 0), (2, 0.4, 0), (100, 0.29, 29)],
)
def test_the_trimmed_mean_drops_so_many_at_either_end(n, share, dropped):
    found = updates(n)
    ordered = np.sort(np.stack([u["w"] for u in found]), axis=0).astype(np.float64)
    kept = ordered[dropped : n - dropped].mean(0)
    assert np.abs(aggregate.trimmed(found, share)["w"] - kept).max() < FEDAVG


def test_one_hostile_site_of_five_moves_the_trimmed_mean_within_the_honest_ones_only():
    honest = updates(4)
    low, high = (f(np.stack([u["w"] for u in honest]), axis=0) for f in (np.min, np.max))
    hostile = {"w": np.full((5, 4), -1e6, np.float32), "n": np.array(10**9, np.int64)}
    trimmed = aggregate.trimmed([*honest, hostile], 0.2)["w"]
    assert ((trimmed >= low) & (trimmed <= high)).all()
    assert aggregate.mean([*honest, hostile], [1.0] * 5)["w"].max() < -1e5


def test_a_long_change_is_shortened_to_the_bound_and_keeps_its_direction():
    changes = [{"w": np.array([x, 0.0], np.float32), "n": np.array(1)} for x in (1.0, 2.0, 100.0)]
    found = aggregate.bounded(changes, 1.5)
    assert [float(c["w"][0]) for c in found] == pytest.approx([1.0, 2.0, 3.0])
    assert all(c["n"] == 1 for c in found)


def test_no_change_at_all_can_be_bounded():
    still = [{"w": np.zeros(2, np.float32)}] * 2
    assert all((c["w"] == 0).all() for c in aggregate.bounded(still, 1.0))


def test_the_distance_is_the_length_of_the_change_whatever_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    old, new = ({"w": rng.normal(size=(7, 11)).astype(np.float32), "n": np.array(k)} for k in (1, 5))
    expected = np.linalg.norm(new["w"].astype(np.float64) - old["w"])
    means = []
    for block in (4, 1 << 15):
        monkeypatch.setattr(aggregate, "BLOCK", block)
        assert aggregate.distance(new, old) == pytest.approx(expected, rel=1e-6)  # float32 in a block
        means.append(aggregate.mean([old, new], [1.0, 3.0]))
    assert all(np.array_equal(means[0][k], means[1][k]) for k in old)


def test_the_distance_is_right_where_squares_leave_float32():
    far = {"w": np.array([3e30, 0.0, 4e30], np.float32)}
    assert aggregate.distance(far, {"w": np.zeros(3, np.float32)}) == pytest.approx(5e30)
    near = {"w": np.array([1.0 + 1e-9])}
    assert aggregate.distance(near, {"w": np.ones(1)}) == pytest.approx(1e-9, rel=1e-6)
    assert aggregate.check("north", far, {"w": np.zeros(3, np.float32)}) == pytest.approx(5e30)


def test_old_and_change_give_new():
    old, new = updates(2)
    back = aggregate.moved(old, aggregate.change(new, old))
    assert np.abs(back["w"] - new["w"]).max() < FEDAVG and back["n"] == new["n"]


def bad(kind: str) -> dict[str, np.ndarray]:
    (found,) = updates(1)
    if kind == "missing":
        del found["n"]
    elif kind == "further":
        found["image"] = np.zeros(3, np.float32)
    elif kind == "shape":
        found["w"] = found["w"].T.copy()
    elif kind == "type":
        found["w"] = found["w"].astype(np.float64)
    else:
        found["w"][2, 1] = {"nan": np.nan, "infinite": -np.inf}[kind]
    return found


@pytest.mark.parametrize("kind", ["missing", "further", "shape", "type", "nan", "infinite"])
def test_arrays_that_do_not_fit_are_refused_and_the_site_named(kind):
    with pytest.raises(DataError, match="site north"):
        aggregate.check("north", bad(kind), updates(1)[0])


def test_arrays_that_fit_pass():
    new, old = updates(1, seed=5)[0], updates(1)[0]
    assert aggregate.check("north", new, old) == pytest.approx(aggregate.distance(new, old)) != 0
