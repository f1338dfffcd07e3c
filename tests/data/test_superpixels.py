"""Superpixels: every id exists, none is too small, the body bounds them; computed once and kept."""

from __future__ import annotations

import builtins
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from seguro import api
from seguro.core.errors import DataError, ExtraMissing
from seguro.core.seeds import generator
from seguro.data import phantom, superpixels
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases
from seguro.data.superpixels import Regions, Superpixels, body_mask, compute, existing, least_area

KINDS = ["felzenszwalb", "slic", "supervoxels"]
LITTLE = Superpixels(min_size=30)


def volume(shape=(6, 48, 56), seed: int = 0) -> np.ndarray:
    image, _ = phantom.volume(generator(seed, "superpixels"), shape, 3)
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_exists_and_is_large_enough_inside_the_body(kind):
    pytest.importorskip("skimage")
    image, how = volume(), LITTLE.model_copy(update={"kind": kind})
    found = superpixels.superpixels(image, how)
    assert found.shape == image.shape[1:] and found.dtype == np.int32
    scaled = (image - image.min()) / (image.max() - image.min())
    rows = existing(found)
    assert len(rows) >= 2 * len(found)
    for z, slice_ in enumerate(found):
        ids, sizes = np.unique(slice_[slice_ > 0], return_counts=True)
        assert (rows[rows[:, 0] == z, 1] == ids).all() and (sizes >= 30).all()
        if kind != "supervoxels":
            assert (ids == np.arange(1, len(ids) + 1)).all()
        assert not slice_[~body_mask(scaled[0, z], how.foreground)].any()
    there = np.unique(found[found > 0])
    assert (there == np.arange(1, len(there) + 1)).all()  # also over the volume none is missing
    assert (superpixels.superpixels(image, how) == found).all()


def dumbbell() -> np.ndarray:
    """A body (1, 3, 40, 60) of two halves, joined by a bridge of another brightness."""
    image = np.zeros((1, 3, 40, 60), np.float32)
    image[..., 4:36, 4:20] = image[..., 4:36, 42:56] = 1.0
    image[..., 18:22, 20:42] = 0.6
    return image


def n_pieces(found: np.ndarray) -> list[int]:
    """Return of every superpixel of a slice in how many 8-connected pieces it is."""
    eight = np.ones((3, 3))
    return [ndimage.label(found == i, eight)[1] for i in np.unique(found[found > 0])]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_superpixels_of_their_own_where_that_is_asked_for(kind, monkeypatch):
    """The body mask may cut a region in two: its id stays one by default, as published."""
    pytest.importorskip("skimage")
    image = dumbbell()
    both = image[0] > 0.9
    cut = both.astype(int) if kind == "supervoxels" else both[0].astype(int)  # an id for both halves
    tool = SimpleNamespace(felzenszwalb=lambda *a, **k: cut.copy(), slic=lambda *a, **k: cut.copy())
    monkeypatch.setattr(superpixels, "_skimage", lambda: tool)
    how = Superpixels(kind=kind, min_size=30)
    plain = superpixels.superpixels(image, how)[0] * both[0]
    whole = superpixels.superpixels(image, how.model_copy(update={"contiguous": True}))[0] * both[0]
    assert n_pieces(plain) == [2] and (plain > 0).sum() == 32 * 30
    assert n_pieces(whole) == ([1] if kind == "supervoxels" else [1, 1])
    assert (whole > 0).sum() == 32 * (16 if kind == "supervoxels" else 30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_contiguous_superpixels_are_whole_and_large_enough(kind, seed):
    pytest.importorskip("skimage")
    how = LITTLE.model_copy(update={"kind": kind, "contiguous": True, "foreground": 0.3})
    image = volume(seed=seed) + np.random.default_rng(seed).normal(0, 8, (1, 6, 48, 56)).astype(np.float32)
    found = superpixels.superpixels(image, how)
    plain = superpixels.superpixels(image, how.model_copy(update={"contiguous": False}))
    assert all(n == 1 for slice_ in found for n in n_pieces(slice_))
    if kind == "felzenszwalb":  # SLIC cuts inside the mask, and seldom into pieces
        assert max(n for slice_ in plain for n in n_pieces(slice_)) > 1
    for z, i in existing(found):
        part = found[z] == i
        assert part.sum() >= 30
        assert len(np.unique(plain[z][part])) == 1  # never across what was apart before


def test_only_the_largest_piece_of_an_id_stays():
    pytest.importorskip("skimage")
    parts = np.array([[1, 1, 0, 2, 0], [0, 0, 1, 0, 2], [3, 0, 0, 0, 0], [3, 0, 1, 0, 3]])
    expected = np.array([[1, 1, 0, 2, 0], [0, 0, 1, 0, 2], [3, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    assert (superpixels.largest_pieces(parts) == expected).all()
    assert superpixels.pieces(parts).max() == 5


def test_slices_do_not_depend_on_each_other_or_on_the_axis():
    pytest.importorskip("skimage")
    image = volume()
    found = superpixels.superpixels(image, LITTLE)
    assert (superpixels.superpixels(image[:, ::-1], LITTLE) == found[::-1]).all()
    moved = superpixels.superpixels(np.ascontiguousarray(np.moveaxis(image, 1, 3)), LITTLE, axis=2)
    assert (np.moveaxis(moved, 2, 0) == found).all()


def test_units_of_the_intensities_do_not_matter():
    pytest.importorskip("skimage")
    image = volume()
    found = superpixels.superpixels(image, LITTLE)
    other = superpixels.superpixels(image * 4.0 - 128.0, LITTLE)
    assert (found == other).mean() > 0.999  # float32 rounding may move a pixel


def test_an_empty_slice_and_an_empty_volume_have_none():
    pytest.importorskip("skimage")
    image = volume()
    image[:, 2] = image.min()
    found = superpixels.superpixels(image, LITTLE)
    assert not found[2].any() and found[3].any()
    for kind in KINDS:
        how = LITTLE.model_copy(update={"kind": kind})
        assert not superpixels.superpixels(np.zeros((1, 3, 20, 20), np.float32), how).any()


@pytest.mark.parametrize("kind", ["felzenszwalb", "slic", "supervoxels"])
def test_supervoxels_alone_are_shared_by_slices(kind):
    pytest.importorskip("skimage")
    how = LITTLE.model_copy(update={"kind": kind})
    found = superpixels.superpixels(volume((8, 48, 56)), how)
    shared = Regions(found, existing(found)).shared
    overlaps = [((found[z] == i) & (found[z + 1] == i)).any() for z, i in shared]
    assert len(shared) > 0
    if kind == "supervoxels":
        assert np.mean(overlaps) > 0.9


def test_the_smallest_area_in_each_unit():
    shape, sides = (256, 256), (1.25, 1.25)
    assert least_area(Superpixels(), shape, sides) == 400
    assert least_area(Superpixels(min_size=625, unit="mm2"), shape, sides) == 400
    assert least_area(Superpixels(min_size=400 / 256**2, unit="share"), shape, sides) == 400
    assert least_area(Superpixels(min_size=1e-9, unit="share"), shape, sides) == 1


def test_a_body_has_no_holes_and_one_part():
    image = np.zeros((20, 20), np.float32)
    image[2:12, 2:12], image[5:7, 5:7], image[15:18, 15:18] = 1, 0, 1
    mask = body_mask(image, 0.5)
    assert mask[2:12, 2:12].all() and mask.sum() == 100


@pytest.mark.slow
def test_a_slice_of_256_takes_a_fifth_of_a_second():
    image = volume((1, 256, 256))
    superpixels.superpixels(image, Superpixels())
    start = time.process_time()
    superpixels.superpixels(image, Superpixels())
    assert time.process_time() - start < 0.2


@pytest.fixture(scope="module")
def prepared(flat_folder, tmp_path_factory):
    pytest.importorskip("skimage")
    options = PlanOptions(memory_gib=0.01, batch=2)
    store = api.prepare(flat_folder, out=tmp_path_factory.mktemp("superpixels"), options=options)
    _, manifest, plan = api.plan(flat_folder, out=store.parents[1])
    return store, manifest, plan


def cases(prepared, how, **more) -> Cases:
    store, manifest, plan = prepared
    return Cases(store, manifest.of("train"), plan.classes, hide_labels=True, regions=how, **more)


HOW = Superpixels(min_size=0.03, unit="share")


def test_they_are_computed_once_and_resumed_case_by_case(prepared):
    found, told = cases(prepared, HOW), []
    with pytest.raises(DataError, match="no superpixels of these options"):
        found[0]
    compute(found, HOW, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, len(found)) for i in range(1, len(found) + 1)]
    kept = sorted(prepared[0].glob(f"*.{HOW.name}.npy"))
    assert len(kept) == len(found)
    before = {p: p.stat().st_mtime_ns for p in kept}
    content = kept[0].read_bytes()
    kept[0].unlink()  # as if it had been stopped before this one
    told.clear()
    compute(found, HOW, progress=lambda done, total: told.append((done, total)))
    assert told == [(len(found), len(found))]
    assert kept[0].read_bytes() == content
    assert all(p.stat().st_mtime_ns == before[p] for p in kept[1:])
    case = found[0]
    assert (existing(case.regions.map) == case.regions.ids).all() and len(case.regions.ids)
    assert isinstance(case.regions.map, np.memmap) and case.label is None


def test_other_options_are_other_files():
    assert HOW.name != Superpixels().name == Superpixels(min_size=400).name
    assert Superpixels(contiguous=True).name != Superpixels().name == "superpixels-09079b3d356fcca2"


def test_without_scikit_image_the_error_names_the_extra(prepared, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    how = Superpixels(min_size=0.04, unit="share")
    with pytest.raises(ExtraMissing, match=r"seguro\[fewshot\]"):
        compute(cases(prepared, how), how)
