"""M&Ms: two frames of a cine become cases, vendors become sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.core.files import write_text
from seguro.core.seeds import generator
from seguro.data import check
from seguro.data.formats import read_image, read_label
from seguro.data.importers import importer
from seguro.data.phantom import write_nifti

SPACING = (10.0, 1.5, 1.25)
PATIENTS = {"A1": ("A", 0, 2), "B2": ("B", 1, 3), "C3": ("C", 0, 1), "D4": ("D", 3, 0)}


def cine(seed: int) -> np.ndarray:
    return generator(seed, "cine").normal(100, 10, (4, 3, 8, 9)).astype(np.float32)


def truth(frames: tuple[int, ...]) -> np.ndarray:
    label = np.zeros((4, 3, 8, 9), np.uint8)
    for frame in frames:
        label[frame, :, 2:6, 2:5] = np.arange(1, 4)
    return label


def downloaded(folder: Path) -> Path:
    rows = ["External code,VendorName,Vendor,Centre,ED,ES"]
    rows += [f"{code},x,{vendor},1,{ed},{es}" for code, (vendor, ed, es) in PATIENTS.items()]
    write_text(folder / "info.csv", "\n".join(rows) + "\n")
    places = {"A1": "Training/Labeled", "B2": "Training/Labeled", "C3": "Training/Unlabeled", "D4": "Testing"}
    for seed, (code, place) in enumerate(places.items()):
        write_nifti(folder / place / code / f"{code}_sa.nii.gz", cine(seed), spacing=SPACING)
        if code != "C3":
            _, ed, es = PATIENTS[code]
            write_nifti(folder / place / code / f"{code}_sa_gt.nii.gz", truth((ed, es)), spacing=SPACING)
    return folder


def test_frames_are_cases_and_vendors_are_sites(tmp_path):
    found = importer("mms")(downloaded(tmp_path / "raw"), tmp_path / "mms")
    assert found.n_cases == 4 and "vendorA, vendorB, vendorC, vendorD" in found.notes[0]
    manifest = check.ensure(found.folder, tmp_path / "w")
    assert {c.id: (c.site, c.patient) for c in manifest.of("train")} == {
        "A1_ed": ("vendorA", "A1"),
        "A1_es": ("vendorA", "A1"),
        "B2_ed": ("vendorB", "B2"),
        "B2_es": ("vendorB", "B2"),
    }
    assert [c.id for c in manifest.of("test")] == ["D4_ed", "D4_es"]
    assert [c.id for c in manifest.of("unlabelled")] == ["C3_ed", "C3_es"]
    assert manifest.classes is not None and manifest.classes.names == ("background", "LV", "MYO", "RV")


def test_a_test_patient_is_never_trained_on(tmp_path):
    """Where one frame of a test patient has an empty label, both frames stay test cases."""
    raw = downloaded(tmp_path / "raw")
    write_nifti(raw / "Testing" / "D4" / "D4_sa_gt.nii.gz", truth((3,)), spacing=SPACING)
    manifest = check.ensure(importer("mms")(raw, tmp_path / "mms").folder, tmp_path / "w")
    assert {c.id: c.label is not None for c in manifest.of("test")} == {"D4_ed": True, "D4_es": False}
    assert "D4" not in {c.patient for part in ("train", "unlabelled") for c in manifest.of(part)}


def test_a_case_is_its_frame_on_the_grid_of_the_file(tmp_path):
    found = importer("mms")(downloaded(tmp_path / "raw"), tmp_path / "mms")
    image = read_image([found.folder / "imagesTr" / "B2_es.nii.gz"])
    label = read_label(found.folder / "labelsTr" / "B2_es.nii.gz", like=image.grid)
    np.testing.assert_array_equal(image.array[0], cine(1)[3])
    np.testing.assert_array_equal(label.array, truth((3,))[3])
    np.testing.assert_allclose(image.grid.spacing, SPACING, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("table", "no CSV file with the columns", id="no table"),
        pytest.param("frame", "4 frames, the table asks for number 9", id="frame"),
        pytest.param("code", "1 of 4 images are not in the table, first A1", id="code"),
        pytest.param("number", "expected numbers", id="number"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    raw = downloaded(tmp_path / "raw")
    table = (raw / "info.csv").read_text()
    text = {
        "table": "id,vendor\n",
        "frame": table.replace("A1,x,A,1,0,2", "A1,x,A,1,0,9"),
        "code": table.replace("A1,", "Z9,"),
        "number": table.replace("A1,x,A,1,0,2", "A1,x,A,1,,2"),
    }[change]
    write_text(raw / "info.csv", text)
    with pytest.raises(DataError, match=message):
        importer("mms")(raw, tmp_path / "mms")
    assert not (tmp_path / "mms").exists()
