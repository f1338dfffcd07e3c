"""The store holds just what preprocessing says, resumes, and hides labels from those who may not see them."""

from __future__ import annotations

import numpy as np
import pytest

from seguro import api
from seguro.core.errors import DataError
from seguro.data import store
from seguro.data.manifest import read_case, read_case_label
from seguro.data.planner import PlanOptions
from seguro.data.preprocess import label_to_planned, to_planned
from seguro.data.store import Cases


@pytest.fixture(scope="module")
def prepared(phantom_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    workspace, manifest, plan = api.plan(phantom_folder, out=out, options=PlanOptions(memory_gib=0.02))
    return workspace, manifest, plan, store.prepare(workspace, manifest, plan)


def test_a_patch_is_the_preprocessed_volume_cut(prepared):
    _, manifest, plan, folder = prepared
    case = manifest.of("train")[0]
    volume = read_case(case, manifest)
    image, grid = to_planned(volume, plan)
    stored = Cases(folder, [case], plan.classes)[0]
    where = (slice(2, 7), slice(3, 9), slice(0, 5))
    np.testing.assert_array_equal(stored.patch(where), image[(slice(None), *where)])
    label = label_to_planned(read_case_label(case, manifest, like=volume.grid).array, grid, plan)
    np.testing.assert_array_equal(stored.label, label)
    for cls, z, y, x in stored.locations:
        assert label[z, y, x] == cls + 1


def test_labels_are_hidden_and_unlabelled_cases_have_none(prepared):
    _, manifest, plan, folder = prepared
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    hidden = Cases(folder, cases, plan.classes, hide_labels=True)
    seen = Cases(folder, cases, plan.classes)
    assert all(c.label is None and len(c.locations) == 0 for c in hidden) and hidden.labelled == ()
    assert [seen[i].label is not None for i in range(len(seen))] == [c.label is not None for c in cases]


def test_preparing_again_touches_nothing_and_a_lost_file_is_made_again_equal(prepared):
    workspace, manifest, plan, folder = prepared
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    store.prepare(workspace, manifest, plan)
    assert times == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    lost = sorted(folder.glob("*.image.npy"))[0]
    before = lost.read_bytes()
    lost.unlink()
    store.prepare(workspace, manifest, plan)
    assert lost.read_bytes() == before
    assert sum(p.stat().st_mtime_ns != t for p, t in times.items() if p.suffix == ".npy" and p != lost) <= 3


def test_the_predicted_size_is_right_to_a_tenth(prepared):
    _, manifest, plan, folder = prepared
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    real = sum(p.stat().st_size for p in folder.glob("*.npy") if "locations" not in p.name)
    assert store.predicted_bytes(cases, plan) == pytest.approx(real, rel=0.1)


def test_ct_is_kept_in_int16_within_half_a_step(tmp_path, phantom_folder):
    workspace, manifest, plan = api.plan(phantom_folder, out=tmp_path, options=PlanOptions(memory_gib=0.02))
    channel = plan.channels[0].model_copy(
        update={"scheme": "ct", "low": 0.0, "high": 90.0, "mean": 40.0, "sd": 20.0}
    )
    plan = plan.model_copy(update={"channels": (channel,)})
    folder = store.prepare(workspace, manifest, plan)
    case = manifest.of("train")[0]
    stored = Cases(folder, [case], plan.classes)[0]
    assert stored.image.dtype == np.int16
    exact, _ = to_planned(read_case(case, manifest), plan)
    everything = stored.patch((slice(None),) * 3)
    assert np.abs(everything - exact).max() <= store.CT_STEP / 2 + 1e-6


def test_a_file_that_vanished_names_the_case_and_the_others_are_prepared(tmp_path):
    from seguro.data import phantom

    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0)
    workspace, manifest, plan = api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.02))
    victim = manifest.of("train")[1]
    (data / victim.images[0].path).unlink()
    with pytest.raises(DataError, match=victim.id):
        store.prepare(workspace, manifest, plan)
    folder = workspace / "store" / plan.preprocessing_hash
    assert len(list(folder.glob("*.image.npy"))) == 3


def test_a_file_that_changed_since_the_check_is_refused(tmp_path):
    from seguro.data import phantom

    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0, seed=1)
    workspace, manifest, plan = api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.02))
    other = phantom.write_msd(tmp_path / "other", n_labelled=3, n_test=0, seed=2)
    victim = manifest.of("train")[0]
    (data / victim.images[0].path).write_bytes((other / victim.images[0].path).read_bytes())
    with pytest.raises(DataError, match=f"{victim.id}.*changed since the check"):
        store.prepare(workspace, manifest, plan)
