"""Wrong supports, corrections and models: each is named, and none gives a silent mask."""

import json

import nibabel as nib
import numpy as np
import pytest

from seguro.cli.main import main
from seguro.data import phantom


@pytest.fixture
def files(phantom_folder, tmp_path):
    """Image, mask and query of the phantom set, copied so that they may be spoiled."""
    image = nib.load(phantom_folder / "imagesTr" / "case_000.nii.gz")
    mask = nib.load(phantom_folder / "labelsTr" / "case_000.nii.gz")
    nib.save(image, tmp_path / "image.nii.gz")
    nib.save(mask, tmp_path / "mask.nii.gz")
    return (
        tmp_path / "image.nii.gz",
        tmp_path / "mask.nii.gz",
        phantom_folder / "imagesTs" / "case_006.nii.gz",
    )


def predict(run, query, image, mask, out, *more):
    return main(["predict", str(run), str(query), "--support", str(image), "--support-label", str(mask),
                 "--out", str(out), *map(str, more)])  # fmt: skip


def rewritten(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


FAULTS = {
    "empty mask": (lambda i, m: rewritten(m, lambda a: a * 0), 2, "mask is empty"),
    "full mask": (
        lambda i, m: rewritten(m, lambda a: a * 0 + 1),
        2,
        "no voxel of the support mask is background",
    ),
    "other grid": (lambda i, m: rewritten(m, lambda a: a[:-2]), 2, "must match voxel by voxel"),
    "constant image": (lambda i, m: rewritten(i, lambda a: a * 0 + 7.0), 2, "like a mask"),
    "not a number": (lambda i, m: rewritten(i, lambda a: a / 0.0), 2, "NaN"),
    "damaged": (lambda i, m: i.write_bytes(i.read_bytes()[:500]), 2, "truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_support_is_named_and_nothing_is_written(few_shot_run, files, tmp_path, fault, capsys):
    image, mask, query = files
    spoil, code, words = FAULTS[fault]
    with np.errstate(all="ignore"):
        spoil(image, mask)
    assert predict(few_shot_run, query, image, mask, tmp_path / "out") == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "case_006.nii.gz").exists()


def test_image_and_mask_swapped(few_shot_run, files, tmp_path, capsys):
    image, mask, query = files
    assert predict(few_shot_run, query, mask, image, tmp_path / "out") == 2
    assert "swapped" in capsys.readouterr().err


def test_support_and_query_swapped_on_other_grids(few_shot_run, files, tmp_path, capsys):
    image, mask, _ = files
    query = phantom.write_nifti(tmp_path / "q.nii.gz", np.random.default_rng(0).normal(size=(9, 20, 24)))
    assert predict(few_shot_run, image, query, mask, tmp_path / "out") == 2
    assert "must match voxel by voxel" in capsys.readouterr().err


def test_another_spacing_is_said(few_shot_run, files, tmp_path, capsys):
    image, mask, query = files
    far = np.diag([6.0, 6.0, 6.0, 1.0])
    for path in (image, mask):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), far), path)
    assert predict(few_shot_run, query, image, mask, tmp_path / "out", "--json") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any(w.startswith("support: spacing along") for w in warnings)


def test_a_mask_of_another_scan_on_the_same_grid_is_said(few_shot_run, files, tmp_path, capsys):
    """Support and query swapped: every file is sound and on one grid, the mask is of the other image."""
    image, mask, query = files
    assert predict(few_shot_run, query, image, mask, tmp_path / "own", "--json") == 0
    assert "another scan's" not in capsys.readouterr().out
    rewritten(image, lambda a: np.roll(a, (8, 6), (0, 1)))
    assert predict(few_shot_run, query, image, mask, tmp_path / "other", "--json") == 0
    flags = json.loads(capsys.readouterr().out)["predictions"][0]["flags"]["case_006"]
    found = [f for f in flags if "is it another scan's?" in f]
    assert len(found) == 2 and all(f.startswith("support 1: low quality, the mask of organ") for f in found)


LOOKS = {
    "inverted": lambda a: a.max() - a,
    "CT": lambda a: np.where(a > 10, 40.0 + 0.3 * (a - 10), -1000.0),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_support_of_another_modality_is_said(few_shot_run, files, tmp_path, look, capsys):
    image, mask, query = files
    rewritten(image, lambda a: LOOKS[look](a.astype(np.float32)))
    assert predict(few_shot_run, query, image, mask, tmp_path / "out", "--json") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("intensity range" in w for w in warnings if w.startswith("support: "))


def test_a_query_without_the_organ_is_flagged(few_shot_run, files, tmp_path, capsys):
    """Noise shows nothing of the support: an empty result or one that does not lead back, never silence."""
    image, mask, _ = files
    noise = np.random.default_rng(0).normal(100, 30, (12, 20, 24)).astype(np.float32)
    query = phantom.write_nifti(tmp_path / "noise.nii.gz", noise)
    assert predict(few_shot_run, query, image, mask, tmp_path / "out", "--json") == 0
    flags = json.loads(capsys.readouterr().out)["predictions"][0]["flags"]["noise"]
    assert any("low quality" in f or "nothing found" in f for f in flags)


def test_what_goes_with_a_support_alone_is_refused(few_shot_run, files, tmp_path, capsys):
    image, mask, query = files
    base = ["predict", str(few_shot_run), str(query), "--out", str(tmp_path / "out")]
    for more, words in (
        ([], "--support IMAGE --support-label MASK"),
        (["--support-label", str(mask)], "give it"),
        (["--support", str(image)], "needs its mask"),
        (["--support", "0123456789"], "no support named"),
        (3 * ["--support", str(image)] + 2 * ["--support-label", str(mask)], "one image per mask"),
    ):  # fmt: skip
        assert main([*base, *more]) in (1, 2)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a, "same as the prediction"),
        (lambda a: a[:-3], "has shape"),
        (lambda a: np.where(np.arange(a.shape[2]) == 4, 9, a).astype(np.uint8), "value 9 is no class"),
    ],
    ids=["unchanged", "other grid", "unknown value"],
)
def test_a_useless_correction_is_named(few_shot_run, files, tmp_path, change, words, capsys):
    image, mask, query = files
    out = tmp_path / "out"
    assert predict(few_shot_run, query, image, mask, out) == 0
    label = nib.load(out / "case_006.nii.gz")
    nib.save(nib.Nifti1Image(change(np.asarray(label.dataobj)), label.affine), tmp_path / "c.nii.gz")
    arguments = ["refine", str(few_shot_run), str(query), "--predictions", str(out)]
    assert main([*arguments, "--corrected", str(tmp_path / "c.nii.gz")]) in (1, 2)
    assert words in capsys.readouterr().err
    assert main([*arguments, "--undo"]) == 1
    assert "nothing to undo" in capsys.readouterr().err
    assert main(arguments) == 1


def test_a_damaged_support_is_found(few_shot_run, files, tmp_path, capsys):
    image, mask, query = files
    out = tmp_path / "out"
    assert predict(few_shot_run, query, image, mask, out) == 0
    key = json.loads((out / "predictions.json").read_text())["options"]["support"]
    path = few_shot_run / "support" / key / "label.npy"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert main(["predict", str(few_shot_run), str(query), "--support", key[:12], "--out", str(out)]) == 2
        assert "restore it" in capsys.readouterr().err
    finally:
        path.write_bytes(data)
