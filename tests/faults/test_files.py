"""FAULTS.md rows 1-6, 8, 9, 11, 13, 14-18: what reading and `check` do with bad files."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seguro.cli.main import main
from seguro.core.errors import DataError, GeometryError
from seguro.data import phantom
from seguro.data.check import Options, check
from seguro.data.formats import read_facts, read_image, read_label

SHAPE = (4, 12, 14)


@pytest.fixture
def data(tmp_path):
    return phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=1, shape=SHAPE)


def errors(data, tmp_path, **options):
    report = check(data, tmp_path / "w", options=Options(**options))
    return {p.case: p.message for p in report.errors}


def exit_code(data, tmp_path, *more):
    return main(["check", str(data), "--out", str(tmp_path / "w"), *more])


def nii(path: Path, array, affine=None, **fields) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    path.write_bytes(image.to_bytes())
    return path


# row 1


@pytest.mark.parametrize(("content", "says"), [
    (b"", r"empty \(0 bytes\)"),
    (b"<!DOCTYPE html><html>404</html>", "a web page"),
    (b"\n\n <HTML><body>login</body>", "a web page"),
    (gzip.compress(b"<html>sign in</html>", mtime=0), "a web page"),
    (b"\x89PNG\r\n\x1a\n" + bytes(400), "a PNG picture"),
    (bytes(128) + b"DICM" + bytes(400), "a DICOM file"),
    (b"\x89HDF\r\n\x1a\n" + bytes(400), "an HDF5 file"),
    (b"NRRD0004\n", "an NRRD file"),
    (bytes(1000), "nothing but zero bytes"),
    (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    (b"random text of no meaning", "unknown type"),
])  # fmt: skip
def test_row_1_other_content_is_named(tmp_path, data, content, says):
    path = data / "imagesTr" / "case_001.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"case_001\.nii\.gz.*{says}"):
        read_image([path])
    assert says.split("\\")[0] in errors(data, tmp_path)["case_001"]
    assert exit_code(data, tmp_path) == 2


@settings(max_examples=40, deadline=None)
@given(fraction=st.floats(0.0, 0.999))
def test_row_1_a_cut_anywhere_is_found(tmp_path_factory, fraction):
    folder = tmp_path_factory.mktemp("cut")
    for name in ("a.nii.gz", "a.nii"):
        path = phantom.write_nifti(
            folder / name, np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
        )
        whole = path.read_bytes()
        path.write_bytes(whole[: int(fraction * len(whole))])
        with pytest.raises(DataError, match=name):
            read_image([path])


def test_row_1_a_cut_names_both_byte_positions(tmp_path):
    path = nii(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="ends at byte 500 where the header promises 592"):
        read_image([path])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_row_1_cut_pictures(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=rf"a\.{suffix}.*(truncated|damaged)"):
        read_image([path])


def test_row_1_a_volume_named_as_picture(tmp_path):
    nii(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16)).rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a picture"):
        read_image([tmp_path / "a.png"])


# row 2


@pytest.mark.parametrize("seed", range(20))
def test_row_2_any_flipped_payload_bit_is_found_by_check(tmp_path, data, seed):
    rng = np.random.default_rng(seed)
    path = data / ("imagesTr" if seed % 2 else "labelsTr") / "case_001.nii.gz"
    raw = bytearray(path.read_bytes())
    raw[int(rng.integers(10, len(raw)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)
    assert set(errors(data, tmp_path)) == {"case_001"}
    report = check(data, tmp_path / "w", options=Options(quarantine=True))
    assert report.ok and [e.id for e in report.manifest.excluded] == ["case_001"]


def test_row_2_flipped_bits_in_png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(path)
    whole = path.read_bytes()
    for position in range(60, len(whole) - 12, 97):
        raw = bytearray(whole)
        raw[position] ^= 4
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"a\.png"):
            read_image([path])


# row 3


@pytest.mark.parametrize("sizes", [(30000, 30000, 30000), (-5, 4, 3), (0, 4, 3)])
def test_row_3_impossible_sizes_are_refused_before_allocation(tmp_path, sizes):
    path = nii(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16))
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array(sizes, "<i2").tobytes()
    path.write_bytes(raw)
    for read in (read_image, read_facts):
        with pytest.raises(DataError, match=r"30000.*limit|impossible sizes"):
            read([path] if read is read_image else path)


def test_row_3_a_gzip_bomb_stops_at_the_limit(tmp_path):
    head = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(head + bytes(80_000_000), 1))
    with pytest.raises(DataError, match="decompresses to more than 67109456 bytes"):
        read_image([tmp_path / "a.nii.gz"])  # 352 + 240 bytes are promised, 64 MiB more tolerated


def test_row_3_a_picture_that_claims_to_be_huge(tmp_path):
    Image.new("L", (3000, 3000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"3000 x 3000 pixels.*limit"):
        read_image([tmp_path / "a.png"], limit=1_000_000)


# rows 4 and 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_4_non_finite_voxels_are_counted_and_repaired_only_on_request(tmp_path, data, value):
    from seguro.data import manifest

    image = np.random.default_rng(0).random(SHAPE).astype(np.float32) + 1
    image[0, 0, :3] = value
    phantom.write_nifti(data / "imagesTr" / "case_001.nii.gz", image)
    found = errors(data, tmp_path)
    assert (
        "3 of 672 voxels are NaN or infinite" in found["case_001"] and "--repair nan=min" in found["case_001"]
    )
    report = check(data, tmp_path / "w", options=Options(repair="nan=min"))
    case = next(c for c in report.manifest.cases if c.id == "case_001")
    assert report.ok
    array = manifest.read_case(case, report.manifest).array
    assert (array[0, 0, 0, :3] == image[0, 0, 3:].min().clip(max=image[np.isfinite(image)].min())).all()


def test_row_4_nothing_but_nan_is_refused_even_with_repair(tmp_path, data):
    phantom.write_nifti(data / "imagesTr" / "case_001.nii.gz", np.full(SHAPE, np.nan, np.float32))
    assert "all voxels are NaN" in errors(data, tmp_path, repair="nan=min")["case_001"]


def test_row_5_constant_images_and_empty_labels_everywhere(tmp_path, data):
    phantom.write_nifti(data / "imagesTr" / "case_001.nii.gz", np.full(SHAPE, 7.0, np.float32))
    assert "constant (7 everywhere)" in errors(data, tmp_path)["case_001"]
    for path in (data / "labelsTr").glob("*"):
        phantom.write_nifti(path, np.zeros(SHAPE, np.uint8))
    assert "labels are empty" in errors(data, tmp_path)[""]


# row 6


@pytest.mark.parametrize(("dtype", "says"), [
    (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"), (np.dtype(np.complex64), "complex"),
])  # fmt: skip
def test_row_6_colour_and_complex_voxels(tmp_path, dtype, says):
    path = nii(tmp_path / "a.nii", np.zeros((4, 5, 6), dtype))
    with pytest.raises(DataError, match=f"{says} is not supported"):
        read_image([path])


def test_row_6_time_series_name_the_option(tmp_path, data):
    nii(tmp_path / "a.nii", np.random.default_rng(0).random((14, 12, 4, 5)).astype(np.float32))
    (data / "imagesTr" / "case_001.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    assert "5 frames on the fourth axis" in (message := errors(data, tmp_path)["case_001"])
    assert "--channels" in message


# rows 7 and 8


def test_row_7_shear_is_refused_with_the_matrix(tmp_path, data):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    nii(tmp_path / "a.nii", np.random.default_rng(0).random((14, 12, 4)).astype(np.float32), affine)
    (data / "imagesTr" / "case_001.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    assert "sheared affine" in (message := errors(data, tmp_path)["case_001"]) and "0.2000" in message


@pytest.mark.parametrize("size", [np.nan, 0.0])
def test_row_8_missing_spacing_is_an_error_unless_given(tmp_path, size):
    raw = bytearray(
        nii(tmp_path / "a.nii", np.random.default_rng(0).random((4, 5, 6)).astype("f4")).read_bytes()
    )
    raw[252:256] = bytes(4)
    raw[80:92] = np.array([1.0, size, 1.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(GeometryError, match=r"no usable voxel size.*--spacing"):
        read_image([tmp_path / "a.nii"])
    assert read_image([tmp_path / "a.nii"], spacing=(3.0, 2.0, 1.0)).grid.spacing == (3.0, 2.0, 1.0)


def test_row_8_two_forms_are_shown_by_check(tmp_path, data):
    image = nib.Nifti1Image(
        np.random.default_rng(0).random((14, 12, 4)).astype(np.float32), phantom.affine((1, 1, 1))
    )
    moved = image.affine.copy()
    moved[0, 3] += 1.5
    image.set_qform(moved, 1)
    (data / "imagesTr" / "case_001.nii.gz").write_bytes(image.to_bytes())
    report = check(data, tmp_path / "w")
    assert report.ok
    assert any(p.case == "case_001" and "differ by 1.50 mm" in p.message for p in report.warnings)


# row 9 is tests/data/test_geometry.py; here that mixed orders in one folder are one data set


def test_row_9_label_stored_in_another_axis_order_still_fits(tmp_path, data):
    made = next(phantom.cases(3, 1, 0, phantom.Spec(shape=SHAPE)))
    phantom.write_nifti(data / "labelsTr" / "case_000.nii.gz", made.label, codes="PSL")
    report = check(data, tmp_path / "w")
    assert report.ok and not report.warnings


# row 11


def test_row_11_links_and_lacking_files_fail_alone(tmp_path, data):
    for case, target in (("case_000", "case_000.nii.gz"), ("case_001", "nowhere")):
        path = data / "imagesTr" / f"{case}.nii.gz"
        path.unlink()
        path.symlink_to(target)
    found = errors(data, tmp_path)
    assert set(found) == {"case_000", "case_001"}
    assert "cannot be read" in found["case_000"] and "symbolic links" in found["case_000"]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), TimeoutError(110, "Connection timed out")]
)
def test_row_11_a_file_that_cannot_be_opened_fails_alone(tmp_path, data, monkeypatch, error):
    open_path = Path.open

    def stubborn(self, *args, **kwargs):
        if self.name == "case_001.nii.gz" and self.parent.name == "imagesTr":
            raise error
        return open_path(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", stubborn)
    found = errors(data, tmp_path)
    assert set(found) == {"case_001"} and error.strerror in found["case_001"]


def test_row_11_a_folder_named_as_a_file(tmp_path, data):
    path = data / "imagesTr" / "case_001.nii.gz"
    path.unlink()
    path.mkdir()
    assert "case_001" in errors(data, tmp_path)


# row 13


def copy(data, source, target, level=None):
    raw = (data / source).read_bytes()
    (data / target).write_bytes(raw if level is None else gzip.compress(gzip.decompress(raw), level))


@pytest.mark.parametrize("level", [None, 9])
def test_row_13_one_image_in_two_splits(tmp_path, data, level):
    copy(data, "imagesTs/case_003.nii.gz", "imagesTr/case_001.nii.gz", level)
    message = errors(data, tmp_path)["case_001"]
    assert "same image as case_003" in message and "two splits (test and train)" in message


def test_row_13_one_image_under_two_patients(tmp_path, data):
    copy(data, "imagesTr/case_000.nii.gz", "imagesTr/case_001.nii.gz")
    message = errors(data, tmp_path)["case_001"]
    assert "two patients (case_000 and case_001)" in message and "but other labels" in message
    (data / "patients.csv").write_text("id,patient\ncase_000,p\ncase_001,p\ncase_002,q\ncase_003,r\n")
    assert errors(data, tmp_path) == {}


def test_row_13_one_image_at_two_sites(tmp_path, data):
    copy(data, "imagesTr/case_000.nii.gz", "imagesTr/case_001.nii.gz")
    table = "id,patient,site\ncase_000,p,x\ncase_001,{},y\ncase_002,r,x\ncase_003,s,x\n"
    (data / "patients.csv").write_text(table.format("p"))
    report = check(data, tmp_path / "w")
    assert report.ok and any("at two sites (x and y)" in p.message for p in report.warnings)
    (data / "patients.csv").write_text(table.format("q"))  # by patient they would be in two folds
    assert "two patients (p and q)" in errors(data, tmp_path)["case_001"]


# rows 14 and 15


def test_row_14_label_of_another_shape_or_place(tmp_path, data):
    phantom.write_nifti(data / "labelsTr" / "case_000.nii.gz", np.ones((8, 24, 28), np.uint8))
    phantom.write_nifti(data / "labelsTr" / "case_001.nii.gz", np.ones(SHAPE, np.uint8), spacing=(1, 1, 2))
    found = errors(data, tmp_path)
    assert "(8, 24, 28) (2 times as large) for an image of shape (4, 12, 14)" in found["case_000"]
    assert "same shape but lie 13.00 mm apart" in found["case_001"]


def test_row_15_unknown_values_are_counted(tmp_path, data):
    label = np.zeros(SHAPE, np.uint8)
    label[0, 0, :5], label[1, 1, :2] = 7, 200
    phantom.write_nifti(data / "labelsTr" / "case_000.nii.gz", label)
    assert (
        "7 (5 voxels), 200 (2 voxels) are not among the task's [0, 1, 2]"
        in errors(data, tmp_path)["case_000"]
    )


def test_row_15_fractions(tmp_path, data):
    label = np.zeros(SHAPE, np.float32)
    label[0, 0, :5] = 0.5
    phantom.write_nifti(data / "labelsTr" / "case_000.nii.gz", label)
    phantom.write_nifti(data / "labelsTr" / "case_001.nii.gz", np.full(SHAPE, 0.9995, np.float32))
    found = errors(data, tmp_path)
    assert set(found) == {"case_000"}
    assert "5 label voxels are not whole numbers (e.g. 0.5)" in found["case_000"]
    path = phantom.write_nifti(tmp_path / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(DataError, match="672 label voxels are NaN"):
        read_label(path)


# rows 16, 17 and 18


def test_row_16_empty_masks_are_legal_and_absent_classes_are_named(tmp_path, data):
    for name in ("case_000", "case_001", "case_002"):
        label = np.zeros(SHAPE, np.uint8)
        label[1, 1, 1] = 0 if name == "case_000" else 1
        phantom.write_nifti(data / "labelsTr" / f"{name}.nii.gz", label)
    report = check(data, tmp_path / "w")
    text = "\n".join(p.message for p in report.warnings)
    assert report.ok
    assert "1 labels are empty (background only): case_000" in text
    assert "organ2 occurs in no training case" in text and "organ1 occurs" not in text


def test_row_17_unannotated_classes_are_counted(tmp_path, data):
    (data / "annotated.json").write_text('{"case_000": ["organ1"]}')
    report = check(data, tmp_path / "w")
    assert any("organ2 is annotated in 2 of 3 training cases" in p.message for p in report.warnings)
    assert [len(c.annotated) for c in report.manifest.of("train")] == [1, 2, 2]


def test_row_18_orphans_are_decided_before_training(tmp_path, data, capsys):
    (data / "labelsTr" / "case_000.nii.gz").unlink()
    (data / "labelsTr" / "ghost.nii.gz").write_bytes((data / "labelsTr" / "case_001.nii.gz").read_bytes())
    assert exit_code(data, tmp_path) == 2
    text = capsys.readouterr().out
    assert "ghost" in text and "label without image" in text
    assert "1 training images without label are used as unlabelled: case_000" in text
    assert exit_code(data, tmp_path, "--quarantine") == 0
    assert "next: seguro train" in capsys.readouterr().out


def test_row_46_description_that_leaves_its_folder(tmp_path, data, capsys):
    path = data / "dataset.json"
    path.write_text(path.read_text().replace("./imagesTr/case_000", "../../secret"))
    assert exit_code(data, tmp_path) == 2
    assert "lies outside" in capsys.readouterr().err
