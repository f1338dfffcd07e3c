"""`seguro predict --support` and `seguro refine`: artefact, output, correction, undo."""

import json

import nibabel as nib
import numpy as np
import pytest

from seguro.api.support import named_values, slice_choice
from seguro.cli.main import main
from seguro.core.errors import ConfigError


def call(capsys, *arguments, code=0):
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folders(phantom_folder):
    train, labels = phantom_folder / "imagesTr", phantom_folder / "labelsTr"
    return train / "case_000.nii.gz", labels / "case_000.nii.gz", phantom_folder / "imagesTs"


@pytest.fixture
def predicted(few_shot_run, folders, capsys):
    """The phantom's test cases, predicted with one support."""
    image, mask, queries = folders
    out = few_shot_run / "predictions" / "queries"
    call(capsys, "predict", few_shot_run, queries, "--support", image, "--support-label", mask, "--out", out,
         "--doubt")  # fmt: skip
    return out


def test_a_prediction_with_a_support_is_recorded_with_its_hash(few_shot_run, predicted, folders, capsys):
    listing = json.loads((predicted / "predictions.json").read_text())
    key = listing["options"]["support"]
    assert (few_shot_run / "support" / key / "support.json").exists()
    image = nib.load(folders[2] / "case_006.nii.gz")
    label = nib.load(predicted / "case_006.nii.gz")
    assert label.get_data_dtype() == np.uint8
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    assert set(listing["cases"]["case_006"]["cycle_dice"]) == set(listing["classes"]["names"][1:])
    for name in ("quality.csv", "doubt.csv", "doubt/case_006.nii.gz"):
        assert (predicted / name).exists()
        assert name in json.loads((predicted / "stage.json").read_text())["outputs"]
    words = ("--support", key[:10], "--doubt", "--out", predicted)
    again = call(capsys, "predict", few_shot_run, folders[2], *words)
    assert again["predictions"][0]["reused"] == ["case_006", "case_007"]


def test_another_support_predicts_anew(few_shot_run, predicted, folders, phantom_folder, capsys):
    mask = phantom_folder / "labelsTr" / "case_001.nii.gz"
    image = phantom_folder / "imagesTr" / "case_001.nii.gz"
    found = call(
        capsys, "predict", few_shot_run, folders[2], "--support", folders[0], "--support-label", folders[1],
        "--support", image, "--support-label", mask, "--out", predicted,
    )  # fmt: skip
    assert found["predictions"][0]["reused"] == []


def test_options_reach_the_prediction(few_shot_run, folders, tmp_path, capsys):
    image, mask, queries = folders
    query = queries / "case_006.nii.gz"
    outs = {}
    for name, more in {
        "plain": [], "snap": ["--snap", "1"], "largest": ["--largest"],
        "class": ["--support-class", "mine=2"], "slices": ["--support-slices", "5"],
    }.items():  # fmt: skip
        out = tmp_path / name
        arguments = ["--support", image, "--support-label", mask, "--out", out, *more]
        call(capsys, "predict", few_shot_run, query, *arguments)
        outs[name] = np.asarray(nib.load(out / "case_006.nii.gz").dataobj)
    assert not np.array_equal(outs["plain"], outs["snap"])
    assert set(np.unique(outs["class"])) <= {0, 2}
    assert not np.array_equal(outs["plain"], outs["slices"])
    from scipy import ndimage

    touching = np.ones((3, 3, 3))
    parts = [ndimage.label(outs["plain"] == v, touching)[1] for v in (1, 2)]
    assert max(parts) > 1  # or this shows nothing
    assert all(ndimage.label(outs["largest"] == v, touching)[1] <= 1 for v in (1, 2))


def test_evaluate_scores_a_prediction_with_a_support(phantom_folder, folders, few_shot_run, capsys):
    out = few_shot_run / "predictions" / "train"
    image = phantom_folder / "imagesTr" / "case_002.nii.gz"
    words = ("--support", folders[0], "--support-label", folders[1], "--out", out)
    call(capsys, "predict", few_shot_run, image, *words)
    truth = phantom_folder / "labelsTr"
    call(capsys, "evaluate", out, "--truth", truth)
    rows = (out / "scores" / "scores.csv").read_text().splitlines()
    a = np.asarray(nib.load(out / "case_002.nii.gz").dataobj) == 1
    b = np.asarray(nib.load(truth / "case_002.nii.gz").dataobj) == 1
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    found = [r.split(",") for r in rows if r.startswith("case_002") and ",dice," in r]
    names = json.loads((out / "predictions.json").read_text())["classes"]["names"]
    row = next(r for r in found if names[1] in r)
    assert float(row[row.index("dice") + 1]) == pytest.approx(dice, abs=1e-6)


def corrected_file(predicted, tmp_path, slices):
    """The prediction with a square of class 1 on some slices, as a user would save it."""
    image = nib.load(predicted / "case_006.nii.gz")
    label = np.zeros(image.shape, np.uint8)
    before = np.asarray(image.dataobj)
    label[...] = before
    for z in slices:
        label[:, :, z] = 0
        label[6:11, 6:10, z] = 1
    path = tmp_path / "corrected.nii.gz"
    nib.save(nib.Nifti1Image(label, image.affine), path)
    return path, label


def test_refine_takes_a_correction_over_and_undo_is_exact(few_shot_run, predicted, folders, tmp_path, capsys):
    query = folders[2] / "case_006.nii.gz"
    path, label = corrected_file(predicted, tmp_path, [5])
    before = (predicted / "case_006.nii.gz").read_bytes()
    first = call(capsys, "refine", few_shot_run, query, "--corrected", path, "--predictions", predicted)
    assert (first["corrected"], first["corrections"]) == ([5], 1)
    assert all(n["slice"] != 5 for n in first["next_slices"])
    refined = predicted / "refined" / "case_006" / "case_006.nii.gz"
    one = np.asarray(nib.load(refined).dataobj)
    np.testing.assert_array_equal(one[:, :, 5], label[:, :, 5])
    assert not np.array_equal(one, np.asarray(nib.load(predicted / "case_006.nii.gz").dataobj))
    words = ("--corrected", path, "--slices", "5,7", "--predictions", predicted)
    second = call(capsys, "refine", few_shot_run, query, *words)
    assert (second["corrected"], second["corrections"]) == ([5, 7], 2)
    back = call(capsys, "refine", few_shot_run, query, "--undo", "--predictions", predicted)
    assert (back["support"], back["corrections"]) == (first["support"], 1)
    np.testing.assert_array_equal(np.asarray(nib.load(refined).dataobj), one)
    back = call(capsys, "refine", few_shot_run, query, "--undo", "--predictions", predicted)
    assert back["corrections"] == 0
    assert refined.read_bytes() == before == (predicted / "case_006.nii.gz").read_bytes()
    assert main(["refine", str(few_shot_run), str(query), "--undo", "--predictions", str(predicted)]) == 1


def test_a_stopped_refine_is_done_again_with_the_same_result(
    few_shot_run, predicted, folders, tmp_path, capsys
):
    """Stopped after the prediction, before the history says so: the second correction is not lost in it."""
    query = folders[2] / "case_006.nii.gz"
    refined = predicted / "refined" / "case_006"
    words = ("refine", few_shot_run, query, "--predictions", predicted)
    call(capsys, *words, "--corrected", corrected_file(predicted, tmp_path, [5])[0])
    history = (refined / "history.json").read_bytes()
    path, _ = corrected_file(refined, tmp_path, [3])
    once = call(capsys, *words, "--corrected", path)
    label = (refined / "case_006.nii.gz").read_bytes()
    (refined / "history.json").write_bytes(history)
    again = call(capsys, *words, "--corrected", path)
    assert (again["corrected"], again["corrections"], again["support"]) == ([3], 2, once["support"])
    assert (refined / "case_006.nii.gz").read_bytes() == label
    assert [call(capsys, *words, "--undo")["corrections"] for _ in range(2)] == [1, 0]


def test_a_correction_is_compared_with_the_prediction_in_force(
    few_shot_run, predicted, folders, phantom_folder, tmp_path, capsys
):
    """After a prediction with another support, what was refined before is no longer what was corrected."""
    query = folders[2] / "case_006.nii.gz"
    words = ("refine", few_shot_run, query, "--predictions", predicted)
    call(capsys, *words, "--corrected", corrected_file(predicted, tmp_path, [2, 5])[0])
    image, mask = (phantom_folder / f / "case_001.nii.gz" for f in ("imagesTr", "labelsTr"))
    call(capsys, "predict", few_shot_run, folders[2], "--support", image, "--support-label", mask,
         "--out", predicted)  # fmt: skip
    found = call(capsys, *words, "--corrected", corrected_file(predicted, tmp_path, [4])[0])
    assert (found["corrected"], found["corrections"]) == ([4], 1)
    assert call(capsys, *words, "--undo")["corrections"] == 0


def test_refine_finds_the_prediction_itself(few_shot_run, predicted, folders, tmp_path, capsys):
    path, _ = corrected_file(predicted, tmp_path, [3])
    query = folders[2] / "case_006.nii.gz"
    found = call(capsys, "refine", few_shot_run, query, "--corrected", path)
    assert found["out"].startswith(str(predicted))
    call(capsys, "refine", few_shot_run, query, "--undo")


@pytest.mark.parametrize(
    ("words", "expected"), [(["a=1", "b b=2"], {"a": 1, "b b": 2}), ([], {})], ids=["two", "none"]
)
def test_class_words(words, expected):
    assert named_values(words) == expected


@pytest.mark.parametrize("word", ["a", "=1", "a=b", "a=-1", "background=1"])
def test_class_words_of_another_form_are_refused(word):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        named_values([word])


def test_slice_words():
    assert [slice_choice(t) for t in ("auto", "3, 5", "0")] == ["auto", (3, 5), (0,)]
    with pytest.raises(ConfigError, match="numbers"):
        slice_choice("3-5")


def test_a_prediction_with_a_support_names_refine_next_and_it_works_as_printed(
    few_shot_run, folders, tmp_path, capsys
):
    image, mask, queries = folders
    query, out = queries / "case_006.nii.gz", tmp_path / "out"
    words = ["predict", few_shot_run, query, "--support", image, "--support-label", mask, "--out", out]
    assert main([*map(str, words)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    expected = f"seguro refine {few_shot_run} {query} --predictions {out} --corrected LABEL.nii.gz"
    assert "".join(expected.split()) in "".join(printed.split())  # a terminal breaks long lines
    label = nib.load(out / "case_006.nii.gz")
    changed = np.asarray(label.dataobj).copy()
    changed[8:12, 8:12, 5] = 1 - changed[8:12, 8:12, 5].clip(0, 1)
    nib.save(nib.Nifti1Image(changed, label.affine), tmp_path / "c.nii.gz")
    call(capsys, *expected.replace("LABEL.nii.gz", str(tmp_path / "c.nii.gz")).split()[1:])


def test_slices_without_a_doubtful_voxel_are_not_offered(
    few_shot_run, predicted, folders, tmp_path, capsys, monkeypatch
):
    from dataclasses import replace

    from seguro.api import refine as module

    query = folders[2] / "case_006.nii.gz"
    label = nib.load(predicted / "case_006.nii.gz")
    changed = np.asarray(label.dataobj).copy()
    changed[8:12, 8:12, 5] = 1 - changed[8:12, 8:12, 5].clip(0, 1)
    nib.save(nib.Nifti1Image(changed, label.affine), tmp_path / "c.nii.gz")
    real = module.refine

    def settled(*args, **kwargs):
        return replace(real(*args, **kwargs), following=((3, 7.0), (4, 0.2), (2, 0.0)))

    monkeypatch.setattr(module, "refine", settled)
    words = ["refine", few_shot_run, query, "--predictions", predicted, "--corrected", tmp_path / "c.nii.gz"]
    found = call(capsys, *words)
    assert found["next_slices"] == [{"slice": 3, "expected_wrong_voxels": 7.0}]
    call(capsys, *words[:5], "--undo")
