"""Pictures to look through: which slices, whole, with and without truth."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from seguro.report.browse import places, sheets
from seguro.report.overlay import PREDICTION, TRUTH


def pixels(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet.data))).astype(int)


def share(picture, color):
    return (np.abs(picture - color).max(axis=-1) <= 40).mean()


def test_the_middle_of_what_was_found_across_each_axis():
    found = np.zeros((20, 30, 40), bool)
    found[2:5, 10:21, 30:33] = True
    assert places(found, (1, 1, 1), None) == [(0, 3), (1, 15), (2, 31)]
    assert places(np.zeros_like(found), (1, 1, 1), None) == [(0, 10), (1, 15), (2, 20)]
    assert places(found, (1, 4, 1), None) == [(1, 15)]  # thick slices


def test_every_nth_slice_of_the_stack():
    found = np.zeros((20, 9, 40), bool)
    assert places(found, (1, 1, 1), 4) == [(1, 0), (1, 4), (1, 8)]  # few slices lie along y
    assert places(np.zeros((20, 30, 40), bool), (1, 1, 1), 10) == [(0, 0), (0, 10)]
    assert places(np.zeros((1, 9, 9), bool), (1, 1, 1), 3) == [(0, 0)]


def test_truth_is_drawn_where_it_is_known_and_names_say_the_slice():
    image = np.zeros((20, 30, 40), np.float32)
    prediction, truth = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
    prediction[:, 5:15, 5:15], truth[:, 15:25, 20:30] = 1, 1
    alone = list(sheets(image, prediction, None, (1, 1, 1), [[1]]))
    both = list(sheets(image, prediction, truth, (1, 1, 1), [[1]]))
    assert [s.name for s in both] == ["axial_010.png", "coronal_010.png", "sagittal_010.png"]
    a, b = pixels(alone[0]), pixels(both[0])
    assert share(a, TRUTH) == 0 < 0.005 < share(b, TRUTH)
    assert share(a, PREDICTION) > 0.005 and share(b, PREDICTION) > 0.005
    assert a.shape[1] / a.shape[0] == 40 / 30  # the whole slice, not cropped to the class


def test_a_single_slice_has_one_picture():
    (sheet,) = sheets(np.ones((1, 9, 9)), np.zeros((1, 9, 9), int), None, (1, 1, 1), [[1]], oriented=False)
    assert sheet.name == "picture.png"
