"""Support files as given: classes, annotated slices, and every wrong file named."""

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError, GeometryError
from seguro.core.types import IGNORE, Classes
from seguro.data import phantom
from seguro.data.shots import classes_of, read_shots
from seguro.data.support import annotated_slices

SHAPE = (8, 9, 10)


def files(tmp_path, label, image=None, **look):
    rng = np.random.default_rng(0)
    image = rng.normal(100, 9, SHAPE).astype(np.float32) if image is None else image
    return (
        [phantom.write_nifti(tmp_path / "image.nii.gz", image, **look)],
        phantom.write_nifti(tmp_path / "mask.nii.gz", np.asarray(label, np.uint8), **look),
    )


def mask(slices, value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[list(slices), 3:6, 3:6] = value
    return label


def read(pair, **more):
    return read_shots([pair], channels=1, axis=0, **more)


@pytest.mark.parametrize(
    ("labelled", "choice", "expected"),
    [
        ((2, 3, 4), "auto", list(range(8))),
        ((2, 5, 6), "auto", [2, 5, 6]),
        ((2,), "auto", [2]),
        ((2, 3, 4), "labelled", [2, 3, 4]),
        ((2,), "all", list(range(8))),
        ((2, 3, 4), (0, 3), [0, 3]),
    ],
    ids=["volume", "gaps", "one", "labelled", "all", "numbers"],
)
def test_annotated_slices(tmp_path, labelled, choice, expected):
    _, [(shot, _)] = read(files(tmp_path, mask(labelled)), slices=choice)
    assert annotated_slices(shot.label, 0) == expected
    assert set(np.unique(shot.label)) <= {0, 1, IGNORE}


def test_slice_numbers_are_those_of_the_file(tmp_path):
    pair = files(tmp_path, mask((1, 2, 3)), codes="LPI")  # its z axis runs down
    _, [(shot, _)] = read(pair, slices=(SHAPE[0] - 1 - 2,))
    assert annotated_slices(shot.label, 0) == [2]


def test_names_come_from_the_user_or_the_data_or_the_value():
    known = Classes(
        names=("background", "left", "right"), values=((0,), (2,), (3,)), pairs=(("left", "right"),)
    )
    assert classes_of([2, 5], known).names == ("background", "left", "class_5")
    assert classes_of([2, 3], known).pairs == (("left", "right"),)
    assert classes_of([2, 5], known, {"mine": 5}).values == ((0,), (5,))
    with pytest.raises(ConfigError, match="value of its own"):
        classes_of([2], named={"a": 2, "b": 2})


def test_several_classes_are_several_ways_and_a_chosen_one_makes_the_others_background(tmp_path):
    label = mask((1, 2, 3), 2) + np.roll(mask((1, 2, 3), 7), 3, axis=2)
    pair = files(tmp_path, label)
    classes, [(shot, _)] = read(pair)
    assert classes.names == ("background", "class_2", "class_7")
    assert [int((shot.label == i).sum()) for i in (1, 2)] == [27, 27]
    classes, [(shot, _)] = read(pair, named={"mine": 7})
    assert classes.names == ("background", "mine")
    np.testing.assert_array_equal(shot.label == 1, label == 7)


def test_classes_of_several_scans_are_joined(tmp_path):
    (tmp_path / "b").mkdir()
    pairs = [files(tmp_path, mask((1, 2, 3), 1)), files(tmp_path / "b", mask((4, 5, 6), 3))]
    classes, shots = read_shots(pairs, channels=1, axis=0)
    assert classes.values == ((0,), (1,), (3,))
    assert [int(np.unique(s.label)[-1]) for s, _ in shots] == [1, 2]


@pytest.mark.parametrize(
    ("label", "error", "words"),
    [
        (np.zeros(SHAPE), DataError, "mask is empty"),
        (np.ones(SHAPE), DataError, "no voxel of the support mask is background"),
        (np.arange(720).reshape(SHAPE) % 200, DataError, "swapped"),
        (np.ones((4, 9, 10)), GeometryError, "must match voxel by voxel"),
    ],
    ids=["empty", "full", "image", "other grid"],
)
def test_an_unusable_mask_is_named(tmp_path, label, error, words):
    pair = files(tmp_path, label)
    with pytest.raises(error, match=words) as caught:
        read(pair)
    assert "mask.nii.gz" in str(caught.value)


def test_a_mask_in_the_place_of_the_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"image.nii.gz.*swapped"):
        read(files(tmp_path, mask((1, 2, 3)), image=mask((1, 2, 3)).astype(np.float32)))


def test_not_a_number_in_the_image_is_named(tmp_path):
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    image[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        read(files(tmp_path, mask((1, 2, 3)), image=image))


@pytest.mark.parametrize(
    ("choice", "error"), [((0,), DataError), ((8,), ConfigError), ("some", ConfigError)], ids=str
)
def test_impossible_slices_are_refused(tmp_path, choice, error):
    with pytest.raises(error):
        read(files(tmp_path, mask((1, 2, 3))), slices=choice)


def test_a_class_that_the_mask_does_not_hold_is_named(tmp_path):
    with pytest.raises(DataError, match=r"spleen=4.*holds 1"):
        read(files(tmp_path, mask((1, 2, 3))), named={"spleen": 4})
