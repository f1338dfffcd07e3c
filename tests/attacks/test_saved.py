"""FAULTS 41: the bound of an attacked volume is checked on the file that was written."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.attacks import saved
from seguro.attacks.saved import save_volumes
from seguro.core.errors import RunError
from seguro.core.types import Grid
from seguro.data.formats import read_image

BOUND = (0.5, 40.0)
"""In file units: two channels, of which the file has 1 and 100 units to one scaled unit."""
SCALES = ((1.0, 0.0), (100.0, -1000.0))


def volumes(change: float):
    """A clean volume (2, 3, 4, 5) in scaled units, and one whose second channel is changed at one voxel."""
    clean = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    clean[1, 2, 1, 3] = 0.2  # -980 in the file
    attacked = clean.copy()
    attacked[1, 2, 1, 3] += change
    return clean, attacked


def save(folder, change: float):
    grid = Grid((3, 4, 5), np.diag([2.0, 2.0, 3.0, 1.0]))
    return save_volumes(folder, "c", "eps8", *volumes(change), SCALES, grid, BOUND)


def test_volumes_are_in_file_units_on_the_planned_grid(tmp_path):
    clean, attacked = (read_image([p], channels=2) for p in save(tmp_path, 0.4))
    assert clean.grid.spacing == pytest.approx((3, 2, 2)) and clean.grid.shape == (3, 4, 5)
    expected = volumes(0)[0] * np.array([1, 100]).reshape(2, 1, 1, 1) + np.array([0, -1000]).reshape(
        2, 1, 1, 1
    )
    np.testing.assert_allclose(clean.array, expected, rtol=1e-5, atol=1e-4)
    difference = attacked.array - clean.array
    assert difference[1, 2, 1, 3] == pytest.approx(40, abs=1e-3) and np.count_nonzero(difference) == 1


def test_a_file_beyond_the_bound_is_refused_and_not_left(tmp_path):
    with pytest.raises(RunError, match=r"c_eps8.*channel 1 differs by 41.* bound 40"):
        save(tmp_path, 0.41)
    assert [p.name for p in tmp_path.iterdir()] == ["c_clean.nii.gz"]


def test_a_cast_that_breaks_the_bound_is_seen_on_the_file(tmp_path, monkeypatch):
    """Inside the ball in memory, beyond it once whole hundreds were written."""
    write = saved._write

    def coarse(path, image, grid):
        write(path, (image / 100).round() * 100, grid)

    monkeypatch.setattr(saved, "_write", coarse)
    with pytest.raises(RunError, match="channel 1 differs by 100"):
        save(tmp_path, 0.39)
    assert not (tmp_path / "c_eps8.nii.gz").exists()
