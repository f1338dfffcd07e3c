"""Scores of made images against closed forms, and the audit against copies."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.evaluation import generated
from seguro.evaluation.generated import Recognizer, audit, descriptors, frechet, nearest, singled_out


def images(n: int, seed: int, *, level: float = 0.0, size: int = 16) -> np.ndarray:
    return (np.random.default_rng(seed).normal(level, 0.2, (n, 1, size, size))).astype(np.float32)


def test_the_distance_of_gaussians_is_the_closed_form():
    """With equal covariances it is the squared distance of the means; of a doubled spread, the trace."""
    rows = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet(rows, rows + np.array([3, 0, 4, 0])) == pytest.approx(25)
    centered = rows - rows.mean(0)
    assert frechet(centered, 2 * centered) == pytest.approx(np.trace(np.cov(centered, rowvar=False)))


def test_descriptors_are_thirty_two_and_follow_intensity_and_edges():
    rows = descriptors(np.concatenate([images(2, 0), np.full((1, 1, 16, 16), 0.99, np.float32)]))
    assert rows.shape == (3, 32)
    assert rows[:, :16].sum(1) == pytest.approx(1)
    assert rows[2, 15] == 1.0  # all in the brightest bin
    assert rows[2, 16] == 1.0  # no edge at all
    assert rows[2, 24:] == pytest.approx(0, abs=1e-6)


def test_domains_are_recognized_by_their_look():
    real = [descriptors(images(30, 1)), descriptors(images(30, 2, level=0.4))]
    recognizer = Recognizer.fitted(real)
    fresh = descriptors(np.concatenate([images(20, 3), images(20, 4, level=0.4)]))
    assert (recognizer.domains(fresh) == np.repeat([0, 1], 20)).mean() > 0.95


def test_a_site_alone_says_which_domain_looks_most_like_it():
    """One wins always, none wins never, equal ones each as often; ties count half."""
    rng = np.random.default_rng(0)
    real, near, far = (rng.normal(m, 1, (60, 3)) for m in (0, 0, 20))
    assert singled_out(real, near, [far]) == 1
    assert singled_out(real, far, [near, far]) == 0
    assert singled_out(real, near, [near]) == pytest.approx(0.5)
    alike = [rng.normal(0, 1, (400, 3)) for _ in range(3)]
    assert singled_out(real, alike[0], alike[1:]) == pytest.approx(1 / 3, abs=0.06)
    with pytest.raises(DataError, match="at least two"):
        singled_out(real[:1], near, [far])


def test_the_nearest_image_is_found():
    a, b = images(5, 0), images(7, 1)
    brute = [min(np.sqrt(((x - y) ** 2).mean()) for y in b.astype(float)) for x in a.astype(float)]
    assert nearest(a, b) == pytest.approx(brute, rel=1e-6)


def test_the_nearest_image_is_found_block_by_block(monkeypatch):
    a, b = images(5, 0), images(7, 1)
    whole = nearest(a, b)
    monkeypatch.setattr(generated, "BLOCK", 2)
    assert nearest(a, b) == pytest.approx(whole, rel=1e-12)


def test_held_out_images_that_repeat_training_ones_prove_nothing():
    """Else copies would be let out wherever the held-out cases are copies themselves."""
    train = images(10, 0)
    for made in (train, images(10, 1)):
        done = audit(made, train, train[:4])
        assert (done.held_out, done.ratio, done.passed) == (0, 0, False)


def test_copies_fail_the_audit_and_fresh_images_pass():
    train, held_out = images(40, 0), images(20, 1)
    copies = train[:20] + images(20, 2) * 0.05
    assert not audit(copies, train, held_out).passed
    done = audit(images(20, 3), train, held_out)
    assert done.passed
    assert done.ratio == pytest.approx(1, abs=0.05)  # all are drawn alike
    assert (done.n_made, done.n_train, done.n_held_out) == (20, 40, 20)


def test_too_few_images_are_named():
    with pytest.raises(DataError, match="at least two"):
        frechet(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(DataError, match=r"\[1\]"):
        Recognizer.fitted([np.zeros((3, 2)), np.zeros((1, 2))])
    with pytest.raises(DataError, match="held-out"):
        audit(images(2, 0), images(2, 1), images(0, 2))
