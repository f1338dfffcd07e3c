"""Episodes: never empty, one slice, independent transforms that move image and mask alike, seeds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import torch

from seguro.core.errors import DataError
from seguro.core.seeds import generator
from seguro.data.plan import Plan
from seguro.methods.alpnet import episodes
from seguro.methods.alpnet.config import AlpnetConfig, Transforms
from seguro.methods.alpnet.episodes import Episode
from seguro.methods.alpnet.raster import Raster, raster
from seguro.methods.alpnet.transforms import apply, draw_transform
from seguro.methods.contract import collate

SIZE = (64, 64)
STILL = Transforms(rotate_deg=0, shift_px=0, shear_deg=0, zoom=(1.0, 1.0), elastic_px=0, gamma=(1.0, 1.0))


def episode(cases, config: AlpnetConfig, plan: Plan, seed: int = 0, **more) -> Episode:
    seen = raster(plan, config.size, 4)
    size = seen.size((plan.fingerprint.shape[1], plan.fingerprint.shape[2]))
    options = {"raster": seen, "size": size, "transforms": config.transforms, **more}
    return episodes.draw(cases, generator(seed, "episode"), **options)


def equal(one: Episode, two: Episode) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))


def test_no_mask_is_ever_empty(cases_of, config, stacks):
    cases, wild = cases_of(config), Transforms(shift_px=300, rotate_deg=180, zoom=(0.3, 3.0))
    plan = stacks[2]
    for transforms, n in ((config.transforms, 300), (wild, 100)):
        for seed in range(n):
            drawn = episode(cases, config, plan, seed, transforms=transforms)
            for mask in (drawn.support_mask, drawn.query_mask):
                assert 0 < mask.sum() < mask.size and mask.max() == 1


@pytest.mark.slow
def test_no_mask_is_empty_in_ten_thousand_draws(cases_of, config, stacks):
    cases = cases_of(config)
    for seed in range(10_000):
        drawn = episode(cases, config, stacks[2], seed)
        assert drawn.support_mask.any() and drawn.query_mask.any()


def test_every_superpixel_is_drawn_and_nothing_else(cases_of, config, stacks):
    cases = cases_of(config)
    rng, seen = generator(0, "all"), set()
    for _ in range(4000):
        found = episodes._chosen(cases, rng, adjacent=False, excluded={})
        seen.add((found.case.id, found.z, found.region))
    assert seen == {(c.id, int(z), int(i)) for c in cases for z, i in c.regions.ids}


def test_without_transforms_both_views_show_one_slice_as_the_network_sees_it(cases_of, config, stacks):
    cases, plan = cases_of(config), stacks[2]
    drawn = episode(cases, config, plan, transforms=STILL)
    np.testing.assert_allclose(drawn.support, drawn.query, atol=1e-5)
    np.testing.assert_array_equal(drawn.support_mask, drawn.query_mask)
    seen = raster(plan, config.size, 4)
    slices = [
        seen.seen(torch.from_numpy(c.patch((slice(z, z + 1), slice(None), slice(None))))[:, 0][None])[
            0
        ].numpy()
        for c in cases
        for z in range(c.shape[0])
    ]
    # gamma 1 returns the image but for the rounding of its range
    assert any(s.shape == drawn.query.shape and np.allclose(s, drawn.query, atol=1e-4) for s in slices)


def test_views_are_transformed_independently_or_only_the_query(cases_of, config, stacks):
    cases, plan = cases_of(config), stacks[2]
    both = episode(cases, config, plan)
    assert not np.array_equal(both.support, both.query)
    one = episode(cases, config, plan, transforms=config.transforms.model_copy(update={"views": "query"}))
    still = episode(cases, config, plan, transforms=STILL)
    np.testing.assert_allclose(one.support, still.support, atol=1e-4)
    assert not np.allclose(one.query, still.query, atol=1e-2)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_episodes_are_functions_of_the_seed_for_any_number_of_workers(cases_of, config, stacks, workers):
    cases, plan = cases_of(config), stacks[2]
    want = [episode(cases, config, plan, seed) for seed in range(8)]
    if not workers:
        found = [episode(cases, config, plan, seed) for seed in range(8)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda s: episode(cases.view(), config, plan, s), range(8)))
    assert all(equal(a, b) for a, b in zip(want, found, strict=True))
    assert not equal(want[0], want[1])
    assert collate(found).query.shape == (8, *want[0].query.shape)


def disc(size: tuple[int, int], middle: tuple[float, float], radius: float) -> np.ndarray:
    at = np.indices(size)
    return (sum((a - m) ** 2 for a, m in zip(at, middle, strict=True)) <= radius**2).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_painted_into_the_image_follows_it(seed):
    mask = disc((128, 128), (60, 70), 25)
    how = Transforms(shear_about="middle", elastic_px=30.0)
    drawn = draw_transform(generator(seed, "t"), how, mask.shape)
    image, moved = apply(mask[None], mask, drawn, outside=0.0)
    a, b = image[0] > 0.5**drawn.gamma, moved > 0.5
    assert (a & b).sum() / (a | b).sum() > 0.98
    assert not np.array_equal(b, mask > 0.5)


def test_beyond_the_slice_lies_its_minimum_or_the_published_zero(cases_of, config, stacks):
    image = np.full((1, 64, 64), 5.0, np.float32)
    image[0, 30:34, 30:34] = 2.0
    how = Transforms(zoom=(0.5, 0.5), gamma=(1.0, 1.0))
    drawn = draw_transform(generator(0, "t"), how, SIZE)
    for outside in (2.0, 0.0):
        seen, _ = apply(image, image[0], drawn, outside=outside)
        assert abs(seen[0, 0, 0] - outside) < 1e-3
    far = Transforms(zoom=(0.5, 0.5), gamma=(1.0, 1.0), shear_about="middle")
    found = {
        which: episode(
            cases_of(config), config, stacks[2], transforms=far.model_copy(update={"outside": which})
        ).query
        for which in ("minimum", "zero")
    }
    corner = found["minimum"][0, 0, 0]
    assert corner == pytest.approx(found["minimum"].min(), abs=1e-3) and corner < -0.1
    assert abs(found["zero"][0, 0, 0]) < 1e-2


def test_a_zoom_keeps_the_middle_and_the_published_shear_the_corner():
    zoom = STILL.model_copy(update={"zoom": (2.0, 2.0)})
    drawn = draw_transform(generator(1, "t"), zoom, (128, 128))
    np.testing.assert_allclose(drawn.inverse @ [63.5, 63.5, 1], [63.5, 63.5, 1])
    np.testing.assert_allclose(drawn.inverse[:2, :2], 0.5 * np.eye(2), atol=1e-12)
    for about, still in (("corner", 0.0), ("middle", 63.5)):
        shear = STILL.model_copy(update={"shear_deg": 45.0, "shear_about": about})
        drawn = draw_transform(generator(1, "t"), shear, (128, 128))
        np.testing.assert_allclose(drawn.inverse @ [still, still, 1], [still, still, 1], atol=1e-9)
        assert abs(drawn.inverse[1, 0]) > 0.01 and drawn.inverse[0, 1] == 0


def test_lengths_grow_with_the_size():
    moves = [
        np.linalg.inv(
            draw_transform(generator(2, "t"), Transforms(rotate_deg=0, shear_deg=0, zoom=(1, 1)), s).inverse
        )
        for s in ((256, 256), (64, 64))
    ]
    np.testing.assert_allclose(moves[0][:2, 2], 4 * moves[1][:2, 2])


def test_larger_slices_are_cut_around_the_superpixel_and_smaller_ones_padded():
    image = generator(0, "x").normal(size=(1, 40, 20)).astype(np.float32)
    mask = np.zeros((40, 20), np.float32)
    mask[36:39, 5:8] = 1
    cut, cut_mask = episodes._fitted(image, mask, (16, 32), -9.0)
    assert cut.shape == (1, 16, 32) and cut_mask.sum() == 9
    assert (cut[0, :, :6] == -9).all() and (cut[0, :, 6:26] == image[0, 24:40]).all()


def test_excluded_slices_are_never_shown_and_nothing_left_is_an_error(cases_of, config, stacks):
    cases = cases_of(config)
    keep = cases[0].id
    excluded = {c.id: tuple(range(c.shape[0])) for c in cases if c.id != keep}
    rows = cases[0].regions.ids
    hidden = {**excluded, keep: (int(rows[0, 0]),)}
    rng = generator(0, "x")
    for _ in range(50):
        found = episodes._chosen(cases, rng, adjacent=False, excluded=hidden)
        assert found.case.id == keep and found.z != rows[0, 0]
    hidden[keep] = tuple(range(cases[0].shape[0]))
    with pytest.raises(DataError, match="superpixel"):
        episodes._chosen(cases, rng, adjacent=False, excluded=hidden)


def test_adjacent_episodes_show_one_supervoxel_on_two_slices(cases_of, config, stacks):
    how = config.superpixels.model_copy(update={"kind": "supervoxels"})
    adjacent = config.model_copy(update={"superpixels": how, "episode": "adjacent"})
    cases = cases_of(adjacent)
    drawn = episode(cases, adjacent, stacks[2], adjacent=True, transforms=STILL)
    assert not np.array_equal(drawn.support, drawn.query)
    rng = generator(0, "a")
    for _ in range(20):
        found = episodes._chosen(cases, rng, adjacent=True, excluded={})
        assert (found.regions.map[found.z] == found.region).any()
        assert (found.regions.map[found.z + 1] == found.region).any()
    with pytest.raises(ValueError, match="supervoxels"):
        AlpnetConfig.model_validate({"episode": "adjacent"})


def test_the_raster_keeps_pixels_square_and_cells_whole():
    seen = Raster(0, (0.5, 0.5), 4, 8.0)
    assert seen.size((256, 256)) == (128, 128)
    assert seen.size((250, 3)) == (124, 4)
