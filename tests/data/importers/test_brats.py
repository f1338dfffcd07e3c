"""BraTS as handed out: names over the years, published grid, regions, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.core.files import read_json
from seguro.core.types import Grid
from seguro.data.check import check
from seguro.data.importers import brats, liver
from seguro.data.importers.pfseg_grid import SIZE, published
from seguro.data.phantom import affine, write_nifti


def write_brats(folder: Path, *, n: int = 5, names: str = "BraTS20_Training_{i:03d}_{k}", largest: int = 4):
    """Cases of 6 x 10 x 8 voxels with all modalities; labels 1, 2 and `largest`."""
    kinds = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
    if "GLI" in names:
        kinds = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
    rng = np.random.default_rng(0)
    for i in range(n):
        case = folder / names.format(i=i, k="")[:-1]
        label = np.zeros((6, 10, 8), np.uint8)
        label[1:4, 2:6, 2:6] = 2
        label[2, 3:5, 3:5] = 1
        label[2, 3, 3] = largest
        for kind, token in kinds.items():
            array = label if kind == "seg" else (rng.random((6, 10, 8)) * 100 + len(token)).astype(np.float32)
            write_nifti(case / f"{names.format(i=i, k=token)}.nii.gz", array, codes="LPS")
    return folder


def test_names_over_the_years():
    kinds = {
        "BraTS20_Training_001_flair": "flair", "BraTS20_Training_001_t1": "t1", "Brats18_AAB_1_t1ce": "t1c",
        "BraTS-GLI-00000-000-t2f": "flair", "BraTS-GLI-00000-000-t1n": "t1", "BraTS-GLI-00000-000-seg": "seg",
        "Flair_subtrMeanDivStd": "flair", "T1c_subtrMeanDivStd": "t1c", "OTMultiClass": "seg",
        "brainmask": None, "BraTS20_Training_001": None,
    }  # fmt: skip
    assert {name: brats.kind_of(name) for name in kinds} == kinds


@pytest.mark.parametrize(
    ("names", "largest"),
    [("BraTS20_Training_{i:03d}_{k}", 4), ("BraTS-GLI-{i:05d}-000-{k}", 3)],
    ids=["2020", "2023"],
)
def test_regions_and_four_modalities(tmp_path, names, largest):
    source = write_brats(tmp_path / "in", names=names, largest=largest)
    found = brats.bring(source, tmp_path / "out", regions=True, as_scanned=True, split="5-fold")
    assert found.n_cases == 5
    assert not found.options and not any("preset paper" in note for note in found.notes)
    facts = read_json(tmp_path / "out" / "dataset.json")
    assert list(facts["channel_names"].values()) == ["T1", "T1C", "T2", "FLAIR"]
    core = [1, 3, 4] if largest == 4 else [1, 3]
    assert facts["labels"] == {
        "background": 0, "whole tumor": sorted([*core, 2]), "tumor core": core, "enhancing tumor": [largest],
    }  # fmt: skip
    result = check(tmp_path / "out", out=tmp_path / "w")
    manifest = result.manifest
    assert manifest.classes.regions and len(manifest.channels) == 4
    assert len(manifest.of("train")) == 5 and not manifest.of("test")
    assert manifest.splits_sha256 is not None
    first = sorted(source.iterdir())[0]
    mine = nib.load(tmp_path / "out" / "imagesTr" / f"{first.name}_0002.nii.gz")
    theirs = nib.load(next(p for p in first.iterdir() if brats.kind_of(p.name.split(".")[0]) == "t2"))
    assert np.array_equal(mine.get_fdata(), theirs.get_fdata()) and np.array_equal(mine.affine, theirs.affine)


PAPER = (
    *("--method", "pfseg", "--preset", "paper", "--batch", "1", "--set", "size=[4,6,6]"),
    *("--updates", "400", "--validations", "100"),
)
"""For four training cases of the small grid."""


@pytest.fixture
def small_grid(monkeypatch):
    """The published grid, 4 x 6 x 6 voxels of it."""
    for name, value in {"PLANE": 6, "SIZE": (4, 6, 6), "PLANES": 4}.items():
        monkeypatch.setattr(f"seguro.data.importers.pfseg_grid.{name}", value)


def test_the_published_task_keeps_t2_and_one_class(tmp_path, small_grid):
    found = brats.bring(write_brats(tmp_path / "in"), tmp_path / "out")
    assert found.n_cases == 4
    assert found.options == PAPER
    assert "without a GPU takes preset small" in found.notes[-1]
    assert len(list((tmp_path / "out" / "imagesTs").iterdir())) == 1
    assert read_json(tmp_path / "out" / "dataset.json")["labels"] == {"background": 0, "whole tumor": 1}
    label = nib.load(next(iter(sorted((tmp_path / "out" / "labelsTr").iterdir()))))
    image = nib.load(next(iter(sorted((tmp_path / "out" / "imagesTr").iterdir()))))
    assert label.shape == image.shape == (6, 6, 4)
    assert set(np.unique(label.get_fdata())) == {0, 1}
    assert image.get_fdata().min() == 0 and image.get_fdata().max() == 1
    assert image.header.get_zooms() == pytest.approx((1, 1, 1.5))


def test_regions_on_the_published_grid_are_trained_as_published(tmp_path, small_grid):
    found = brats.bring(write_brats(tmp_path / "in"), tmp_path / "out", regions=True)
    assert found.options == PAPER
    assert len(list((tmp_path / "out" / "imagesTr").iterdir())) == 4 * 4
    kept = [nib.load(p).get_fdata() for p in (tmp_path / "out" / "labelsTr").iterdir()]
    assert {v for label in kept for v in np.unique(label)} == {0, 1, 2, 4}


def test_the_published_grid_of_a_brats_volume():
    """155 x 240 x 240: 24 voxels off each side of the plane, slices to 128; an empty label stays empty."""
    z, _, x = np.indices((155, 240, 240), dtype=np.float32)
    grid = Grid((155, 240, 240), affine((1, 1, 1)))
    label = np.zeros((155, 240, 240), np.uint8)
    image, mask, spacing = published(x[None], label, grid, "c")
    assert image.shape == (1, *SIZE) == (1, 128, 192, 192) and not mask.any()
    assert spacing == pytest.approx((155 / 128, 1, 1))
    assert np.allclose(image[0, 5, 7], (np.arange(192)) / 191)  # columns 24 to 215, scaled to [0, 1]
    label[50:100] = 1
    assert published(z[None], label, grid, "c")[1].mean() == pytest.approx(50 / 155, abs=1 / 128)


def test_what_cannot_be_used_is_named(tmp_path):
    source = write_brats(tmp_path / "in")
    with pytest.raises(DataError, match="10 x 8 voxels in plane"):
        brats.bring(source, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    write_nifti(source / "extra" / "extra_t1.nii.gz", np.ones((4, 4, 4), np.float32))
    with pytest.raises(DataError, match="1 of 6 cases have no t2 file, first extra"):
        brats.bring(source, tmp_path / "b", as_scanned=True)
    (source / "extra" / "extra_t1.nii.gz").unlink()
    case = sorted(source.iterdir())[0]
    write_nifti(case / f"{case.name}_seg.nii.gz", np.full((6, 10, 8), 7, np.uint8), codes="LPS")
    with pytest.raises(DataError, match="7; BraTS has 0 to 4"):
        brats.bring(source, tmp_path / "c", as_scanned=True)


def test_channels_on_different_grids_are_refused(tmp_path):
    source = write_brats(tmp_path / "in")
    case = sorted(source.iterdir())[0]
    write_nifti(case / f"{case.name}_flair.nii.gz", np.ones((6, 10, 9), np.float32), codes="LPS")
    with pytest.raises(DataError, match="grids"):
        brats.bring(source, tmp_path / "out", regions=True, as_scanned=True)


def test_cases_without_seg_are_unlabelled(tmp_path):
    source = write_brats(tmp_path / "in", n=6)
    case = sorted(source.iterdir())[0]
    (case / f"{case.name}_seg.nii.gz").unlink()
    found = brats.bring(source, tmp_path / "out", as_scanned=True)
    assert any("unlabelled" in note for note in found.notes)
    assert [p.name for p in (tmp_path / "out" / "imagesUn").iterdir()] == [f"{case.name}_0000.nii.gz"]


def test_the_two_real_cases(real_data, tmp_path):
    with pytest.raises(DataError, match="no t2 file"):
        brats.bring(real_data / "brats2015", tmp_path / "out")


@pytest.fixture
def livers(tmp_path) -> Path:
    """Five livers of 6 x 10 x 8 voxels with a tumor, in (2, 1, 1) mm."""
    label = np.zeros((6, 10, 8), np.uint8)
    label[2:4, 3:6, 3:6] = 1
    label[3, 4, 4] = 2
    image = np.random.default_rng(0).random((6, 10, 8)).astype(np.float32)
    for i in range(5):
        write_nifti(tmp_path / "in" / "imagesTr" / f"liver_{i}.nii.gz", image, spacing=(2, 1, 1))
        write_nifti(tmp_path / "in" / "labelsTr" / f"liver_{i}.nii.gz", label, spacing=(2, 1, 1))
    return tmp_path / "in"


def test_livers_as_scanned(tmp_path, livers):
    found = liver.bring(livers, tmp_path / "out", as_scanned=True, split="6/2/2")
    assert found.n_cases == 4
    assert not found.options and not any("preset paper" in note for note in found.notes)
    assert len(read_json(tmp_path / "out" / "splits_final.json")) == 1
    kept = nib.load(tmp_path / "out" / "labelsTr" / "liver_0.nii.gz").get_fdata()
    assert kept.sum() == 2 * 3 * 3 and kept.max() == 1
    (livers / "labelsTr" / "liver_3.nii.gz").unlink()
    with pytest.raises(DataError, match="first liver_3, without label"):
        liver.bring(livers, tmp_path / "again")


def test_livers_on_the_published_grid(tmp_path, livers, small_grid, monkeypatch):
    """Unless told otherwise: isotropic voxels, the middle of the plane, the slices interpolated."""
    monkeypatch.setattr(liver, "VOXEL_MM", 1.0)
    found = liver.bring(livers, tmp_path / "out")
    assert found.options == PAPER
    assert "without a GPU takes preset small" in found.notes[-1]
    image = nib.load(tmp_path / "out" / "imagesTr" / "liver_0.nii.gz")
    label = nib.load(tmp_path / "out" / "labelsTr" / "liver_0.nii.gz")
    assert image.shape == label.shape == (6, 6, 4)
    assert image.header.get_zooms() == pytest.approx((1, 1, 12 / 4))  # 6 slices of 2 mm on 4
    assert image.get_fdata().min() == 0 and image.get_fdata().max() == 1
    assert set(np.unique(label.get_fdata())) == {0, 1}  # the tumor is liver
    assert len(list((tmp_path / "out" / "imagesTs").iterdir())) == 1
    facts = read_json(tmp_path / "out" / "dataset.json")
    assert facts["labels"] == {"0": "background", "1": "liver"}


def test_the_published_grid_of_a_liver(tmp_path):
    image, label = np.random.default_rng(0).random((6, 10, 8)).astype(np.float32), np.zeros((6, 10, 8))
    grid = Grid((6, 10, 8), affine((64, 32, 40)))
    array, mask, spacing = published(image[None], label, grid, "c", isotropic=1.5)
    assert array.shape[1:] == mask.shape == SIZE and spacing == pytest.approx((256 * 1.5 / 128, 1.5, 1.5))
