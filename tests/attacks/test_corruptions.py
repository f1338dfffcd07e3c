"""Corruptions: identity, replay, growth with severity, anatomy in place, closed forms, bad input."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from seguro.attacks import corruptions
from seguro.attacks.corruptions import CORRUPTIONS, axes, corrupt, names, resolution, tomography
from seguro.core.errors import ConfigError, DataError
from seguro.core.seeds import generator

EVERY = sorted(CORRUPTIONS)
RANDOM = sorted(set(EVERY) - {"blur", "thick slices", "ringing", "cupping"})
SPACING = (2.0, 1.0, 1.0)
SHAPES = [(1, 10, 24, 28), (2, 1, 24, 20), (1, 9, 1, 21), (1, 1, 1, 12), (1, 1, 1, 1)]
FLOAT32 = 2e-6
"""Rounding of a few float32 operations on values of order 1."""
SAMPLING = 0.02
"""Relative error of a standard deviation estimated from 20,000 samples or more, fourfold."""


@cache
def body() -> np.ndarray:
    """A bright ball (1.0) off the middle in an ellipsoid of tissue (0.5) in air (0), slightly uneven."""
    z, y, x = np.meshgrid(*(axes.from_centre(n, d) for n, d in zip((12, 40, 48), SPACING, strict=True)))
    z, y, x = (np.swapaxes(a, 0, 1) for a in (z, y, x))
    image = 0.5 * ((z / 14) ** 2 + (y / 17) ** 2 + (x / 21) ** 2 < 1).astype(np.float32)
    image[(z - 1) ** 2 + (y - 3) ** 2 + (x + 4) ** 2 < 49] = 1.0
    image += generator(0, "texture").normal(0, 0.01, image.shape).astype(np.float32)
    return image[None].astype(np.float32)


def run(image, name, severity, *, spacing=SPACING, seed=0, case="c"):
    return corrupt(image, name, severity, spacing=spacing, seed=seed, case=case)


def rms(a, b) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def test_twelve_for_each_modality():
    assert len(names("mr")) == len(names("ct")) == 12
    assert set(names("mr")) & set(names("ct")) == set(names("any"))
    assert set(names("mr")) | set(names("ct")) == set(CORRUPTIONS)
    assert all(name == corruption.name for name, corruption in CORRUPTIONS.items())


@pytest.mark.parametrize("name", EVERY)
def test_severity_zero_is_the_identity_and_the_input_is_kept(name):
    image = body().copy()
    still = run(image, name, 0)
    np.testing.assert_array_equal(still, image)
    assert still is not image and not np.shares_memory(still, image)
    run(image, name, 3)
    np.testing.assert_array_equal(image, body())


@pytest.mark.parametrize("name", EVERY)
def test_the_same_call_gives_the_same_image_whatever_the_global_state(name):
    first = run(body(), name, 3)
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(run(body(), name, 3), first)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    others = [run(body(), name, 3, seed=1), run(body(), name, 3, case="d")]
    if name in RANDOM:  # a tone curve knows two directions only: another seed or case may agree
        many = [run(body(), name, 3, seed=seed) for seed in range(8)]
        assert any(not np.array_equal(other, first) for other in many)
    else:
        assert all(np.array_equal(other, first) for other in others)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_axis_may_have_one_voxel(name, shape):
    image = generator(0, "small").normal(100, 20, shape).astype(np.float32)
    for severity in (1, 5):
        out = run(image, name, severity)
        assert out.shape == shape and out.dtype == np.float32
        assert np.isfinite(out).all()
    plane = sum(n > 1 for n in shape[1:]) >= 2
    assert not plane or not np.array_equal(out, image)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", EVERY)
def test_the_change_grows_with_severity(name, seed):
    changes = [rms(run(body(), name, severity, seed=seed), body()) for severity in range(6)]
    assert all(low < high for low, high in pairwise(changes)), changes
    assert changes[5] < 0.5  # of the range: what is left is still an image of it


@pytest.mark.parametrize("name", EVERY)
def test_a_picture_is_corrupted_more_with_severity_too(name):
    picture = body()[:, 6:7]
    changes = [rms(run(picture, name, severity), picture) for severity in range(6)]
    assert all(low < high for low, high in pairwise(changes)), changes


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("severity", [3, 5])
def test_anatomy_stays_in_place(name, severity):
    """The shift that fits best is none: the correlation with the original peaks within half a voxel of 0.

    The strongest motion, of 2.4 mm, may leave one voxel of 1 mm: the still middle of k-space is blurry.
    """
    out = run(body(), name, severity)
    a, b = (np.fft.fftn(v[0] - v[0].mean()) for v in (body(), out))
    match = np.fft.ifftn(b * np.conj(a)).real
    peak = np.array(np.unravel_index(int(match.argmax()), match.shape))
    away = np.minimum(peak, np.array(match.shape) - peak)
    assert away.max() <= (name == "motion" and severity == 5), away


@pytest.mark.parametrize("name", EVERY)
def test_the_middle_of_a_bright_ball_moves_less_than_half_a_voxel(name):
    """Weighted by what the ball stands out over its neighborhood, averaged over chance."""
    near = ndimage.binary_dilation(body()[0] > 0.75, iterations=2)
    mean = np.mean([run(body(), name, 3, seed=seed)[0] for seed in range(6)], axis=0)

    def middle(channel):
        low, high = np.percentile(channel[near], [20, 95])
        return np.array(ndimage.center_of_mass(np.clip((channel - low) / (high - low), 0, 1) * near))

    assert np.abs(middle(mean) - middle(body()[0])).max() < 0.5


@pytest.mark.parametrize("name", EVERY)
def test_units_of_the_intensities_do_not_matter(name):
    """1000 x + 300 is corrupted into 1000 times the result + 300: all effects are relative to the range."""
    plain = run(body(), name, 3)
    other = run(1000 * body() + 300, name, 3)
    np.testing.assert_allclose((other - 300) / 1000, plain, atol=1e-4)  # float32 of 1300, and its percentiles


@pytest.mark.parametrize("name", EVERY)
def test_channels_are_corrupted_each_by_its_own_range(name):
    faint = np.concatenate([body(), 0.01 * body()])
    out = run(faint, name, 3)
    first, second = (rms(out[c], faint[c]) for c in (0, 1))
    assert 0.002 < second / first < 0.05  # a hundredth, but for other draws
    alone = run(faint[:1], name, 3)
    np.testing.assert_array_equal(out[:1], alone)


def test_a_constant_channel_has_no_range_and_stays():
    flat = np.full((1, 4, 8, 8), 7.0, np.float32)
    for name in EVERY:
        np.testing.assert_array_equal(run(flat, name, 5), flat)


def wide(seed=0) -> np.ndarray:
    """Values in [0, 1] whose percentiles are 0 and 1: more than 0.5 % at either end."""
    image = generator(seed, "wide").uniform(0.3, 0.7, (1, 16, 40, 40)).astype(np.float32)
    image[:, :, 0], image[:, :, -1] = 0, 1
    return image


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_noise_has_the_stated_sd(severity):
    noise = run(wide(), "gaussian noise", severity) - wide()
    sd = CORRUPTIONS["gaussian noise"].strengths[severity - 1]
    assert noise.std() == pytest.approx(sd, rel=SAMPLING)
    assert abs(noise.mean()) < 4 * sd / np.sqrt(noise.size)


def test_rician_noise_of_no_signal_is_rayleigh():
    dark = np.zeros((1, 16, 64, 64), np.float32)
    dark[:, :, :2] = 1
    out = run(dark, "rician noise", 3)
    sd = CORRUPTIONS["rician noise"].strengths[2]
    assert out[:, :, 2:].mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=SAMPLING)
    assert out[:, :, :2].mean() == pytest.approx(1 + sd**2 / 2, rel=SAMPLING)


def test_low_dose_noise_has_the_stated_sd_and_little_power_at_low_frequencies():
    even = np.ones((8, 64, 64), np.float32)
    noise = corruptions.noise.low_dose(even, (1, 1, 1), 0.2, generator(0)) - even
    assert noise.std() == pytest.approx(0.2, rel=SAMPLING)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    assert power[:3, :3].mean() < 0.05 * power.mean()


def test_starved_rows_are_streaks_of_the_stated_sd():
    even = np.ones((8, 64, 96), np.float32)
    noise = corruptions.noise.starvation(even, (1, 1, 1), 0.2, generator(0)) - even
    assert noise.std() == pytest.approx(0.2, rel=0.1)  # 96 voxels of a row hold few independent values
    along, across = (np.diff(noise, axis=axis).std() for axis in (2, 1))
    assert along < 0.1 * across


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_contrast_moves_middle_gray_and_neither_end(severity):
    image = wide()
    image[:, :, 1] = 0.5
    out = run(image, "contrast", severity)
    d = CORRUPTIONS["contrast"].strengths[severity - 1]
    assert np.abs(out[:, :, 1] - 0.5) == pytest.approx(d, abs=FLOAT32)
    np.testing.assert_array_equal(out[:, :, [0, -1]], image[:, :, [0, -1]])
    u, v = image.ravel(), out.ravel()
    assert (np.diff(v[np.argsort(u)]) > -FLOAT32).all()  # the order of gray values is kept


def test_the_strongest_contrast_is_nearly_gamma_two():
    u = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, 1, -1)
    down = next(g for g in map(generator, range(50)) if generator_sign(g) < 0)
    out = corruptions.intensity.contrast(u, SPACING, 0.25, down)
    np.testing.assert_allclose(out, u**2, atol=FLOAT32)


def generator_sign(rng) -> float:
    """The sign that an unused generator will draw, without using it up."""
    state = rng.bit_generator.state
    drawn = corruptions.intensity.sign(rng)
    rng.bit_generator.state = state
    return drawn


def test_rescaling_is_a_gain_and_an_offset_of_both_signs():
    found = set()
    for seed in range(12):
        out = run(wide(), "rescaling", 4, seed=seed)
        d = CORRUPTIONS["rescaling"].strengths[3] * np.sign(float((out - wide()).mean()))
        np.testing.assert_allclose(out, wide() * (1 + d) + d / 2, atol=FLOAT32)
        found.add(d > 0)
    assert found == {True, False}


def test_a_bias_field_is_smooth_positive_and_of_the_stated_size():
    image = np.ones((1, 12, 40, 40), np.float32)
    image[:, 0, :4] = 0
    out = run(image, "bias field", 4, spacing=(1, 1, 1))
    log = np.log(out[image > 0])
    assert log.std() == pytest.approx(
        CORRUPTIONS["bias field"].strengths[3], rel=1e-3
    )  # weights of 0 are 1e-6
    steps = np.abs(np.diff(np.log(out[0, 1:]), axis=1))
    assert steps.max() < 0.35 * np.ptp(log)  # a polynomial of degree three over 40 voxels
    thin = corruptions.intensity.bias_field(
        np.ones((12, 40, 40), np.float32), (0.01, 1, 1), 0.3, generator(0)
    )
    assert np.ptp(thin, axis=0).max() < 0.02 * np.ptp(thin)


def test_blur_is_in_millimetres():
    point = np.zeros((33, 33, 33), np.float32)
    point[16, 16, 16] = 1
    spacing = (1.5, 1.0, 0.5)
    out = resolution.blur(point, spacing, 2.0, generator(0))
    for axis, d in enumerate(spacing):
        profile = out.sum(axis=tuple(a for a in range(3) if a != axis))
        place = axes.from_centre(33, d)
        assert np.sqrt((profile * place**2).sum() / profile.sum()) == pytest.approx(2.0, rel=SAMPLING)


def test_a_thick_axis_is_blurred_less():
    edge = np.zeros((1, 20, 20, 20), np.float32)
    edge[:, 10:, 10:] = 1
    out = corrupt(edge, "blur", 5, spacing=(5.0, 1.0, 1.0), seed=0, case="c")[0]
    along_z, along_y = np.abs(np.diff(out[:, 19, 5])).max(), np.abs(np.diff(out[19, :, 5])).max()
    crossing = np.exp(-((5 / 2) ** 2) / 2)  # a Gaussian of 2 mm one voxel of 5 mm away
    assert along_z == pytest.approx(1 - 2 * crossing / (1 + 2 * crossing), abs=1e-3)
    assert along_y == pytest.approx(
        1 / (2.0 * np.sqrt(2 * np.pi)), rel=0.05
    )  # the slope of an error function


@pytest.mark.parametrize("thickness", [1.0, 1.7, 3.0, 6.4])
def test_thick_slices_keep_a_ramp_between_the_outermost_centres(thickness):
    n = 24
    matrix = resolution.slice_profile(n, thickness)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    ramp = np.arange(n, dtype=float)
    inner = slice(int(np.ceil(thickness)), n - int(np.ceil(thickness)))
    np.testing.assert_allclose((matrix @ ramp)[inner], ramp[inner], atol=1e-9)
    if thickness == 1.0:
        np.testing.assert_allclose(matrix, np.eye(n), atol=1e-12)


def test_slices_three_times_as_thick_average_three():
    values = generator(0).normal(size=(9, 1, 1))
    out = resolution.thick_slices(values.astype(np.float32), (2.0, 1.0, 1.0), 4.0, generator(0))
    np.testing.assert_allclose(out[[1, 4, 7], 0, 0], values.reshape(3, 3).mean(axis=1), atol=FLOAT32)


def test_the_coarsest_axis_is_the_one_with_thick_slices():
    lines = np.zeros((1, 8, 20, 8), np.float32)
    lines[:, :, ::2] = 1
    change = [rms(run(lines, "thick slices", 5, spacing=s), lines) for s in ((3, 1, 1), (1, 3, 1))]
    assert change[0] < FLOAT32 < change[1]


def test_dropout_takes_the_stated_signal_of_whole_slices():
    image = np.ones((1, 20, 8, 8), np.float32)
    image[:, :, 0] = 0
    out = run(image, "slice dropout", 5)[0, :, 1:]
    assert (np.ptp(out, axis=(1, 2)) < FLOAT32).all()
    lost = 1 - out.mean(axis=(1, 2))
    share = CORRUPTIONS["slice dropout"].strengths[4]
    assert lost.sum() == pytest.approx(20 * share * resolution.LOST, abs=20 * FLOAT32)
    assert lost.max() == pytest.approx(resolution.LOST, abs=FLOAT32)


def test_ringing_overshoots_by_nine_percent_on_both_sides_of_an_edge():
    edge = np.zeros((1, 1, 256, 8), np.float32)
    edge[:, :, 128:] = 1
    out = run(edge, "ringing", 5, spacing=(1, 1, 1))
    assert out.max() - 1 == pytest.approx(0.0895, abs=0.01)  # Wilbraham-Gibbs, sampled
    assert -out.min() == pytest.approx(0.0895, abs=0.01)


def test_ghosts_are_copies_at_a_fraction_of_the_field_of_view():
    image = np.zeros((1, 1, 60, 80), np.float32)
    image[:, :, 28:32, 30:50] = 1
    for seed in range(4):
        out = run(image, "ghosting", 3, spacing=(1, 1, 1), seed=seed)
        half = CORRUPTIONS["ghosting"].strengths[2] / 2
        rows = np.flatnonzero(np.abs(out[0, 0, :, 40] - half) < 1e-5)
        assert len(rows) == 8 and rows.mean() == 29.5  # two ghosts of four rows, about the object
        assert (rows[4] - rows[0]) / 2 in {60 / n for n in (3, 4, 5, 6)} | {60 - 40}
        assert out[:, :, 28:32].min() >= 0


def test_a_spike_is_one_plane_wave():
    image = np.ones((1, 3, 48, 48), np.float32)
    image[:, :, :1] = 0
    out = run(image, "spike", 2, spacing=(1, 1, 1))
    amplitude = CORRUPTIONS["spike"].strengths[1]
    np.testing.assert_allclose(out[:, :, 0], amplitude, atol=1e-5)  # a veil where it is dark
    stripes = out[0, 0, 1:] - 1
    assert stripes.std() == pytest.approx(amplitude / np.sqrt(2), rel=0.05)
    window = np.outer(np.hanning(47), np.hanning(48))
    power = np.sort(np.abs(np.fft.fft2((stripes - stripes.mean()) * window)).ravel() ** 2)
    assert power[-18:].sum() > 0.9 * power.sum()  # two conjugate peaks, each as wide as the window's lobe
    np.testing.assert_array_equal(out[0, 0], out[0, 2])


def test_motion_of_nothing_is_the_identity():
    still = corruptions.kspace.motion(np.abs(body()[0]), SPACING, 0.0, generator(0))
    np.testing.assert_allclose(still, np.abs(body()[0]), atol=1e-5)  # an FFT there and back


def test_rings_are_around_one_point():
    image = np.zeros((1, 1, 64, 64), np.float32)
    image[:, :, :1] = 1
    error = (run(image, "rings", 4, spacing=(1, 1, 1)) - image)[0, 0]
    y, x = np.meshgrid(axes.from_centre(64, 1), axes.from_centre(64, 1), indexing="ij")

    def within(cy, cx):
        ring = np.round(np.hypot(y - cy, x - cx)).astype(int).ravel()
        mean = np.bincount(ring, error.ravel()) / np.maximum(np.bincount(ring), 1)
        return float(np.mean((error.ravel() - mean[ring]) ** 2))

    best = min(within(cy, cx) for cy in np.arange(-7, 7.5, 0.5) for cx in np.arange(-7, 7.5, 0.5))
    assert best < 0.3 * error.var()  # what is left is the interpolation between elements


def test_enough_views_show_everything_and_none_changes_the_mean():
    image = body()[0, 5:7]
    all_views = tomography.sparse_views(image, SPACING, 4000.0, generator(0))
    assert rms(all_views, image) < 0.003
    few = tomography.sparse_views(image, SPACING, 40.0, generator(0))
    assert rms(few, image) > 10 * rms(all_views, image)


def test_metal_streaks_are_of_the_stated_size_and_join_the_implants():
    dark = np.zeros((1, 96, 96), np.float32)
    out = tomography.metal(dark, (1, 1, 1), 0.3, generator(3))[0]
    implants, n = ndimage.label(out > 1)
    assert n == 2
    streaks = np.abs(out[implants == 0])
    assert 0.15 < np.percentile(streaks, 99) <= 0.3 + FLOAT32  # the middle of the rod may lie off this slice
    first, second = (np.array(c) for c in ndimage.center_of_mass(out > 1, implants, [1, 2]))
    between = [first + t * (second - first) for t in np.linspace(0.35, 0.65, 7)]
    assert np.mean(ndimage.map_coordinates(out, np.transpose(between), order=1)) < -0.05


def test_cupping_is_deepest_in_the_middle():
    z, y, x = np.ogrid[:1, -32:32, -32:32]
    disk = ((y**2 + x**2 < 28**2) + 0 * z).astype(np.float32)
    out = corruptions.intensity.cupping(disk, (1, 1, 1), 0.5, generator(0))
    assert out[0, 32, 32] == pytest.approx(0.5, abs=0.02)
    assert out[0, 32, 58] > 0.8
    assert (np.diff(out[0, 32, 34:58]) > 0).all()


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"name": "fog"}, ConfigError, "gaussian noise"),
        ({"severity": 6}, ConfigError, "0 to 5"),
        ({"severity": -1}, ConfigError, "0 to 5"),
        ({"severity": 1.5}, ConfigError, "0 to 5"),
        ({"severity": True}, ConfigError, "0 to 5"),
        ({"spacing": (1, 1)}, ConfigError, "three positive"),
        ({"spacing": (1, 0, 1)}, ConfigError, "three positive"),
        ({"image": np.zeros((4, 5, 6))}, DataError, "(C, Z, Y, X)"),
        ({"image": np.zeros((1, 0, 5, 6))}, DataError, "(C, Z, Y, X)"),
        ({"image": np.full((1, 2, 3, 4), np.nan)}, DataError, "case k7: 24 of 24"),
        ({"image": np.full((1, 2, 3, 4), np.inf)}, DataError, "not finite"),
        ({"image": np.full((1, 2, 3, 4), np.nan), "severity": 0}, DataError, "not finite"),
    ],
)
def test_bad_input_is_refused(change, error, word):
    call = {"image": np.zeros((1, 3, 4, 5)), "name": "blur", "severity": 2, "spacing": (1, 1, 1), **change}
    image, name, severity = (call.pop(key) for key in ("image", "name", "severity"))
    with pytest.raises(error) as caught:
        corrupt(image, name, severity, seed=0, case="k7", **call)
    assert word in str(caught.value)


def test_no_such_modality():
    with pytest.raises(ConfigError, match="any, mr, ct"):
        names("pet")
