"""Overlays: the right slice, the right side up, true proportions, contours where the borders are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from seguro.report.overlay import PREDICTION, TRUTH, disagreement, encode, overlay, views, worst_slices


def near(picture, color, within=40):
    return np.abs(picture.astype(int) - color).max(axis=-1) <= within


def box(shape, *spans):
    out = np.zeros(shape, np.uint8)
    out[tuple(slice(a, b) for a, b in spans)] = 1
    return out


def test_disagreement_closed_form():
    a, b = box((4, 8, 8), (0, 2), (0, 4), (0, 4)), box((4, 8, 8), (1, 2), (0, 4), (0, 6))
    wrong = disagreement(a, b, [[1]], a.shape)
    assert wrong.sum() == 16 + 8  # slice 0 missed; two columns too many in slice 1
    assert disagreement(a, a, [[1]], a.shape).sum() == a.sum()  # nothing wrong: where the class is
    assert (
        disagreement(a, 2 * a, [[1, 2]], a.shape).sum() == a.sum()
    )  # one class of two values: no difference
    assert disagreement(a, 2 * a, [[1], [2]], a.shape).sum() == a.sum()  # two classes: all of it
    assert disagreement(None, b, [[1]], a.shape).sum() == b.sum()


def test_worst_slices_by_count():
    wrong = np.zeros((5, 4, 4), bool)
    wrong[3, :2, :2], wrong[1, :1, :2], wrong[4, 0, 0] = True, True, True
    nowhere = np.zeros_like(wrong)
    assert worst_slices(wrong, nowhere, 0, 1) == [3]
    assert worst_slices(wrong, nowhere, 0, 2) == [1, 3]
    assert worst_slices(wrong, nowhere, 0, 9) == [1, 3, 4]
    assert worst_slices(nowhere, nowhere, 0) == [2]
    agreed = np.zeros_like(wrong)
    agreed[1] = ~wrong[1]
    assert worst_slices(wrong, agreed, 0, 1) == [1]  # 2 + 3 * 2 against 4


def test_proportions_follow_the_spacing():
    shape = (1, 20, 40)
    (view,) = views(np.random.default_rng(0).normal(size=shape), None, None, (1, 3.0, 1.0), [])
    assert view.width / view.height == pytest.approx(40 / 60, rel=0.01)  # whole pixels of 420


def test_right_is_left_and_front_is_up():
    image = np.zeros((30, 30), np.float32)
    image[20:, 20:] = 1  # anterior (rows rise) and right (columns rise)
    seen = overlay(image, None, None, (1, 1), [], window=(0, 1), axis=0)
    middle = seen.shape[0] // 2
    assert seen[:middle, :middle].mean() > 4 * seen[middle:, middle:].mean() + 50  # upper left
    stored = overlay(image, None, None, (1, 1), [], window=(0, 1), axis=0, oriented=False)
    assert stored[middle:, middle:].mean() > 50 > stored[:middle, :middle].mean()
    sagittal = overlay(
        image, None, None, (1, 1), [], window=(0, 1), axis=2
    )  # rows superior, columns anterior
    assert sagittal[:middle, middle:].mean() > 50 > sagittal[middle:, :middle].mean()


def test_window_clips():
    image = np.array([[0.0, 5.0], [10.0, 20.0]], np.float32)
    seen = overlay(image, None, None, (1, 1), [], window=(5, 10), oriented=False)
    assert seen[0, 0].tolist() == [0, 0, 0] and seen[-1, -1].tolist() == [255, 255, 255]


def test_truth_is_solid_and_prediction_dashed_on_their_borders():
    image = np.zeros((40, 40), np.float32)
    truth, prediction = box((40, 40), (10, 30), (10, 30)), box((40, 40), (14, 26), (14, 26))
    drawn = overlay(image, truth, prediction, (1, 1), [[1]], window=(0, 1), oriented=False)
    alone = overlay(image, truth, None, (1, 1), [[1]], window=(0, 1), oriented=False)
    both = overlay(image, truth, truth, (1, 1), [[1]], window=(0, 1), oriented=False)
    assert near(drawn, TRUTH).sum() > 2 * near(drawn, PREDICTION).sum() > 0
    assert near(alone, PREDICTION).sum() == 0
    share = near(both, PREDICTION).sum() / (near(both, PREDICTION).sum() + near(both, TRUTH).sum())
    assert 0.4 < share < 0.8  # dashes cover 62 % of a line, less their soft ends
    rows = np.flatnonzero(near(alone, TRUTH).any(axis=1))
    middle = alone[rows[len(rows) // 2]]
    assert near(middle[len(middle) // 2], TRUTH) == np.False_  # the inside is left free


def test_small_object_in_a_large_slice_is_cropped_to():
    image = np.zeros((400, 400), np.float32)
    label = box((400, 400), (10, 40), (350, 390))
    seen = overlay(image, label, None, (1, 1), [[1]], window=(0, 1), oriented=False)
    whole = overlay(image, None, None, (1, 1), [[1]], window=(0, 1), oriented=False)
    outlined = np.flatnonzero(near(seen, TRUTH).any(axis=0))
    assert (outlined[-1] - outlined[0]) / seen.shape[1] > 0.2  # 40 of 400 columns are 0.1 of the whole slice
    assert not near(whole, TRUTH).any()


def test_thick_slices_are_not_cut_across():
    image = np.random.default_rng(0).normal(size=(10, 64, 64)).astype(np.float32)
    truth = box(image.shape, (2, 8), (20, 40), (20, 40))
    shown = views(image, truth, np.roll(truth, 3, axis=2), (10.0, 1.4, 1.4), [[1]])
    assert {v.axis for v in shown} == {0} and len(shown) == 3
    cube = views(np.zeros((20, 20, 20)), None, None, (1, 1, 1), [])
    assert [v.axis for v in cube] == [0, 1, 2]


@pytest.mark.parametrize("fill", [np.nan, np.inf, 7.0])
def test_images_without_contrast_or_with_nan_still_draw(fill):
    image = np.full((1, 16, 16), fill, np.float32)
    (view,) = views(image, None, None, (1, 1, 1), [])
    assert Image.open(io.BytesIO(view.data)).size == (view.width, view.height)


def test_same_picture_same_bytes_and_readable():
    picture = np.random.default_rng(1).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    first, mime = encode(picture)
    assert encode(picture)[0] == first
    read = Image.open(io.BytesIO(first))
    assert read.size == (60, 50) and read.get_format_mimetype() == mime
