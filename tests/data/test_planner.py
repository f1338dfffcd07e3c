"""The plan: rules in closed form, folds that keep patients together, files that are honoured or refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguro import api
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, write_json
from seguro.data import phantom
from seguro.data.patch import SMALLEST_MAP, shape_for
from seguro.data.planner import PlanOptions
from seguro.networks.unet import training_bytes

SMALL = PlanOptions(memory_gib=0.02)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=2, max_size=3),
    st.lists(st.floats(0.3, 10), min_size=3, max_size=3),
)
def test_every_patch_is_divisible_and_no_map_is_too_small(sizes, spacing):
    dims = len(sizes)
    patch, strides, kernels = shape_for(sizes, spacing[:dims], dims)
    total = np.prod(strides, axis=0) if strides else np.ones(dims)
    assert len(kernels) == len(strides) + 1
    for n, p, t in zip(sizes, patch, total, strict=True):
        assert p % t == 0 and n <= p < n + t
        assert t == 1 or p / t >= SMALLEST_MAP / 2


def test_an_isotropic_volume_and_thick_slices():
    patch, strides, kernels = shape_for((36, 50, 35), (1, 1, 1), 3)
    assert (patch, strides, kernels) == ((40, 56, 40), ((2, 2, 2),) * 3, ((3, 3, 3),) * 4)
    patch, strides, kernels = shape_for((32, 128, 128), (8, 1, 1), 3)
    assert strides[:2] == ((1, 2, 2), (1, 2, 2)) and kernels[0] == (1, 3, 3) and patch[0] % 4 == 0


@pytest.mark.parametrize(
    ("shape", "spacing", "dims", "axis"),
    [((24, 24, 24), (1, 1, 1), 3, 0), ((9, 48, 48), (8, 1, 1), 2, 0), ((24, 48, 48), (6, 1, 1), 3, 0)],
)
def test_two_or_three_dimensions(tmp_path, shape, spacing, dims, axis):
    data = phantom.write_msd(
        tmp_path / "data", n_labelled=3, n_test=0, shape=shape, spacing=spacing, jitter=0
    )
    _, _, plan = api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.05))
    assert (plan.dims, plan.slice_axis) == (dims, axis)
    assert any(r.startswith(f"{dims}-D") for r in plan.reasons)


def test_the_step_fits_the_memory_and_uses_it(tmp_path, phantom_folder):
    for memory in (0.005, 0.05):
        options = PlanOptions(memory_gib=memory)
        _, _, plan = api.plan(phantom_folder, out=tmp_path / str(memory), options=options)
        assert training_bytes(plan.patch, plan.batch, plan.strides) <= memory * 2**30
    assert plan.batch > 2


def write_patients(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    with (folder / "patients.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "patient", "site"), *rows])


def test_folds_keep_patients_together_and_each_site_is_left_out_once(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=8, n_test=0, n_unlabelled=1)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    unlabelled = [p.name.removesuffix(".nii.gz") for p in (data / "imagesUn").iterdir()]
    owner = {c: (f"p{i // 2}", f"s{i // 4}") for i, c in enumerate(ids)}
    write_patients(data, [(c, *owner[c]) for c in ids] + [(c, c, "s0") for c in unlabelled])
    _, _, plan = api.plan(data, out=tmp_path / "w", options=SMALL)
    numbered = [f for f in plan.folds if not f.name.startswith("site-")]
    assert sorted(c for f in numbered for c in f.validation) == ids
    for fold in plan.folds:
        labelled = [c for c in fold.train if c in owner]
        assert not {owner[c][0] for c in labelled} & {owner[c][0] for c in fold.validation}
        # the unlabelled scan is of site s0: it must not train the fold that is tested on s0
        assert (set(unlabelled) <= set(fold.train)) == (fold.name != "site-s0")
    sites = {f.name: {owner[c][1] for c in f.validation} for f in plan.folds if f.name.startswith("site-")}
    assert sites == {"site-s0": {"s0"}, "site-s1": {"s1"}}


def test_splits_final_is_honoured_and_checked(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    write_json(data / "splits_final.json", [{"train": ids[:3], "val": ids[3:]}])
    _, _, plan = api.plan(data, out=tmp_path / "a", options=SMALL)
    assert [(f.train, f.validation) for f in plan.folds] == [(tuple(ids[:3]), tuple(ids[3:]))]
    write_json(data / "splits_final.json", [{"train": ids[:3], "val": ["nobody"]}])
    with pytest.raises(DataError, match="nobody"):
        api.plan(data, out=tmp_path / "b", options=SMALL)
    write_json(data / "splits_final.json", [{"train": ids, "val": ids[3:]}])
    with pytest.raises(DataError, match="patient"):
        api.plan(data, out=tmp_path / "c", options=SMALL)


def test_unlabelled_scans_that_the_splits_do_not_name_are_trained_on(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0, n_unlabelled=3)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    named, free, held_out = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesUn").iterdir())
    splits = [{"train": [*ids[:3], named], "val": ids[3:]}, {"train": ids[1:], "val": ids[:1]}]
    write_json(data / "splits_final.json", splits)
    owner = {i: i for i in (*ids, named, free)} | {held_out: ids[0]}
    write_patients(data, [(c, p, "s") for c, p in owner.items()])
    _, _, plan = api.plan(data, out=tmp_path / "w", options=SMALL)
    assert [f.train for f in plan.folds] == [(*ids[:3], named, free, held_out), (*ids[1:], free)]


def test_a_plan_edited_by_hand_is_used_and_never_overwritten(tmp_path, phantom_folder):
    api.plan(phantom_folder, out=tmp_path / "w", options=SMALL)
    path = tmp_path / "w" / "plan" / "plan.json"
    write_json(path, read_json(path) | {"batch": 3})
    said: list[str] = []
    _, _, plan = api.plan(phantom_folder, out=tmp_path / "w", options=SMALL, say=said.append)
    assert plan.batch == 3 and any("edited by hand" in line for line in said)
    with pytest.raises(ConfigError, match="memory_gib"):
        api.plan(phantom_folder, out=tmp_path / "w", options=PlanOptions(memory_gib=0.5))
    write_json(path, read_json(path) | {"patch": [5, 5, 5]})
    with pytest.raises(ConfigError, match="not divisible"):
        api.plan(phantom_folder, out=tmp_path / "w", options=SMALL)


def test_a_new_test_case_leaves_the_plan_alone_and_a_training_case_does_not(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=1)
    api.plan(data, out=tmp_path / "w", options=SMALL)
    stage = tmp_path / "w" / "plan" / "stage.json"
    before = stage.read_bytes()
    more = phantom.write_msd(tmp_path / "more", n_labelled=4, n_test=3)
    for folder in ("imagesTs", "labelsTs"):
        for file in (more / folder).iterdir():
            if not (data / folder / file.name).exists():
                (data / folder / file.name).write_bytes(file.read_bytes())
    (data / "dataset.json").write_bytes((more / "dataset.json").read_bytes())
    _, manifest, _ = api.plan(data, out=tmp_path / "w", options=SMALL)
    assert len(manifest.of("test")) == 3 and stage.read_bytes() == before


def test_a_class_that_no_case_contains_is_refused(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    description = json.loads((data / "dataset.json").read_text())
    description["labels"]["9"] = "ghost"
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="ghost"):
        api.plan(data, out=tmp_path / "w", options=SMALL)


def test_ct_is_clipped_to_foreground_percentiles_only_in_hounsfield_units(tmp_path):
    from seguro.core.types import Grid
    from seguro.data.fingerprint import Measured
    from seguro.data.planner import _channel

    def case(lowest: float) -> Measured:
        values = np.linspace(-50, 150, 2001, dtype=np.float32)[None]
        return Measured(Grid((1, 1, 1), np.eye(4)), ({},), (lowest,), values, {})

    ct = _channel("CT", 0, [case(-1000)], [])
    assert ct.scheme == "ct"
    assert (ct.low, ct.high) == pytest.approx((-49, 149), abs=0.2)  # 0.5 and 99.5 % of a uniform ramp
    assert _channel("CT", 0, [case(0)], []).scheme == "zscore"
    assert _channel("MRI", 0, [case(-1000)], []).scheme == "zscore"


@pytest.mark.parametrize(
    ("names", "mirror"),
    [
        (("liver", "spleen"), (2,)),
        (("left kidney", "right kidney"), (2,)),
        (("left kidney", "right kidney", "right ventricle"), ()),
        (("left ventricle", "right ventricle"), ()),
        (("kidney_l", "spleen"), ()),
    ],
)
def test_mirroring_only_where_every_side_has_its_twin(tmp_path, names, mirror):
    from seguro.data.layouts.msd import make_classes
    from seguro.data.planner import _mirror

    reasons: list[str] = []
    classes = make_classes(tmp_path, list(enumerate(("background", *names))))
    assert _mirror(classes, (0, 1, 2), (), reasons) == mirror
    assert reasons[0].startswith("mirroring" if mirror else "no mirroring")


@pytest.mark.parametrize(
    ("offsets", "sided"),
    [
        ([0.3, 0.25, 0.2, 0.4], True),
        ([-0.3, -0.25, -0.2, -0.4], True),
        ([0.3, -0.25, 0.2, -0.4], False),  # either side: right and left hips, say
        ([0.05, 0.04, 0.06, 0.02], False),  # near the middle
        ([0.3, 0.3], False),  # too few to tell
    ],
)
def test_a_class_on_one_side_forbids_mirroring_unless_it_has_a_twin(offsets, sided):
    from dataclasses import replace

    from seguro.core.types import Classes, Grid
    from seguro.data.fingerprint import Measured
    from seguro.data.planner import _mirror

    blank = Measured(Grid((4, 4, 4), np.eye(4)), (), (), np.zeros((1, 0), np.float32), {})
    measured = [replace(blank, lateral={"liver": o, "spine": 0.0}) for o in offsets]
    values = ((0,), (1,), (2,))
    single = Classes(names=("background", "liver", "spine"), values=values)
    reasons: list[str] = []
    assert _mirror(single, (0, 1, 2), measured, reasons) == (() if sided else (2,))
    assert ("liver" in reasons[0]) == sided
    twins = single.model_copy(update={"pairs": (("liver", "spine"),)})
    assert _mirror(twins, (0, 1, 2), measured, []) == (2,)


def test_where_a_class_lies_is_measured_along_x_against_all_foreground():
    from seguro.data.fingerprint import _lateral

    planes = {"a": np.array([0, 4, 4, 0, 0, 0, 0, 0, 0, 0]), "b": np.array([0, 0, 0, 0, 0, 0, 0, 0, 2, 0])}
    assert _lateral(planes) == {"a": pytest.approx(-3 / 8), "b": pytest.approx(3.5 / 8)}
    assert _lateral({"a": np.zeros(4, int)}) == {}


def begun(tmp_path: Path, n: int = 4) -> tuple[Path, Path]:
    """A planned data set with a run in its workspace."""
    data = phantom.write_msd(tmp_path / "data", n_labelled=n, n_test=0)
    api.plan(data, out=tmp_path / "w", options=SMALL)
    (tmp_path / "w" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "w" / "runs" / "one" / "config.yaml").write_text("{}")
    return data, tmp_path / "w"


def test_new_splits_are_refused_where_runs_exist(tmp_path):
    data, work = begun(tmp_path)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    write_json(data / "splits_final.json", [{"train": ids[:3], "val": ids[3:]}])
    before = (work / "plan" / "plan.json").read_bytes()
    with pytest.raises(ConfigError, match=r"splits_final\.json(.|\n)*1 run"):
        api.plan(data, out=work, options=SMALL)
    assert (work / "plan" / "plan.json").read_bytes() == before


def test_further_training_cases_replan_where_runs_exist_and_other_patients_do_not(tmp_path):
    data, work = begun(tmp_path)
    more = phantom.write_msd(tmp_path / "more", n_labelled=5, n_test=0)
    for file in (p for f in ("imagesTr", "labelsTr") for p in (more / f).iterdir()):
        if not (data / file.parent.name / file.name).exists():
            (data / file.parent.name / file.name).write_bytes(file.read_bytes())
    (data / "dataset.json").write_bytes((more / "dataset.json").read_bytes())
    _, manifest, plan = api.plan(data, out=work, options=SMALL)
    assert len(manifest.of("train")) == plan.fingerprint.n_cases == 5
    write_patients(data, [(c.id, "p" + c.id[-1:], "s") for c in manifest.cases])
    with pytest.raises(ConfigError, match="case/"):
        api.plan(data, out=work, options=SMALL)


def test_a_plan_is_made_anew_for_other_channel_names_and_units(tmp_path):
    from functools import partial

    from seguro.data import planner

    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    work, manifest, first = api.plan(data, out=tmp_path / "w", options=SMALL)
    ensure = partial(planner.ensure, work, options=SMALL, step_bytes=training_bytes)
    named = manifest.model_copy(update={"channels": ("T1",)})
    assert first.channels[0].name != "T1" and ensure(named).channels[0].name == "T1"
    nominal = tuple(c.model_copy(update={"unit": "nominal mm"}) for c in manifest.cases)
    assert first.unit == "mm" and ensure(named.model_copy(update={"cases": nominal})).unit == "nominal mm"


def test_a_workspace_plans_on_after_the_data_with_splits_moved(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    write_json(data / "splits_final.json", [{"train": ids[:3], "val": ids[3:]}])
    work, _, plan = api.plan(data, out=tmp_path / "w", options=SMALL)
    data.rename(tmp_path / "elsewhere")
    assert api.plan(work, options=SMALL)[2] == plan


def test_splits_that_changed_since_the_check_are_not_planned_from(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    write_json(data / "splits_final.json", [{"train": ids[:3], "val": ids[3:]}])
    work, _, _ = api.plan(data, out=tmp_path / "w", options=SMALL)
    (work / "plan" / "stage.json").unlink()
    write_json(data / "splits_final.json", [{"train": ids[1:], "val": ids[:1]}])
    with pytest.raises(DataError, match=r"splits_final\.json: changed since the check"):
        api.plan(work, options=SMALL)
    assert api.plan(data, out=work, options=SMALL)[2].folds[0].validation == (ids[0],)


def test_a_patient_at_two_sites_costs_only_the_folds_of_these_sites(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=5, n_test=0)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    people = [("p0", "a"), ("p0", "b"), ("p1", "a"), ("p2", "c"), ("p3", "c")]
    write_patients(data, [(c, *who) for c, who in zip(ids, people, strict=True)])
    _, _, plan = api.plan(data, out=tmp_path / "w", options=SMALL)
    assert [f.name for f in plan.folds if f.name.startswith("site-")] == ["site-c"]
    assert sum("no fold leaves site" in r and "patient p0" in r for r in plan.reasons) == 2


def test_a_patch_that_sees_too_little_gets_coarser_voxels_and_full_resolution_keeps_them():
    from seguro.data.patch import ENOUGH_COVERED, PlanOptions, coarsened, fitted, sizes_of

    extent, spacing = (270.0, 320.0, 320.0), (7.5, 1.25, 1.25)
    options, reasons = PlanOptions(memory_gib=0.5), []
    found = coarsened(spacing, extent, options, training_bytes, reasons)
    assert found[0] == spacing[0] and found[1] == found[2] > spacing[1]  # the thick slices stay as they are
    assert len(reasons) == 1 and "--full-resolution" in reasons[0]
    sizes = sizes_of(extent, found)
    patch = fitted(sizes, found, options, training_bytes)[0]
    covered = np.prod([min(p, n) / n for p, n in zip(patch, sizes, strict=True)])
    assert ENOUGH_COVERED <= covered < 2 * ENOUGH_COVERED
    kept = coarsened(
        spacing, extent, options.model_copy(update={"full_resolution": True}), training_bytes, []
    )
    assert kept == spacing == coarsened(spacing, extent, PlanOptions(memory_gib=16), training_bytes, [])
