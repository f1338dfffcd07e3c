"""ROG's planning rules: the ten published plans, patches that always fit, the measurements behind them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguro import api
from seguro.core.errors import ConfigError, DataError
from seguro.data import phantom
from seguro.data.fingerprint import large_components
from seguro.data.planner import PlanOptions
from seguro.data.recipes import plan_strides, rog, rog_of
from seguro.networks.lattice import Lattice, strides_of

# median shape | box and volume of the small class | train, crop, validation, strides, total; all (x, y, z)
PUBLISHED = """
Brain    240,240,155  35,44,38   16165  128,128,96 148,148,96 128,128,96 111,222,222 16,16,16
Heart    320,320,115  41,58,68   46751  192,192,96 212,212,96 192,192,96 221,222,222 32,32,16
Liver    512,512,160  73,70,42   365130 192,192,96 212,212,96 256,256,96 221,222,222 32,32,16
Hippo    35,50,36     19,23,20   1580   32,48,32   32,48,32   32,48,32   111,111,222 8,8,8
Prostate 320,320,20   87,57,10   13444  96,96,16   116,116,16 192,192,16 111,221,221 16,16,4
Lung     512,512,160  45,47,24   28660  192,192,96 212,212,96 256,256,96 221,222,222 32,32,16
Pancreas 512,512,95.5 34,31,10   7992   192,128,64 212,148,84 256,256,64 211,221,222 32,16,8
Vessel   512,512,45   87,75,15   6368   96,96,32   116,116,32 256,256,32 111,221,222 16,16,8
Spleen   512,512,60   121,120,18 77158  192,192,48 212,212,48 256,256,48 221,221,222 32,32,8
Colon    512,512,90   62,61,9    11750  192,192,64 212,212,84 256,256,64 221,221,222 32,32,8
"""
ROWS = [line.split() for line in PUBLISHED.strip().splitlines()]
SIZES = st.tuples(*[st.integers(4, 700)] * 3)


def whole(text):
    return tuple(int(n) for n in text.split(","))


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
@pytest.mark.parametrize("official", [False, True])
def test_the_ten_published_plans(row, official):
    median, box = (tuple(float(n) for n in text.split(",")) for text in row[1:3])
    made = rog(median, box, float(row[3]), official=official)
    assert (made.train, made.crop, made.val) == tuple(whole(t) for t in row[4:7])
    assert made.strides == tuple(tuple(int(f) for f in s) for s in row[7].split(","))
    assert made.total == whole(row[8])

    class Planned:
        multiple = tuple(int(n) for n in np.prod(plan_strides(made), axis=0))

    assert Planned.multiple == made.total and strides_of(Planned) == made.strides


@settings(max_examples=600, deadline=None)
@given(SIZES, st.tuples(*[st.integers(1, 300)] * 3), st.floats(1, 1e6))
def test_every_patch_is_divisible(median, box, volume):
    made, official = rog(median, box, volume), rog(median, box, volume, official=True)
    assert made.total == tuple(4 * a * b * c for a, b, c in zip(*made.strides, strict=True))
    for t, c, v, factor, raw, m in zip(
        made.train, made.crop, made.val, made.total, official.val, median, strict=True
    ):
        assert t % factor == 0 and v % factor == 0 and c in (t, t + 20)
        assert v - factor < raw <= v and factor <= 32
        assert 2 * v >= m - 1 and t < m + factor


def test_the_official_validation_patch_often_does_not_fit():
    rng = np.random.default_rng(0)
    misfits = 0
    for _ in range(500):
        median = rng.integers(30, 600, 3)
        box = np.maximum(1, median * rng.uniform(0.05, 0.5, 3))
        made = rog(median, box, float(box.prod() / 2), official=True)
        misfits += any(v % f for v, f in zip(made.val, made.total, strict=True))
    assert misfits > 100


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_a_planned_patch_passes_the_network(row):
    import torch

    made = rog([float(n) for n in row[1].split(",")], [float(n) for n in row[2].split(",")], float(row[3]))
    with torch.device("meta"):
        net = Lattice(in_channels=1, classes=2, strides=made.strides, width=4)
        assert net.multiple == made.total
        for shape in {made.train, made.val}:
            assert net(torch.empty(1, 1, *shape)).shape == (1, 2, *shape)


def test_components_touch_at_corners_and_small_ones_do_not_count():
    mask = np.zeros((20, 20, 20), bool)
    mask[0:4, 0:4, 0:4] = True
    mask[4, 4, 4] = True  # joined at a corner
    mask[10:14, 10:12, 10:20] = True
    mask[19, 0, 0:3] = True  # 3 of 80 voxels
    found = large_components(mask, (2.0, 1.0, 0.5))
    assert found.tolist() == [[10, 5, 2.5, 65], [8, 2, 5, 80]]
    assert large_components(np.zeros((2, 2, 2), bool), (1, 1, 1)).shape == (0, 4)


def test_the_smallest_class_decides_in_voxels_of_the_planned_grid():
    cases = [
        {"large": np.array([[60.0, 60, 60, 90000]]), "small": np.array([[20.0, 38, 46, 3000]])},
        {"large": np.zeros((0, 4)), "small": np.array([[20.0, 38, 46, 3320], [20.0, 38, 46, 3160]])},
    ]
    reasons = []
    made = rog_of(cases, (36, 50, 35), (1.0, 2.0, 1.0), reasons)
    assert made == rog((36, 50, 35), (20, 19, 46), 1580)
    assert "small" in reasons[0] and "1580" in reasons[0]
    tall = rog_of(cases, (400, 50, 35), (1.0, 2.0, 1.0), [])
    assert tall == rog_of(cases, (160, 50, 35), (1.0, 2.0, 1.0), [])
    with pytest.raises(DataError, match="no case has a labelled voxel"):
        rog_of([{"large": np.zeros((0, 4))}], (9, 9, 9), (1, 1, 1), [])


def test_a_plan_by_recipe_and_what_it_excludes(tmp_path):
    data = phantom.write_msd(
        tmp_path / "data", n_labelled=3, n_test=0, shape=(36, 50, 35), spacing=(1, 1, 1), jitter=0
    )
    own = api.plan(data, out=tmp_path / "w")[2]
    _, _, plan = api.plan(data, out=tmp_path / "r", options=PlanOptions(recipe="rog"))
    assert plan.patch == (32, 48, 32) and plan.spacing == (1, 1, 1) and plan.dims == 3
    assert set(plan.kernels) == {(3, 3, 3)} and any(r.startswith("recipe rog") for r in plan.reasons)
    assert own.patch != plan.patch and not any("recipe" in r for r in own.reasons)
    again = api.plan(data, out=tmp_path / "r")[2]  # the recipe is remembered
    assert again == plan
    for options in ({"dims": 2}, {"patch": (16, 16, 16)}):
        with pytest.raises(ConfigError, match="--recipe rog"):
            api.plan(data, out=tmp_path / "no", options=PlanOptions(recipe="rog", **options))


def test_two_channels_are_scaled_as_each_alone(tmp_path):
    """The published code sums spreads over channels; here each channel keeps its own."""
    both = phantom.write_msd(tmp_path / "two", n_labelled=3, n_test=0, channels=2)
    _, _, plan = api.plan(both, out=tmp_path / "w")
    assert len(plan.channels) == 2
    from seguro.data.manifest import load, read_case
    from seguro.data.preprocess import to_planned

    manifest = load(tmp_path / "w" / "check" / "manifest.json")
    for case in manifest.of("train"):
        image = to_planned(read_case(case, manifest), plan)[0]
        for channel in image:
            assert channel.std() == pytest.approx(1, abs=0.02)  # clipping after the statistics
