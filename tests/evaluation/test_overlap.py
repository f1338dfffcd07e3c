import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from seguro.evaluation.overlap import overlap

MASKS = arrays(bool, (3, 4, 5))


def test_shifted_cubes_have_the_overlap_of_their_boxes():
    a, b = np.zeros((2, 10, 10, 10), bool)
    a[2:6, 2:6, 2:6] = True
    b[2:6, 2:6, 3:7] = True  # shifted by one of four: 3/4 of each is shared
    counts = overlap(a, b)
    assert (counts.dice, counts.precision, counts.recall) == (0.75, 0.75, 0.75)
    assert counts.iou == 48 / 80


def test_volume_error_is_signed_and_relative_to_the_truth():
    truth, prediction = np.zeros((2, 10), bool)
    truth[:4], prediction[:3] = True, True
    counts = overlap(truth, prediction)
    assert counts.volume_error_ml(0.5) == -0.5
    assert counts.volume_error_rel == -0.25


def test_every_zero_by_zero_is_none():
    empty, full = np.zeros(3, bool), np.ones(3, bool)
    missed, alarm, both = overlap(full, empty), overlap(empty, full), overlap(empty, empty)
    assert (missed.dice, missed.recall, missed.precision, missed.volume_error_rel) == (0, 0, None, -1)
    assert (alarm.dice, alarm.precision, alarm.recall, alarm.volume_error_rel) == (0, 0, None, None)
    assert (both.dice, both.iou, both.precision, both.recall) == (None, None, None, None)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        overlap(np.zeros(2, bool), np.zeros(3, bool))


@given(MASKS, MASKS)
def test_dice_is_symmetric_bounded_and_tied_to_iou(a, b):
    counts, turned = overlap(a, b), overlap(b, a)
    assert counts.dice == turned.dice
    assert counts.precision == turned.recall
    if counts.dice is not None:
        assert 0 <= counts.dice <= 1
        assert counts.dice == pytest.approx(2 * counts.iou / (1 + counts.iou), abs=1e-12)
    if a.any():
        assert overlap(a, a).dice == 1
