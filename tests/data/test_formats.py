from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from seguro.core.errors import DataError, GeometryError
from seguro.core.types import Grid
from seguro.data import phantom
from seguro.data.formats import read_facts, read_image, read_label, write_label, write_scores

SINGLE = 1e-6  # relative, float32 against float64


def save(path: Path, array: np.ndarray, affine=None, kind=nib.Nifti1Image, **fields) -> Path:
    image = kind(array, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    path.write_bytes(gzip.compress(image.to_bytes()) if path.suffix == ".gz" else image.to_bytes())
    return path


def values(shape=(4, 5, 6), dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SLA"])
def test_output_has_the_input_geometry_and_label_round_trips(tmp_path, suffix, codes):
    image = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    path = phantom.write_nifti(
        tmp_path / f"a{suffix}", image, spacing=(3, 1, 0.5), codes=codes, oblique_deg=9
    )
    volume = read_image([path])
    assert np.array_equal(volume.array[0], image)
    assert np.allclose(volume.grid.spacing, (3, 1, 0.5), rtol=SINGLE)
    label = (volume.array[0] > 0.3).astype(np.int64) * 3
    out = write_label(tmp_path / f"b{suffix}", label, volume.source)
    assert np.array_equal(read_label(out, like=volume.grid).array, label)
    mine, theirs = nib.load(out), nib.load(path)
    assert np.array_equal(mine.affine, theirs.affine)
    assert mine.get_data_dtype() == np.uint8
    for name in ("sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x", "pixdim"):
        assert np.array_equal(mine.header[name], theirs.header[name]), name


def test_the_same_label_gives_the_same_bytes(tmp_path):
    path = phantom.write_nifti(tmp_path / "a.nii.gz", np.ones((3, 3, 3), np.float32))
    source = read_image([path]).source
    label = np.eye(3, dtype=int)[None].repeat(3, 0)
    first = write_label(tmp_path / "x.nii.gz", label, source).read_bytes()
    assert write_label(tmp_path / "y.nii.gz", label, source).read_bytes() == first


def test_free_text_is_not_copied_to_the_output(tmp_path):
    path = save(tmp_path / "a.nii", values(), descrip=b"Jane Doe", db_name=b"ward 7")
    out = write_label(tmp_path / "b.nii", np.zeros((6, 5, 4), int), read_image([path]).source)
    assert b"Jane" not in out.read_bytes() and b"ward" not in out.read_bytes()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_and_version_are_read_and_kept(tmp_path, kind, order):
    header = (nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header)(endianness=order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    array = values()
    path = tmp_path / "a.nii"
    path.write_bytes(kind(array, np.diag([2.0, 3.0, 4.0, 1.0]), header).to_bytes())
    volume = read_image([path])
    assert np.array_equal(volume.array[0], array.T)
    out = nib.load(write_label(tmp_path / "b.nii", array.T, volume.source))
    assert np.array_equal(np.asarray(out.dataobj), array)
    assert out.header.endianness == order and isinstance(out, kind)


@pytest.mark.parametrize(("slope", "intercept", "factor", "shift"), [
    (0.5, 2.0, 0.5, 2.0), (0.0, 5.0, 1.0, 0.0), (np.nan, np.nan, 1.0, 0.0), (2.0, np.nan, 2.0, 0.0),
])  # fmt: skip
def test_slope_and_intercept(tmp_path, slope, intercept, factor, shift):
    raw = bytearray(save(tmp_path / "a.nii", values()).read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path = tmp_path / "b.nii"
    path.write_bytes(raw)
    assert np.allclose(read_image([path]).array[0], values().T * factor + shift, rtol=SINGLE)


def test_scaled_labels_must_come_out_whole(tmp_path):
    raw = bytearray(save(tmp_path / "a.nii", values((2, 2, 2))).read_bytes())
    raw[112:120] = np.array([2.0, 1.0], "<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    assert np.array_equal(read_label(tmp_path / "b.nii").array, values((2, 2, 2)).T * 2 + 1)
    raw[112:120] = np.array([0.5, 0.0], "<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    with pytest.raises(DataError, match=r"4 label voxels are not whole numbers \(e\.g\. 0\.5"):
        read_label(tmp_path / "b.nii")


def test_nearly_whole_labels_are_rounded_and_small(tmp_path):
    label = np.array([0.0, 0.9999, 2.0004, 300.0], np.float32).reshape(4, 1, 1)
    got = read_label(save(tmp_path / "a.nii", label)).array
    assert got.dtype == np.int16
    assert got.ravel().tolist() == [0, 1, 2, 300]


def test_one_frame_is_squeezed_with_a_note(tmp_path):
    volume = read_image([save(tmp_path / "a.nii", values((4, 5, 6, 1)))])
    assert volume.array.shape == (1, 6, 5, 4)
    assert volume.notes == ("4-D with one frame, squeezed",)


def test_a_fourth_axis_is_channels_only_when_said_so(tmp_path):
    array = values((4, 5, 6, 3))
    path = save(tmp_path / "a.nii", array)
    with pytest.raises(DataError, match=r"3 frames on the fourth axis.*--channels"):
        read_image([path])
    with pytest.raises(DataError, match="2 channels are expected"):
        read_image([path], channels=2)
    volume = read_image([path], channels=3)
    assert np.array_equal(volume.array, array.transpose(3, 2, 1, 0))
    assert write_label(tmp_path / "b.nii", np.zeros((6, 5, 4), int), volume.source).exists()
    assert nib.load(tmp_path / "b.nii").shape == (4, 5, 6)


def test_scores_have_channels_last(tmp_path):
    source = read_image([phantom.write_nifti(tmp_path / "a.nii.gz", np.ones((4, 5, 6)), codes="LPS")]).source
    scores = np.random.default_rng(0).random((2, 4, 5, 6)).astype(np.float32)
    back = read_image([write_scores(tmp_path / "s.nii.gz", scores, source)], channels=2)
    assert np.array_equal(back.array, scores)


def test_channels_in_files_must_share_a_grid(tmp_path):
    a = phantom.write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32))
    b = phantom.write_nifti(tmp_path / "b.nii.gz", np.ones((4, 5, 6), np.float32))
    assert read_image([a, b]).array.mean(axis=(1, 2, 3)).tolist() == [0.0, 1.0]
    c = phantom.write_nifti(tmp_path / "c.nii.gz", np.ones((4, 5, 6), np.float32), spacing=(1, 1, 1.5))
    with pytest.raises(GeometryError, match="channels lie on different grids"):
        read_image([a, c])


def test_sform_wins_over_qform_and_both_are_shown(tmp_path):
    image = nib.Nifti1Image(values(), np.diag([1.0, 1.0, 1.0, 1.0]))
    image.set_sform(np.diag([1.0, 1.0, 2.0, 1.0]), 1)
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), 1)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    volume = read_image([tmp_path / "a.nii"])
    assert volume.grid.spacing == (2.0, 1.0, 1.0)
    note = volume.notes[0]
    assert "differ by 5.00 mm" in note and "qform:" in note and "2.0000" in note


def test_qform_alone_and_pixdim_alone(tmp_path):
    rotation = phantom.affine((2.0, 1.0, 1.0), oblique_deg=20)
    image = nib.Nifti1Image(values(), rotation)
    image.set_qform(rotation, 1)
    raw = bytearray(image.to_bytes())
    raw[254:256] = bytes(2)  # sform_code
    (tmp_path / "q.nii").write_bytes(raw)
    assert np.allclose(
        read_image([tmp_path / "q.nii"]).grid.affine, rotation, atol=1e-5
    )  # float32 quaternion
    raw[252:254] = bytes(2)  # qform_code
    raw[80:92] = np.array([0.5, 0.6, 0.7], "<f4").tobytes()  # pixdim
    (tmp_path / "p.nii").write_bytes(raw)
    volume = read_image([tmp_path / "p.nii"])
    assert np.allclose(volume.grid.spacing, (0.7, 0.6, 0.5))
    assert "no orientation" in volume.notes[0]


def test_metres_become_millimetres(tmp_path):
    path = save(tmp_path / "a.nii", values(), np.diag([0.002, 0.001, 0.003, 1.0]), xyzt_units=1)
    assert np.allclose(read_image([path]).grid.spacing, (3.0, 1.0, 2.0))


def test_label_must_lie_on_the_image(tmp_path):
    path = phantom.write_nifti(tmp_path / "l.nii.gz", np.zeros((4, 5, 6), np.uint8))
    grid = read_label(path).grid
    near, far = grid.affine.copy(), grid.affine.copy()
    near[0, 3] += 0.3
    far[0, 3] += 0.5
    assert "0.300 mm" in read_label(path, like=Grid(grid.shape, near)).notes[-1]
    with pytest.raises(GeometryError, match=r"0\.50 mm apart"):
        read_label(path, like=Grid(grid.shape, far))
    with pytest.raises(GeometryError, match=r"\(4, 5, 6\).*\(4, 5, 7\)"):
        read_label(path, like=Grid((4, 5, 7), grid.affine))


def test_facts_agree_with_the_volume(tmp_path):
    path = phantom.write_nifti(
        tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.float32), codes="PSR", spacing=(3, 2, 1)
    )
    facts, volume = read_facts(path), read_image([path])
    assert facts.grid.shape == volume.grid.shape
    assert np.array_equal(facts.grid.affine, volume.grid.affine)
    assert facts.n_bytes == 4 * 5 * 6 * 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures(tmp_path, suffix, dtype):
    pixels = (np.arange(12).reshape(3, 4) * 20).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    volume = read_image([tmp_path / f"a.{suffix}"])
    assert np.array_equal(volume.array, pixels[None, None])
    assert volume.grid.unit == "px" and volume.grid.shape == (1, 3, 4)
    assert read_image([tmp_path / f"a.{suffix}"], spacing=(1, 0.5, 0.25)).grid.spacing == (1, 0.5, 0.25)


def test_colour_pictures_have_three_channels_and_labels_come_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_image([tmp_path / "a.png"])
    assert np.array_equal(volume.array[:, 0], pixels.transpose(2, 0, 1))
    label = np.arange(30).reshape(1, 5, 6) * 10
    out = write_label(tmp_path / f"b{volume.source.suffix}", label, volume.source)
    assert np.array_equal(read_label(out, like=volume.grid).array, label)
    scores = np.random.default_rng(1).random((2, 1, 5, 6)).astype(np.float32)
    stored = np.load(write_scores(tmp_path / "s.png", scores, volume.source))
    assert np.array_equal(stored, scores[:, 0].transpose(1, 2, 0))
    with pytest.raises(DataError, match="colour picture as label"):
        read_label(tmp_path / "a.png")


def test_palette_labels_give_their_indices(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png").array.tolist() == [[[0, 1], [2, 1]]]
