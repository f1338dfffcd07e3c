"""B1-B3: the intensities of a CT are those of all foreground voxels together, each channel by itself."""

from __future__ import annotations

import numpy as np
import pytest

from seguro import api
from seguro.data import phantom
from seguro.data.formats import read_image, read_label
from seguro.data.manifest import load, read_case
from seguro.data.planner import PlanOptions, _channel
from seguro.data.preprocess import to_planned


def test_mean_and_deviation_are_pooled_over_voxels_and_bound_the_scaled_data(tmp_path):
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_test=0, seed=1, modality="CT", jitter=3)
    inside = []
    for i, path in enumerate(sorted((data / "imagesTr").iterdir())):
        array = read_image([path]).array * (1 + i) - 1000
        phantom.write_nifti(path, array)
        inside.append(array[0][read_label(data / "labelsTr" / path.name).array > 0])
    low, high = np.percentile(np.concatenate(inside), (0.5, 99.5))
    pooled = np.clip(np.concatenate(inside).astype(np.float64), low, high)
    _, _, plan = api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.02))
    (ct,) = plan.channels
    assert (ct.low, ct.high) == pytest.approx((low, high), rel=1e-6)
    assert (ct.mean, ct.sd) == pytest.approx((pooled.mean(), pooled.std()), rel=1e-5)  # float32 sums
    manifest = load(tmp_path / "w" / "check" / "manifest.json")
    for case in manifest.of("train"):
        image, _ = to_planned(read_case(case, manifest), plan)
        assert (low - ct.mean) / ct.sd - 1e-4 <= image.min() <= image.max() <= (high - ct.mean) / ct.sd + 1e-4


def test_two_channels_of_ct_have_their_own_deviation():
    from seguro.core.types import Grid
    from seguro.data.fingerprint import Measured

    rng = np.random.default_rng(0)
    values = [(rng.normal(size=(2, n)) * [[30], [300]]).astype(np.float32) for n in (500, 2000)]
    cases = [Measured(Grid((1, 1, 1), np.eye(4)), ({}, {}), (-1000, -1000), v, {}) for v in values]
    for i in range(2):
        x = np.concatenate([v[i] for v in values]).astype(np.float64)
        made = _channel("CT", i, cases, [])
        assert made.sd == pytest.approx(np.clip(x, *np.percentile(x, (0.5, 99.5))).std(), rel=1e-5)
