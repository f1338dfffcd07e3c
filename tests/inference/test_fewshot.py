"""Prediction with a support: bound models, the cycle check, snapping, parts, doubt and corrected slices."""

import numpy as np
import pytest
import torch

import seguro
from seguro.core.errors import ConfigError, GeometryError
from seguro.core.types import IGNORE, Grid, Source, Volume, Warnings
from seguro.data.formats import read_image, read_label
from seguro.data.preprocess import to_planned
from seguro.data.support import Bank, Shot
from seguro.engine.model import load_model
from seguro.inference import fewshot
from seguro.inference.annotated import Annotated, few_flags
from seguro.inference.components import largest_components
from seguro.inference.doubt import Doubt
from seguro.inference.ensemble import Ensemble
from seguro.inference.snap import SMALL, Snapped
from seguro.methods.contract import Bound, Slices, Whole


@pytest.fixture(scope="module")
def model(few_shot_run):
    return load_model(few_shot_run)


@pytest.fixture(scope="module")
def pair(phantom_folder):
    return phantom_folder / "imagesTr" / "case_000.nii.gz", phantom_folder / "labelsTr" / "case_000.nii.gz"


@pytest.fixture(scope="module")
def bank(few_shot_run, pair):
    return seguro.load(few_shot_run).support(pair)


@pytest.fixture(scope="module")
def query(phantom_folder):
    return read_image([phantom_folder / "imagesTs" / "case_006.nii.gz"])


def volume(array) -> Volume:
    grid = Grid(array.shape[-3:], np.eye(4))
    return Volume(array, grid, Source("nifti", ".nii.gz", grid.shape[::-1]))


def test_a_bound_model_segments_the_classes_of_its_support(model, bank):
    bound = fewshot.bind(model, bank)
    assert bound.plan.classes == bank.classes
    assert bank.classes.foreground == model.plan.classes.foreground  # the mask has the values of the data
    assert bound.sha256 == model.sha256
    assert isinstance(bound.predictor, Bound)


def test_a_support_for_a_method_without_is_refused(model, bank, make_model, phantom_folder, tmp_path):
    plain = load_model(make_model(tmp_path / "m", phantom_folder, tmp_path / "w.seguro"))
    with pytest.raises(ConfigError, match="takes no support"):
        fewshot.bind(plain, bank)
    fewshot.refuse_unsupported([plain, fewshot.bind(model, bank)])
    with pytest.raises(ConfigError, match="--support IMAGE --support-label MASK"):
        fewshot.refuse_unsupported([plain, model])


def test_planned_supports_keep_what_was_not_annotated(model, bank):
    shot = bank.shots[0]
    label = np.full_like(shot.label, IGNORE)
    label[5] = shot.label[5]
    planned = fewshot.planned_support(
        Bank("x", bank.classes, (Shot(shot.image, label, shot.grid),), ("x",)), model.plan
    )
    seen = (planned.labels[0] != IGNORE).flatten(1).any(1)
    assert seen.tolist() == [z == 5 for z in range(len(shot.label))]


def test_two_copies_of_a_support_are_as_good_as_one(model, bank, query):
    other = Bank("twice", bank.classes, bank.shots * 2, ("a", "b"))
    labels = [Ensemble([fewshot.bind(model, b)]).label(query) for b in (bank, other)]
    assert (labels[0] != labels[1]).mean() < 1e-3


def test_the_api_predicts_corrects_and_undoes(few_shot_run, bank, query, phantom_folder):
    segmenter = seguro.load(few_shot_run)
    first = segmenter.predict(query, support=bank)
    truth = read_label(phantom_folder / "labelsTr" / "case_001.nii.gz").array
    right = np.zeros_like(first.array)
    right[4, 5:9, 5:9] = bank.classes.values[1][0]
    better = segmenter.correct(bank, query, right, [4])
    again = segmenter.predict(query, support=better)
    np.testing.assert_array_equal(again.array[4], right[4])
    assert better.parent == bank.hash
    assert len(better.shots) == 2
    np.testing.assert_array_equal(segmenter.predict(query, support=bank).array, first.array)
    with pytest.raises(ConfigError, match="the shape of the query"):
        segmenter.correct(bank, query, truth[:2], [0])
    with pytest.raises(ConfigError, match="--support"):
        segmenter.predict(query)


def test_the_api_says_what_makes_a_result_doubtful(few_shot_run, bank, query):
    segmenter = seguro.load(few_shot_run)
    noise = np.random.default_rng(0).normal(100, 30, query.array.shape).astype(np.float32)
    found = segmenter.predict(Volume(noise, query.grid, query.source), support=bank)
    assert any("low quality" in note or "nothing found" in note for note in found.notes)
    shot = bank.shots[0]
    own = segmenter.predict(Volume(shot.image, shot.grid, query.source), support=bank)
    assert not any("nothing found" in note for note in own.notes)


def test_the_cycle_check_leads_back_from_the_support_itself(model, bank):
    bound = fewshot.bind(model, bank)
    shot = bank.shots[0]
    values = np.array([v[0] for v in bank.classes.values])
    own = fewshot.cycle_dice(bound, volume(shot.image), values[shot.label])
    predicted = Ensemble([bound]).label(volume(shot.image))
    for k, name in enumerate(bank.classes.names):
        if k:
            a, b = predicted == values[k], shot.label == k
            # the support's own mask leads back exactly as the support segments itself
            assert own[name] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)


def test_an_empty_prediction_cannot_be_checked_and_is_flagged(model, bank, query):
    bound = fewshot.bind(model, bank)
    cycle = fewshot.cycle_dice(bound, query, np.zeros(query.grid.shape, np.uint8))
    assert set(cycle.values()) == {None}
    assert all("nothing found" in line for line in fewshot.quality_flags(cycle))
    assert fewshot.quality_flags({"a": 0.9, "b": 0.2}) == [
        "b: low quality, it leads back to the support with Dice 0.20, below 0.5"
    ]


def test_a_class_that_was_not_found_does_not_stop_the_check(model, bank, query):
    label = np.zeros(query.grid.shape, np.uint8)
    label[4:8, 5:12, 5:12] = bank.classes.values[2][0]
    cycle = fewshot.cycle_dice(fewshot.bind(model, bank), query, label)
    first, second = bank.classes.foreground
    assert cycle[first] is None
    assert 0 <= cycle[second] <= 1


def test_a_variant_has_the_same_weights_and_other_options(model):
    other = fewshot.variant(model, foreground="global", prior="none")
    assert (other.config["foreground"], other.config["prior"]) == ("global", "none")
    for a, b in zip(model.predictor.parameters(), other.predictor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_segment_uses_the_given_slices_alone(model, bank, query):
    plain = fewshot.variant(model, prior="none", nearest=0).predictor
    support = fewshot.planned_support(bank, model.plan)
    image, mask = support.images[0], support.labels[0] == 1
    x, _ = to_planned(query, model.plan)
    segment = fewshot.segment_of(plain, torch.from_numpy(x), image, mask)
    shown = [int(z) for z in torch.nonzero(mask.flatten(1).any(1)).flatten()]
    found = segment([4, 5], [shown[1]])
    assert found.shape == (2, *mask.shape[1:])
    np.testing.assert_array_equal(segment([5], [shown[1]])[0], found[1])
    elsewhere = image.clone()
    elsewhere[:, shown[0]] = 0
    again = fewshot.segment_of(plain, torch.from_numpy(x), elsewhere, mask)([4, 5], [shown[1]])
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(segment([4, 5], [shown[0]]), found)


def test_snapping_draws_probabilities_to_the_superpixel_mean(fake):
    image = torch.zeros(1, 1, 2, 32, 32)
    image[..., 16:] = 100.0
    torch.manual_seed(0)
    image += torch.rand_like(image)
    noise = torch.randn(1, 3, 2, 32, 32)
    plain = fake(Whole((1, 1, 1)), lambda x: noise)
    how = SMALL.model_copy(update={"min_size": 200, "unit": "px", "foreground": 0.5})
    p = noise.softmax(1)
    for weight in (0.0, 0.5, 1.0):
        found = Snapped(plain, weight, how=how)(image).softmax(1)
        bright = p[..., 16:].mean((3, 4), keepdim=True)
        expected = (1 - weight) * p[..., 16:] + weight * bright
        torch.testing.assert_close(found[..., 16:], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[..., :16], p[..., :16], atol=1e-5, rtol=0)  # outside the body
    for weight in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="0 to 1"):
            Snapped(plain, weight)


def test_snapping_of_a_slice_wise_predictor_sees_the_slice_whatever_its_axis(fake):
    torch.manual_seed(0)
    image = torch.rand(2, 1, 1, 32, 32)
    image[..., 16:] += 100.0
    noise = torch.randn(2, 3, 1, 32, 32)
    how = SMALL.model_copy(update={"min_size": 200, "unit": "px", "foreground": 0.5})
    for axis in (0, 2):
        sliced = fake(Slices(axis, (32, 32)), lambda x: noise)
        found = Snapped(sliced, 1.0, axis=axis, how=how)(image).softmax(1)
        bright = noise.softmax(1)[..., 16:].mean((3, 4), keepdim=True)
        torch.testing.assert_close(found[..., 16:], bright.expand_as(found[..., 16:]), atol=1e-5, rtol=0)


def test_snapping_keeps_gradients(fake):
    weight = torch.ones(1, requires_grad=True)
    predictor = Snapped(fake(Whole((1, 1, 1)), lambda x: x.expand(-1, 3, -1, -1, -1) * weight), 0.5)
    x = torch.rand(1, 1, 2, 16, 16, requires_grad=True)
    predictor(x)[:, 0].square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_the_largest_part_of_each_class_stays():
    label = np.zeros((3, 8, 8), np.uint8)
    label[0, :3, :3] = 1
    label[1, 3, 3] = 1  # touches by a corner
    label[2, 7, 7] = 1
    label[2, 0, 5:8] = 4
    found, gone = largest_components(label)
    expected = label.copy()
    expected[2, 7, 7] = 0
    np.testing.assert_array_equal(found, expected)
    assert gone == 1
    assert largest_components(np.zeros((2, 2, 2), np.uint8))[1] == 0


@pytest.mark.parametrize("axis", [0, 2])
def test_doubt_is_the_probability_of_being_wrong(model, bank, axis):
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.dirichlet([1, 1, 1], (6, 5, 4)).transpose(3, 0, 1, 2).copy())
    image = volume(np.zeros((1, 6, 5, 4), np.float32))
    doubt = Doubt(image, Ensemble([fewshot.bind(model, bank)]))
    n = p.shape[axis + 1]
    for start, stop in ((0, 1), (1, n)):
        doubt.add(axis, start, p.narrow(axis + 1, start, stop - start))
    wrong = 1 - p.amax(0).numpy()
    np.testing.assert_allclose(doubt.percent, np.rint(100 * wrong), atol=1)
    assert all(row[3] == 0 for row in doubt.slices())
    doubt.clear([2])
    assert not doubt.percent[2].any()
    np.testing.assert_array_equal(doubt.percent[3], np.rint(100 * wrong[3]))
    rows = np.array(doubt.slices())
    np.testing.assert_allclose(rows[:, 1], np.where(np.arange(6) == 2, 0, wrong.sum((1, 2))), atol=1e-3)
    np.testing.assert_array_equal(rows[:, 2], (p.argmax(0) > 0).sum((1, 2)))
    np.testing.assert_array_equal(rows[:, 3], np.arange(6) == 2)


def correction(tmp_path, array, like, first=0):
    """A label file of `array` whose first slice is slice `first` of the file `like`."""
    import nibabel as nib

    affine = like.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    path = tmp_path / "c.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return read_label(path)


def test_corrected_slices_are_those_that_differ_or_are_named_or_one(tmp_path):
    import nibabel as nib

    query = volume(np.zeros((1, 6, 5, 4), np.float32))
    before = np.zeros((6, 5, 4), np.uint8)
    after = before.copy()
    after[[1, 4], 2, 2] = 1
    edited = volume(after)
    label, slices = fewshot.corrected_slices(edited, query, before, 0, None)
    assert slices == [1, 4] and label is after
    assert fewshot.corrected_slices(edited, query, before, 0, [0])[1] == [0]
    with pytest.raises(ConfigError, match="same as the prediction"):
        fewshot.corrected_slices(volume(before), query, before, 0, None)
    file = nib.Nifti1Image(after.T, np.eye(4))
    one = correction(tmp_path, after.T[:, :, 4:5], file, first=4)
    label, slices = fewshot.corrected_slices(one, query, before, 0, None)
    assert slices == [4]
    np.testing.assert_array_equal(label[4], after[4])
    for wrong in (
        correction(tmp_path, after.T[:, :, 4:5], file, first=9),
        correction(tmp_path, after.T[:, :3, 4:5].copy(), file),
        Volume(after, Grid((6, 5, 4), np.diag([1, 1, 3, 1.0]) + np.eye(4, k=3)), query.source),
    ):
        with pytest.raises(GeometryError):
            fewshot.corrected_slices(wrong, query, before, 0, None)


def test_what_was_annotated_in_this_image_is_found(bank):
    shot = bank.shots[0]
    own = Volume(shot.image, shot.grid, Source("nifti", ".nii.gz", shot.grid.shape[::-1]))
    np.testing.assert_array_equal(fewshot.annotated_here(bank, own), shot.label)
    other = Volume(shot.image + 1, shot.grid, own.source)
    assert fewshot.annotated_here(bank, other) is None


def test_a_support_unlike_the_training_data_is_said(model, bank):
    assert fewshot.support_flags(bank, model.plan) == []
    shot = bank.shots[0]
    far = Grid(shot.grid.shape, np.diag([9.0, 9.0, 9.0, 1.0]))
    odd = Bank("x", bank.classes, (Shot(shot.image, shot.label, far), shot), ("x",))
    lines = fewshot.support_flags(odd, model.plan)
    assert lines and all(line.startswith("support 1: ") for line in lines)


def test_few_labelled_slices_of_a_scan_that_counts_as_annotated_throughout_are_said(model, bank):
    shot = bank.shots[0]

    def told(shown, annotated):
        label = np.full_like(shot.label, IGNORE)
        label[annotated] = 0
        label[shown, 5:9, 5:9] = 1
        some = Bank("x", bank.classes, (Shot(shot.image, label, shot.grid),), ("x",))
        return few_flags(some, 0)

    every, n = list(range(len(shot.label))), len(shot.label)
    (line,) = told([3, 4, 5], every)
    assert line.startswith(f"support 1: all its {n} slices count as annotated, a class is on 3")
    assert told([3, 4, 5], [3, 4, 5]) == told(every, every) == told(every[:6], every) == []
    warnings = Warnings()
    label = np.zeros_like(shot.label)
    label[4, 5:9, 5:9] = 1
    some = Bank("x", bank.classes, (Shot(shot.image, label, shot.grid),), ("x",))
    Annotated(some, [fewshot.bind(model, some)], warnings)
    assert any("--support-slices labelled" in w for w in warnings.lines())


def test_a_class_much_larger_than_in_the_support_is_flagged(model, bank):
    seen = Annotated(bank, [fewshot.bind(model, bank)], Warnings())
    shot, (first, second) = bank.shots[0], bank.classes.foreground
    ml = {n: float((shot.label == k).sum()) * shot.grid.voxel_ml for k, n in ((1, first), (2, second))}
    assert seen.size_flags(ml) == []
    assert seen.size_flags({first: 0.0, second: 2.9 * ml[second]}) == []
    (line,) = seen.size_flags({**ml, second: 3.1 * ml[second]})
    assert line.startswith(f"{second}: ") and line.endswith(f"the support shows {ml[second]:.4g} ml")
    label = shot.label.copy()
    label[0] = IGNORE
    some = Bank("x", bank.classes, (Shot(shot.image, label, shot.grid),), ("x",))
    partly = Annotated(some, [fewshot.bind(model, some)], Warnings())
    assert partly.size_flags({first: 1e9, second: 1e9}) == []
