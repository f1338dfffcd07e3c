"""Slices in the frame of a generator and back: labels keep their place and their values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seguro.data.frame import Frame


def frame(side: int, size: int) -> Frame:
    return Frame(axis=0, side=side, size=size, low=(-2.5,), high=(4.5,))


def blobs(side: int) -> np.ndarray:
    """Two classes: an ellipse with a smaller one in it, off the middle."""
    y, x = np.indices((side, side)) / side
    outer = ((y - 0.45) / 0.35) ** 2 + ((x - 0.55) / 0.28) ** 2 < 1
    inner = ((y - 0.5) / 0.15) ** 2 + ((x - 0.6) / 0.12) ** 2 < 1
    return (outer.astype(np.uint8) + inner).astype(np.uint8)


@pytest.mark.parametrize(("side", "size"), [(128, 64), (97, 64), (64, 64), (40, 64)])
def test_a_mask_comes_back_from_the_frame(side, size):
    """Check 27: Dice of at least 0.97 for what the frame can show."""
    label = blobs(side)
    small = frame(side, size).labels(label[None])
    assert small.shape == (size, size) and small.dtype == np.uint8
    assert set(np.unique(small)) == {0, 1, 2}
    scores = F.one_hot(torch.from_numpy(small).long(), 3).movedim(2, 0)[None].float()
    back = frame(side, size).enlarged(scores)[0].argmax(0).numpy()
    for value in (1, 2):
        a, b = label == value, back == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.97


def test_a_read_only_label_is_left_alone():
    label = blobs(32)
    label.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(frame(32, 32).labels(label), label)


@pytest.mark.parametrize("shape", [(3, 20, 20), (3, 14, 20), (3, 41, 20), (3, 50, 33)])
def test_frames_of_a_slice_show_all_of_it_and_overlap_by_half(shape):
    f = frame(20, 20)
    seen = np.zeros(shape[1:], int)
    middles = f.places(shape, 2)
    for z, *middle in middles:
        assert z == 2
        low = [round(m - (f.side - 1) / 2 + 1e-9) for m in middle]
        assert all(i >= 0 and i + f.side <= n for i, n in zip(low, shape[1:], strict=True) if n >= f.side)
        seen[tuple(slice(max(i, 0), i + f.side) for i in low)] += 1
    assert seen.min() >= 1
    if min(shape[1:]) > f.side:
        assert seen[f.side // 2 : -f.side // 2, f.side // 2 : -f.side // 2].min() >= 2
    elif max(shape[1:]) <= f.side:
        assert middles == [tuple((2.0, *((n - 1) / 2 for n in shape[1:])))]


def test_image_and_label_shrink_alike():
    """The middle of a bright square is where its label is, to half a pixel."""
    plane = np.zeros((96, 96), np.uint8)
    plane[30:60, 12:42] = 1
    f = frame(96, 32)
    image = f.shown(torch.from_numpy(plane.astype(np.float32))[None, None])[0, 0].numpy()
    places = np.indices((32, 32))
    weight = image - image.min()
    label = f.labels(plane)
    for axis in (0, 1):
        of_image = (places[axis] * weight).sum() / weight.sum()
        assert of_image == pytest.approx(places[axis][label == 1].mean(), abs=0.5)
