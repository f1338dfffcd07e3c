import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from seguro.core.errors import ConfigError
from seguro.data import phantom


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("n_classes", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(12, 20, 24), (1, 32, 40), (3, 64, 64)])
def test_every_class_is_there_apart_and_in_its_place(shape: tuple[int, int, int], n_classes: int) -> None:
    image, label = phantom.volume(np.random.default_rng(1), shape, n_classes, noise=0.0, bias=0.0)
    assert set(np.unique(label)) == set(range(n_classes + 1))
    # closed form: without noise and bias, a class has exactly one brightness, and classes differ by it
    levels = [np.unique(image[0][label == k]) for k in range(1, n_classes + 1)]
    assert all(len(level) == 1 for level in levels)
    assert len({float(level[0]) for level in levels}) == n_classes


def test_single_class_volume_is_that_of_its_ellipsoid() -> None:
    shape = (60, 60, 60)
    label = phantom.volume(np.random.default_rng(0), shape, 1)[1]
    semi_axes = [(np.ptp(np.nonzero(label)[axis]) + 1) / 2 for axis in range(3)]
    ellipsoid = 4 / 3 * np.pi * np.prod(semi_axes)
    assert label.sum() == pytest.approx(
        ellipsoid, rel=0.05
    )  # voxels on a surface of radius 13: a few percent


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    a = digest(phantom.write_msd(tmp_path / "a", n_unlabelled=1, sites=2))
    b = digest(phantom.write_msd(tmp_path / "b", n_unlabelled=1, sites=2))
    c = digest(phantom.write_msd(tmp_path / "c", n_unlabelled=1, sites=2, seed=1))
    assert a == b
    assert a["imagesTr/case_000.nii.gz"] != c["imagesTr/case_000.nii.gz"]


def test_a_case_does_not_depend_on_how_many_others_there_are() -> None:
    few = list(phantom.cases(2, 0, 0, phantom.Spec(jitter=3)))
    many = list(phantom.cases(5, 2, 1, phantom.Spec(jitter=3)))
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ASL", "SRA"])
@pytest.mark.parametrize("oblique_deg", [0.0, 20.0])
def test_files_turned_any_way_hold_the_same_point_of_the_body(
    tmp_path: Path, codes: str, oblique_deg: float
) -> None:
    label = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    spacing = (5.0, 1.5, 0.5)
    path = phantom.write_nifti(
        tmp_path / "a.nii.gz", label, spacing=spacing, codes=codes, oblique_deg=oblique_deg
    )
    read = nib.load(path)
    assert "".join(nib.aff2axcodes(read.affine)) == codes
    plain = phantom.affine(spacing, oblique_deg=oblique_deg)
    for value in (0, 5, 13, 23):
        z, y, x = (int(i[0]) for i in np.nonzero(label == value))
        ijk = [int(i[0]) for i in np.nonzero(np.asarray(read.dataobj) == value)]
        # 1e-5 mm: NIfTI keeps affines in float32
        np.testing.assert_allclose(read.affine @ [*ijk, 1], plain @ [x, y, z, 1], atol=1e-5)


def test_spacing_of_the_file_is_what_was_asked_for(tmp_path: Path) -> None:
    path = phantom.write_nifti(
        tmp_path / "a.nii", np.zeros((2, 3, 4), np.uint8), spacing=(5.0, 1.5, 0.5), codes="PSR"
    )
    assert nib.load(path).header.get_zooms() == pytest.approx((1.5, 5.0, 0.5))


def test_msd_folder_lists_its_files(tmp_path: Path) -> None:
    folder = phantom.write_msd(tmp_path, n_labelled=3, n_test=2, n_unlabelled=1, channels=2, sites=2)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["modality"] == {"0": "MRI", "1": "MRI"}
    for entry in facts["training"]:
        image, label = nib.load(folder / entry["image"]), nib.load(folder / entry["label"])
        assert image.shape == (*label.shape, 2)
    assert sorted(p.name for p in (folder / "labelsTs").iterdir()) == ["case_003.nii.gz", "case_004.nii.gz"]
    assert [p.name for p in (folder / "imagesUn").iterdir()] == ["case_005.nii.gz"]
    rows = (folder / "patients.csv").read_text().splitlines()
    assert rows[:3] == ["id,patient,site", "case_000,p000,site1", "case_001,p001,site2"]


def test_nnunet_channels_are_files_of_their_own(tmp_path: Path) -> None:
    folder = phantom.write_nnunet(tmp_path, n_labelled=1, n_test=1, channels=2)
    made = next(phantom.cases(1, 1, 0, phantom.Spec(channels=2)))
    for channel in range(2):
        stored = np.asarray(nib.load(folder / "imagesTr" / f"case_000_{channel:04d}.nii.gz").dataobj)
        np.testing.assert_array_equal(stored.T, made.image[channel])


def test_png_masks_hold_the_classes(tmp_path: Path) -> None:
    folder = phantom.write_png(tmp_path, n_labelled=1, n_unlabelled=1, n_classes=1, channels=3, spread=True)
    with (
        Image.open(folder / "labels" / "case_000.png") as mask,
        Image.open(folder / "images" / "case_000.png") as image,
    ):
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        assert (image.mode, image.size) == ("RGB", mask.size)
    assert not (folder / "labels" / "case_001.png").exists()


def test_a_threshold_and_a_place_find_the_classes() -> None:
    """Learnable by construction: brightness alone separates the classes to Dice > .9 on an unseen case."""
    image, label = phantom.volume(np.random.default_rng(3), (12, 20, 24), 2)
    guess = np.digitize(image[0] / image.max(), [0.35, 0.6])  # 0 body, 1 second class, 2 first class
    for k, found in ((1, 2), (2, 1)):
        both = ((label == k) & (guess == found)).sum()
        assert 2 * both / ((label == k).sum() + (guess == found).sum()) > 0.8


@pytest.mark.parametrize("angle", [45.0, -50.0, float("nan")])
def test_an_angle_that_would_change_the_axes_is_refused(angle: float) -> None:
    with pytest.raises(ConfigError, match="below 45"):
        phantom.affine((1, 1, 1), oblique_deg=angle)


def test_a_png_of_two_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not 2"):
        phantom.write_png(tmp_path, channels=2)
