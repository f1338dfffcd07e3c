"""Looks: closed forms of histogram matching and of Fourier domain adaptation, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.core.seeds import generator
from seguro.data.appearance import fourier_adapted, histogram_matched


def noise(seed: int, shape=(1, 1, 12, 10)) -> np.ndarray:
    return generator(seed, "look").normal(size=shape).astype(np.float32)


def test_an_image_matched_to_itself_or_looking_like_itself_is_itself():
    x = noise(0)
    np.testing.assert_allclose(histogram_matched(x, x), x, atol=1e-6)
    np.testing.assert_allclose(fourier_adapted(x, x, 0.3), x, atol=1e-5)  # float32 there and back
    np.testing.assert_array_equal(fourier_adapted(x, noise(1), 0.0), x)


def test_a_matched_image_has_the_references_intensities_in_its_own_order():
    x, y = noise(0), 3 * noise(1) + 7
    out = histogram_matched(x, y)
    np.testing.assert_allclose(np.sort(out.ravel()), np.sort(y.ravel()), rtol=1e-5)
    assert (np.argsort(out.ravel(), kind="stable") == np.argsort(x.ravel(), kind="stable")).all()


def test_matching_undoes_what_keeps_the_order_of_intensities():
    x = noise(0)
    np.testing.assert_allclose(histogram_matched(np.exp(x), x), x, atol=1e-5)


def test_ties_stay_ties_and_channels_are_matched_one_by_one():
    x = np.stack([np.zeros((1, 4, 4)), np.tile([0.0, 1.0], 8).reshape(1, 4, 4)]).astype(np.float32)
    y = noise(2, (2, 1, 6, 6))
    out = histogram_matched(x, y)
    assert np.unique(out[0]).size == 1 and np.unique(out[1]).size == 2
    assert np.median(y[0]) == pytest.approx(float(out[0].max()), abs=0.2)  # the middle rank


def test_the_lowest_frequency_alone_is_the_mean():
    x, y = noise(0) + 2, noise(1) + 5
    out = fourier_adapted(x, y, 1e-6)
    np.testing.assert_allclose(out, x - x.mean() + y.mean(), atol=1e-5)


def test_amplitudes_are_the_references_inside_the_box_and_the_images_outside():
    x, y = noise(0, (1, 1, 16, 16)), noise(1, (1, 1, 16, 16))
    out = fourier_adapted(x, y, 0.125)
    own, other, new = (np.abs(np.fft.fft2(a[0, 0])) for a in (x, y, out))
    near = np.abs(np.fft.fftfreq(16) * 16) <= 2
    box = near[:, None] & near[None, :]
    np.testing.assert_allclose(new[box], other[box], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(new[~box], own[~box], rtol=1e-3, atol=1e-3)
    phases = [np.angle(np.fft.fft2(a[0, 0]))[~box] for a in (x, out)]
    np.testing.assert_allclose(np.cos(phases[0] - phases[1]), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "reference", "share", "message"),
    [
        pytest.param((1, 1, 4, 4), (1, 1, 4, 5), 0.1, "equal", id="shape"),
        pytest.param((1, 1, 4, 4), (1, 1, 4, 4), 0.6, "expected 0 to 0.5", id="share"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(image, reference, share, message):
    with pytest.raises(DataError, match=message):
        fourier_adapted(noise(0, image), noise(1, reference), share)


def test_other_channels_are_refused():
    with pytest.raises(DataError, match="channels"):
        histogram_matched(noise(0, (1, 1, 4, 4)), noise(1, (2, 1, 4, 4)))
