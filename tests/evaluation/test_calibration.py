import numpy as np
import pytest

from seguro.evaluation.calibration import expected_calibration_error, region


def test_calibrated_bins_have_no_error():
    p = np.repeat([0.25, 0.75], 8)
    truth = np.array([1, 1, 0, 0, 0, 0, 0, 0] + [1] * 6 + [0] * 2, bool)
    assert expected_calibration_error(p, truth) == pytest.approx(0, abs=1e-12)


def test_error_is_the_gap_weighted_by_voxels():
    p = np.array([0.9] * 10 + [0.1] * 30)
    truth = np.array([1] * 5 + [0] * 5 + [0] * 30, bool)  # gaps .4 over 10 voxels, .1 over 30
    assert expected_calibration_error(p, truth) == pytest.approx((10 * 0.4 + 30 * 0.1) / 40, abs=1e-12)


def test_certain_and_wrong_is_one_certain_and_right_is_zero():
    truth = np.array([True, False])
    assert expected_calibration_error(truth.astype(float), truth) == 0
    assert expected_calibration_error(1.0 - truth, truth) == 1


@pytest.mark.parametrize("p", [[1.2, 0.0], [np.nan, 0.5], [0.5]])
def test_malformed_is_refused(p):
    with pytest.raises(ValueError, match="probabilit"):
        expected_calibration_error(np.array(p), np.zeros(2, bool))


def test_region_is_a_margin_in_mm_cut_at_the_image():
    mask = np.zeros((20, 60, 60), bool)
    mask[10:12, 1:3, 30:40] = True
    assert region(mask, mask, (5.0, 1.0, 2.0)) == (slice(8, 14), slice(0, 13), slice(25, 45))
