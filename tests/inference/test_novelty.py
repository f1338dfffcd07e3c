"""Flags: silent on the training data, one sentence with both values for each way of being unlike them."""

from dataclasses import replace

import numpy as np
import pytest

from seguro.core.types import Grid, Volume
from seguro.data.formats import read_image
from seguro.engine.model import load_model
from seguro.inference.novelty import flags, volume_flags


@pytest.fixture
def plan(model):
    return load_model(model).plan


@pytest.fixture
def volume(phantom_folder):
    return read_image([phantom_folder / "imagesTs" / "case_006.nii.gz"])


def with_spacing(volume, factor):
    affine = volume.grid.affine.copy()
    affine[:3, 2] *= factor
    return replace(volume, grid=Grid(volume.grid.shape, affine, volume.grid.unit))


def with_scheme(plan, scheme):
    return plan.model_copy(
        update={"channels": tuple(c.model_copy(update={"scheme": scheme}) for c in plan.channels)}
    )


def test_training_and_test_images_raise_no_flag(plan, phantom_folder):
    for folder in ("imagesTr", "imagesTs"):
        for path in (phantom_folder / folder).iterdir():
            assert flags(read_image([path]), plan) == []


def test_spacing_and_field_of_view(plan, volume):
    lines = flags(with_spacing(volume, 3.0), plan)
    assert lines == [
        "spacing along z: 3 mm, 1 mm in the training cases",
        f"field of view along z: {3 * volume.grid.shape[0]} mm, 12 mm in the training cases",
    ]
    assert flags(with_spacing(volume, 1.4), plan) == []


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_scale_counts_for_ct_and_not_where_each_case_is_normalized(plan, volume, factor):
    scaled = replace(volume, array=volume.array * np.float32(factor))
    assert flags(scaled, with_scheme(plan, "zscore")) == []
    lines = flags(scaled, with_scheme(plan, "ct"))
    assert any("99.5 % intensity" in line for line in lines)


def test_another_contrast_counts_where_each_case_is_normalized(plan, volume):
    inverted = replace(volume, array=volume.array.max() - volume.array)
    (line,) = flags(inverted, with_scheme(plan, "zscore"))
    assert "median relative to the intensity range 0." in line
    assert "in the training cases" in line


def test_channels_and_units(plan, volume):
    doubled = replace(volume, array=np.concatenate([volume.array] * 2))
    assert flags(doubled, plan) == ["2 channel(s), the training cases have 1"]
    picture = replace(volume, grid=Grid(volume.grid.shape, volume.grid.affine, "px"))
    assert flags(picture, plan) == ["spacing is in px, in the training cases in mm"]


def test_a_constant_or_empty_image_raises_no_error(plan, volume):
    for value in (0.0, np.nan):
        array = np.full_like(volume.array, value)
        assert isinstance(flags(Volume(array, volume.grid, volume.source), plan), list)


def test_predicted_volumes(plan):
    seen = plan.fingerprint.volume_ml["organ1"]
    assert volume_flags({"organ1": seen.median}, plan) == []
    (large,) = volume_flags({"organ1": 3 * seen.high}, plan)
    assert large.startswith(f"organ1: {3 * seen.high:.4g} ml, ")
    (none,) = volume_flags({"organ1": 0.0}, plan)
    assert none.startswith("organ1: nothing found, present in all 6 labelled training cases")
    sometimes = plan.model_copy(
        update={"fingerprint": plan.fingerprint.model_copy(update={"present": {"organ1": 3, "organ2": 6}})}
    )
    assert volume_flags({"organ1": 0.0, "unknown": 5.0}, sometimes) == []
