"""DICOM: slices in order along the normal, geometry in mm, slope and intercept, one volume for a series."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from seguro.core.errors import DataError, ExtraMissing
from seguro.data.formats import read_image, read_label, write_label
from seguro.data.formats.dicom import list_series, looks_like_dicom, read_series
from seguro.data.formats.nifti import source_of
from seguro.data.formats.nifti import write as write_nifti

pydicom = pytest.importorskip("pydicom")
from seguro.data.scanner import CT, MR, Scanner  # noqa: E402

IMPLICIT, BIG_ENDIAN, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def turned(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    out[a, a], out[a, b], out[b, a], out[b, b] = c, -s, s, c
    return out


def oblique(**more) -> Scanner:
    axes = turned(20, 0) @ turned(-35, 2)
    return Scanner(right=tuple(axes[:, 0]), down=tuple(axes[:, 1]), **more)


SAGITTAL = Scanner(right=(0.0, 1.0, 0.0), down=(0.0, 0.0, -1.0))
SCANNERS = {"axial": Scanner(), "sagittal": SAGITTAL, "oblique": oblique()}


def slices(n: int = 4, seed: int = 0, kind=np.int16) -> np.ndarray:
    low = 0 if kind == np.uint16 else -900
    return np.random.default_rng(seed).integers(low, 1500, (n, 6, 7)).astype(kind)


def only(folder: Path):
    scan = list_series(folder)
    assert len(scan.series) == 1 and not scan.damaged, scan
    return scan.series[0]


@pytest.mark.parametrize("name", SCANNERS)
def test_every_voxel_lies_where_its_header_says(tmp_path, name):
    scanner, stored = SCANNERS[name], slices()
    scanner.write(tmp_path, stored)
    volume = read_series(only(tmp_path))
    assert volume.array.shape[0] == 1 and volume.array.dtype == np.float32
    inverse = np.linalg.inv(volume.grid.affine)
    for k, j, i in np.ndindex(stored.shape):
        lps = (
            np.array(scanner.position(k))
            + np.multiply(scanner.right, i * scanner.spacing[2])
            + np.multiply(scanner.down, j * scanner.spacing[1])
        )
        x, y, z = (inverse @ np.append(LPS_TO_RAS * lps, 1.0))[:3]
        place = np.array([z, y, x])
        assert np.abs(place - place.round()).max() < 1e-6  # headers hold 16 characters
        assert volume.array[0][tuple(place.round().astype(int))] == stored[k, j, i]
    assert sorted(volume.grid.spacing) == pytest.approx(sorted(scanner.spacing))
    assert np.all(np.diag(volume.grid.affine[:3, :3]) > 0)  # canonical: right, anterior, superior


@pytest.mark.parametrize("name", SCANNERS)
def test_grid_and_voxels_are_those_of_simpleitk(tmp_path, name):
    sitk = pytest.importorskip("SimpleITK")
    SCANNERS[name].write(tmp_path / "in", slices(6))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "its.nii.gz"))
    theirs = read_image([tmp_path / "its.nii.gz"])
    ours = read_series(only(tmp_path / "in"))
    assert np.array_equal(ours.array, theirs.array)
    assert np.abs(ours.grid.affine - theirs.grid.affine).max() < 1e-3  # its file holds float32


def test_positions_count_not_names_instances_or_thickness(tmp_path):
    stored = slices(5)
    scanner = Scanner(spacing=(2.0, 1.0, 1.0), elements={"SliceThickness": "3", "InstanceNumber": "1"})
    scanner.write(tmp_path, stored)
    volume = read_series(only(tmp_path))
    assert volume.grid.spacing[0] == pytest.approx(2.0)
    assert np.array_equal(volume.array[0], stored[:, ::-1, ::-1])
    assert any("2 mm apart" in n and "3 mm" in n for n in volume.notes)


@pytest.mark.parametrize("kind", [np.int16, np.uint16], ids=["signed", "unsigned"])
def test_slope_and_intercept_of_each_slice(tmp_path, kind):
    stored = slices(4, kind=kind)
    scale = ((1.0, -1024.0), (0.5, 3.0), (2.0, 0.0), (0.25, -7.5))
    Scanner(scale=scale).write(tmp_path, stored)
    volume = read_series(only(tmp_path))
    expected = np.stack([s.astype(float) * a + b for s, (a, b) in zip(stored, scale, strict=True)])
    assert np.array_equal(volume.array[0], expected[:, ::-1, ::-1])
    assert any("slopes" in n for n in volume.notes)


def test_bits_above_the_stored_ones_are_no_part_of_the_value(tmp_path):
    values = np.random.default_rng(1).integers(-2048, 2048, (3, 6, 7))
    raw = ((values & 0xFFF) | 0x3000).astype(np.uint16)  # 12 bits, two overlay planes above them
    Scanner(bits=12, elements={"PixelRepresentation": 1}).write(tmp_path, raw)
    assert np.array_equal(read_series(only(tmp_path)).array[0], values[:, ::-1, ::-1])


@pytest.mark.parametrize(("modality", "kind", "turns"), [("MR", MR, True), ("CT", CT, False)])
def test_small_values_that_are_bright_are_turned_but_not_hounsfield_units(tmp_path, modality, kind, turns):
    stored = slices(3, kind=np.uint16)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "Modality": modality, "SOPClassUID": kind}
    Scanner(bits=12, elements=elements).write(tmp_path, stored)
    volume = read_series(only(tmp_path))
    assert np.array_equal(volume.array[0], (4095 - stored if turns else stored)[:, ::-1, ::-1])
    assert any("MONOCHROME1" in n for n in volume.notes) == turns


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, RLE])
def test_every_syntax_gives_the_same_voxels(tmp_path, syntax):
    Scanner().write(tmp_path / "a", slices())
    Scanner().write(tmp_path / "b", slices(), syntax=syntax)
    a, b = read_series(only(tmp_path / "a")), read_series(only(tmp_path / "b"))
    assert np.array_equal(a.array, b.array) and np.array_equal(a.grid.affine, b.grid.affine)
    assert only(tmp_path / "a").id == only(tmp_path / "b").id


def test_a_file_without_preamble_and_suffix(tmp_path):
    stored = slices(3)
    for path in Scanner().write(tmp_path, stored):
        found = pydicom.dcmread(path)
        del found.file_meta
        found.save_as(path.with_suffix(""), implicit_vr=True, little_endian=True, enforce_file_format=False)
        path.unlink()
    assert np.array_equal(read_series(only(tmp_path)).array[0], stored[:, ::-1, ::-1])


def test_an_enhanced_object_is_read_as_the_single_slices_are(tmp_path):
    scanner = oblique(scale=((1.0, 0.0), (0.5, 1.0), (2.0, -3.0)))
    scanner.write(tmp_path / "single", slices(3))
    scanner.write_enhanced(tmp_path / "enhanced" / "all.dcm", slices(3))
    single, enhanced = (read_series(only(tmp_path / n)) for n in ("single", "enhanced"))
    assert np.array_equal(single.array, enhanced.array)
    assert np.array_equal(single.grid.affine, enhanced.grid.affine)
    assert len(single.sha256) == 3 and len(enhanced.sha256) == 1


def test_series_are_split_by_uid_orientation_and_echo(tmp_path):
    Scanner(series=1).write(tmp_path / "a", slices(3))
    Scanner(series=2).write(tmp_path / "a" / "b", slices(4))
    Scanner(series=3).write(tmp_path / "c", slices(5))
    Scanner(right=SAGITTAL.right, down=SAGITTAL.down, series=3, stack=1).write(tmp_path / "d", slices(6))
    for echo in (2, 4):
        scanner = Scanner(series=4, stack=echo, elements={"EchoTime": f"{echo}.3"})
        scanner.write(tmp_path / f"echo {echo}", slices(3, seed=echo))
    scan = list_series(tmp_path)
    assert sorted(len(s.frames) for s in scan.series) == [3, 3, 3, 4, 5, 6]
    assert sum("EchoTime" in s.note for s in scan.series) == 2
    assert len({s.id for s in scan.series}) == 6
    echoes = [s for s in scan.series if s.note]
    assert {np.float32(slices(3, seed=e)[0, 0, 0]) for e in (2, 4)} == {
        read_series(s).array[0, 0, -1, -1] for s in echoes
    }


def test_ids_do_not_depend_on_file_names_or_order(tmp_path):
    paths = Scanner().write(tmp_path / "a", slices())
    (tmp_path / "b" / "c").mkdir(parents=True)
    for i, path in enumerate(reversed(paths)):
        (tmp_path / "b" / "c" / f"{i}").write_bytes(path.read_bytes())
    a, b = only(tmp_path / "a"), only(tmp_path / "b")
    assert a.id == b.id and np.array_equal(read_series(a).array, read_series(b).array)


def test_a_missing_slice_of_a_ramp_is_interpolated_exactly(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 600, 100, np.int16)[:, None, None], (6, 6, 7)).copy()
    keep = [0, 1, 3, 4, 5]
    Scanner().write(tmp_path, ramp[keep], places=keep)
    volume = read_series(only(tmp_path), resample=True)
    assert np.array_equal(volume.array[0], ramp)
    assert volume.grid.spacing[0] == pytest.approx(5.0)
    assert any("10.000 mm between slices 2 and 3" in n and "interpolated" in n for n in volume.notes)


def test_tilt_is_straightened_in_the_patient_not_in_the_picture(tmp_path):
    """The image is the coordinate along y: after straightening it must be so still."""
    scanner = Scanner(spacing=(4.0, 0.5, 0.5), drift=(0.0, 0.75, 0.0))
    n, rows, columns = 5, 24, 8
    y = np.array([[scanner.position(k)[1] + j * 0.5 for j in range(rows)] for k in range(n)])
    stored = np.repeat(np.round(y * 100).astype(np.int16)[..., None], columns, axis=2)
    scanner.write(tmp_path, stored)
    volume = read_series(only(tmp_path), resample=True)
    image = volume.array[0]  # (Z, Y, X), Y to anterior: minus the DICOM coordinate
    lps = -(volume.grid.affine[1, 3] + volume.grid.affine[1, 1] * np.arange(rows))
    inside = image[:, : rows - 8]  # the first slice's first rows have moved out of the last slices
    assert np.abs(inside - 100 * lps[None, : rows - 8, None]).max() < 1.0  # stored as whole numbers
    assert volume.grid.spacing == pytest.approx((4.0, 0.5, 0.5))


def test_labels_written_on_the_grid_of_a_series_come_back(tmp_path):
    oblique().write(tmp_path / "in", slices())
    volume = read_series(only(tmp_path / "in"))
    label = np.random.default_rng(0).integers(0, 4, volume.grid.shape).astype(np.uint8)
    write_label(tmp_path / "label.nii.gz", label, volume.source)
    write_nifti(tmp_path / "image.nii.gz", volume.array[0], source_of(volume.grid))
    image = read_image([tmp_path / "image.nii.gz"])
    assert np.array_equal(image.array, volume.array)
    again = read_label(tmp_path / "label.nii.gz", like=image.grid)
    assert np.array_equal(again.array, label) and not again.notes
    assert np.abs(again.grid.affine - volume.grid.affine).max() < 1e-4  # NIfTI holds float32


def test_what_is_no_slice_of_a_volume_is_counted_by_reason(tmp_path):
    Scanner().write(tmp_path, slices(3))
    others = {
        "localizers": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "color": {"SamplesPerPixel": 3},
        "segmentation": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
        "without pixels": {"Rows": None},
        "without position": {"ImagePositionPatient": None},
        "mosaics": {"ImageType": ["DERIVED", "MOSAIC"]},
        "fewer than 3": {},
    }
    for i, (name, elements) in enumerate(others.items(), start=2):
        Scanner(series=i, elements=elements).write(tmp_path / name, slices(2))
    (tmp_path / "notes.txt").write_text("seen")
    scan = list_series(tmp_path)
    assert len(scan.series) == 1
    for name in others:
        assert any(line.startswith("2 ") and name in line for line in scan.skipped), (name, scan.skipped)
    assert "1 files that are not DICOM" in scan.skipped
    assert not looks_like_dicom(tmp_path / "notes.txt") and not looks_like_dicom(tmp_path)


def test_a_folder_must_be_given(tmp_path):
    (path,) = Scanner().write(tmp_path, slices(1))
    with pytest.raises(DataError, match="give the folder"):
        list_series(path)


@pytest.fixture(scope="module")
def unpacked(real_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    for archive in ("dicom2nifti_tests.tar.xz", "totalseg_ct20/example_ct_dicom.tar.xz"):
        if not (real_data / "dicom" / archive).exists():
            pytest.skip("the real DICOM files are not on this machine")
        with tarfile.open(real_data / "dicom" / archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


TRUTH = ("generic/anatomical/001", "generic/anatomical/002_non_isotropic", "generic/compressed/001")
MORE_TRUTH = ("hitachi/anatomical/001", "hyperfine/anatomical/001")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRUTH, *MORE_TRUTH])
def test_real_series_are_those_of_dicom2nifti(unpacked, name):
    folder = unpacked / "dicom2nifti" / "tests" / "data"
    ours = read_series(only(folder / name))
    theirs = read_image([folder / f"{name}_ground_truth.nii.gz"])
    assert np.abs(ours.array - theirs.array).max() < 1e-4
    assert np.abs(ours.grid.affine - theirs.grid.affine).max() < 1e-4


@pytest.mark.slow
def test_real_ct_with_jpeg_2000_and_wrong_thickness(unpacked):
    volume = read_series(only(unpacked / "tests"))
    assert volume.array.shape == (1, 20, 512, 512)
    assert volume.grid.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert (volume.array.min(), volume.array.max()) == (-1024, 1839)
    assert any("3 mm" in n for n in volume.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gantrytilting/001", "up to 3.63 mm off .* 14.0 degrees"),
        ("sliceincrement/001", "10.000 mm between slices 3 and 4 .* 1 slice is missing"),
        ("sliceincrement/002", "up to 0.83 mm off"),
        ("notavolume/001", "3 slices lie at the position of another"),
    ],
)
def test_real_series_that_are_no_volume(unpacked, name, message):
    series = only(unpacked / "dicom2nifti" / "tests" / "data" / "failing" / name)
    with pytest.raises(DataError, match=message):
        read_series(series)


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["philips_enhanced", "siemens_multiframe"])
def test_real_enhanced_objects(unpacked, vendor):
    volume = read_series(only(unpacked / "dicom2nifti" / "tests" / "data" / vendor / "anatomical" / "001"))
    assert min(volume.array.shape[1:]) == 8 and volume.array.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["rle", "j2k", "jpeg", "jpegls"])
def test_real_series_are_the_same_under_every_lossless_codec(unpacked, codec):
    folder = unpacked / "dicom2nifti" / "tests" / "data" / "generic"
    try:
        volume = read_series(only(folder / f"compressed_{codec}" / "001"))
    except ExtraMissing as error:
        pytest.skip(str(error))
    plain = read_series(only(folder / "compressed" / "001"))
    assert np.array_equal(volume.array, plain.array)
    assert np.array_equal(volume.grid.affine, plain.grid.affine)


@pytest.mark.slow
def test_every_real_file_is_read_counted_or_named(real_data):
    """Segmentations, structures, reports, broken headers, slides: nothing raises, nothing is lost."""
    folder = real_data / "dicom"
    if not folder.is_dir():
        pytest.skip("the real DICOM files are not on this machine")
    scan = list_series(folder)
    counted = sum(int(line.split()[0]) for line in scan.skipped)
    frames = sum(len(s.frames) for s in scan.series)
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert counted + frames + len(scan.damaged) >= len(files)  # frames of one file count each
    assert len(scan.series) >= 6 and all(str(folder) in line for line in scan.damaged)
    for series in scan.series:
        try:
            assert np.isfinite(read_series(series).array).all()
        except DataError as error:
            assert str(folder) in str(error)
