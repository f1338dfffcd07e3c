"""CHAOS: pictures go to their slices, labels lie on their images, and what is turned is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.data import check
from seguro.data.formats import read_image, read_label
from seguro.data.importers import chaos, importer

pytest.importorskip("pydicom")
from seguro.data.scanner import Scanner

SPACING = (7.0, 1.6, 1.6)
N, ROWS, COLUMNS = 9, 40, 44
ORGANS = {  # class -> (slices, rows, columns, gray, mean intensity); columns grow to the patient's left
    1: (slice(4, 9), slice(6, 26), slice(3, 20), 63, 300),
    2: (slice(1, 4), slice(26, 34), slice(8, 16), 126, 700),
    3: (slice(2, 5), slice(24, 33), slice(28, 36), 189, 620),
    4: (slice(5, 8), slice(18, 30), slice(32, 42), 252, 480),
}


def body(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, gray values and classes (slices, rows, columns), from the feet to the head."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 5, (N, ROWS, COLUMNS)) + 8 * np.arange(ROWS)[None, :, None]
    gray = np.zeros((N, ROWS, COLUMNS), np.uint8)
    classes = np.zeros_like(gray)
    for value, (z, y, x, level, mean) in ORGANS.items():
        image[z, y, x] = rng.normal(mean, 10, image[z, y, x].shape)
        gray[z, y, x], classes[z, y, x] = level, value
    return image.astype(np.int16), gray, classes


def write(root, *, ids=(1, 2, 36), turn=lambda gray: gray, numbers=None, seed=0):
    for k, scan in enumerate(ids):
        image, gray, _ = body(seed + k)
        folder = root / "MR" / f"{scan}" / "T2SPIR"
        paths = Scanner(spacing=SPACING, series=k + 1).write(folder / "DICOM_anon", image)
        (folder / "Ground").mkdir()
        for i, (path, picture) in enumerate(zip(paths, turn(gray), strict=True)):
            path.rename(path.with_name(f"IMG-0004-{i + 1:05d}.dcm"))
            number = numbers(i) if numbers else i + 1
            Image.fromarray(picture).save(folder / "Ground" / f"IMG-0004-{number:05d}.png")
    return root


@pytest.mark.parametrize("numbers", [None, lambda i: 2 * i + 11], ids=["same numbers", "other numbers"])
def test_as_scanned_every_label_lies_on_its_voxels(tmp_path, numbers):
    write(tmp_path / "in", numbers=numbers)
    found = importer("chaos")(tmp_path / "in", tmp_path / "out", as_scanned=True)
    assert found.n_cases == 3
    image = read_image([tmp_path / "out" / "imagesTr" / "chaos_02.nii.gz"])
    label = read_label(tmp_path / "out" / "labelsTr" / "chaos_02.nii.gz", like=image.grid)
    stored, _, classes = body(1)
    assert np.array_equal(
        image.array[0], stored[:, ::-1, ::-1]
    )  # canonical: rows to anterior, columns to right
    assert np.array_equal(label.array, classes[:, ::-1, ::-1])
    assert image.grid.spacing == pytest.approx(SPACING, abs=1e-5)
    report = check.check(found.folder, tmp_path / "w")
    assert not report.errors
    assert report.manifest.classes.names == tuple(chaos.LABELS.values())
    assert report.manifest.classes.pairs == (("left kidney", "right kidney"),)


def test_as_published_and_what_is_missing_is_said(tmp_path, capsys):
    write(tmp_path / "in")
    out = tmp_path / "out"
    (tmp_path / "in" / "MR" / "40" / "T2SPIR" / "DICOM_anon").mkdir(parents=True)
    assert main(["import", "chaos", str(tmp_path / "in"), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_cases"] == 3 and said["options"] == ["--dims", "2"]
    assert any("missing: 3, 5, 8" in w for w in said["warnings"])
    assert "1 scans without Ground are left out" in said["warnings"]
    image = read_image([out / "imagesTr" / "chaos_36.nii.gz"])
    label = read_label(out / "labelsTr" / "chaos_36.nii.gz", like=image.grid)
    assert image.grid.shape == (int(N * 7 / 7.7 + 1), 256, 256)
    assert image.grid.spacing == pytest.approx((7.7, 1.25, 1.25), abs=1e-5)
    for value, (*_, mean) in ORGANS.items():
        assert abs(np.median(image.array[0][label.array == value]) - min(mean, image.array.max())) < 20


@pytest.mark.parametrize(
    ("turn", "axes"),
    [
        (lambda gray: gray[:, ::-1], "y"),
        (lambda gray: gray[::-1], "z"),
        (lambda gray: gray[:, :, ::-1], "x"),
        (lambda gray: gray[::-1, ::-1], "z and y"),
    ],
    ids=["rows", "slices", "columns", "slices and rows"],
)
def test_pictures_that_run_another_way_are_refused(tmp_path, turn, axes):
    write(tmp_path / "in", turn=turn)
    with pytest.raises(DataError, match=f"flipped along {axes}:"):
        importer("chaos")(tmp_path / "in", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_scans_whose_headers_are_mirrored_are_refused(tmp_path):
    judged = {}
    for k in range(3):
        image, _, classes = body(k)
        judged[f"{k}"] = chaos.orientation(image.astype(np.float32), classes)  # x not reversed: mirrored
    with pytest.raises(DataError, match="3 of 3 scans are mirrored"):
        chaos.verified(judged)
    image, _, classes = body(0)
    fine = chaos.orientation(image[..., ::-1].astype(np.float32), classes[..., ::-1])
    notes = chaos.verified({"a": fine, "b": fine, "c": judged["0"]})
    assert notes == ["organs lie on the other side in c"]


def test_a_scan_without_an_organ_keeps_its_classes():
    """The published preparation numbers the grays that occur: without a liver, kidneys become livers."""
    gray = np.array([[0, 126], [189, 252]], np.uint8)
    assert chaos.classes_of(gray, "x").tolist() == [[0, 2], [3, 4]]
    assert chaos.classes_of(np.array([[55, 70, 110, 135, 175, 200, 240, 255]]), "x").tolist() == [
        [1, 1, 2, 2, 3, 3, 4, 4]
    ]


def test_what_does_not_match_is_named(tmp_path):
    root = write(tmp_path / "in", ids=(5,))
    ground = root / "MR" / "5" / "T2SPIR" / "Ground"
    picture = next(ground.iterdir())
    Image.fromarray(np.full((ROWS, COLUMNS), 90, np.uint8)).save(picture)
    with pytest.raises(DataError, match=r"gray values \[90\] are of no class"):
        importer("chaos")(root, tmp_path / "out")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture)
    with pytest.raises(DataError, match=r"\(4, 4\) pixels, its slice has \(40, 44\)"):
        importer("chaos")(root, tmp_path / "out")
    picture.unlink()
    with pytest.raises(DataError, match=f"{N - 1} numbered pictures for {N} slices"):
        importer("chaos")(root, tmp_path / "out")
    with pytest.raises(DataError, match="no labelled T2-SPIR scan"):
        importer("chaos")(ground, tmp_path / "out")
    assert main(["import", "covid", str(root), "--as-scanned"]) == 1


@pytest.mark.slow
def test_orientation_of_the_real_scans(real_data):
    """Labels of 16 real scans fit better as they are than flipped in any way, and turned ones are found."""
    folder = real_data / "chaos_t2"
    if not folder.is_dir():
        pytest.skip("the CHAOS scans are not on this machine")
    right, turned = {}, {}
    for path in sorted((folder / "imagesTr").iterdir()):
        image = read_image([path]).array[0]
        label = read_label(folder / "labelsTr" / path.name).array.astype(np.uint8)
        right[path.name] = chaos.orientation(image, label)
        turned[path.name] = chaos.orientation(image, label[:, ::-1])
    assert chaos.verified(right) == []
    with pytest.raises(DataError, match="flipped along y:"):
        chaos.verified(turned)
