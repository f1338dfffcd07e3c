"""FAULTS.md rows 19-21 and 23 (22 is in tests/data/test_dicom.py), and rows 1 and 3 for DICOM files."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seguro.cli.main import main
from seguro.core.errors import DataError, ExtraMissing, GeometryError, SeguroError
from seguro.data import check
from seguro.data.formats import dicom, read_image
from seguro.data.importers import importer
from seguro.inference.inputs import from_paths

pydicom = pytest.importorskip("pydicom")
from seguro.data.scanner import PATIENT, Scanner  # noqa: E402


def slices(n: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 1500, (n, 6, 7)).astype(np.int16)


def refused(folder: Path) -> str:
    (series,) = dicom.list_series(folder).series
    with pytest.raises(GeometryError) as error:
        dicom.read_series(series)
    return str(error.value)


# Row 19: missing slice, duplicated position, uneven spacing, gantry tilt


@pytest.mark.parametrize(
    ("places", "message"),
    [
        pytest.param([0, 1, 2, 4, 5], "10.000 mm between slices 3 and 4 .* 1 slice is missing", id="missing"),
        pytest.param([0, 1, 2, 3, 6], "15.000 mm between slices 4 and 5 .* 2 slices are", id="two missing"),
        pytest.param([0, 1, 2, 3, 4.4], "usual 5.000 mm: 7.000 mm between slices 4 and 5", id="uneven"),
        pytest.param([0, 1, 2, 3, 3.02], "0.100 mm between slices 4 and 5", id="too close"),
    ],
)
def test_uneven_gaps_are_refused_in_mm(tmp_path, places, message):
    Scanner().write(tmp_path / "in", slices(), places=places)
    assert re.search(message, refused(tmp_path / "in"))
    assert main(["import", "dicom", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    command = ["import", "dicom", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--resample"]
    assert main(command) == 0
    (image,) = (tmp_path / "out" / "images").iterdir()
    volume = read_image([image])
    assert volume.grid.spacing[0] == pytest.approx(5.0)
    assert volume.grid.shape[0] == round(places[-1]) + 1
    facts = json.loads((tmp_path / "out" / "import.json").read_text())
    assert any("interpolated" in note for f in facts["images"].values() for note in f["notes"])


def test_rounding_of_headers_is_no_gap(tmp_path):
    Scanner(spacing=(3.0, 1, 1)).write(tmp_path, slices(), places=[0, 1.003, 1.997, 3.0, 4.002])
    (series,) = dicom.list_series(tmp_path).series
    assert dicom.read_series(series).grid.spacing[0] == pytest.approx(3.0, abs=0.01)


def test_a_hole_of_many_slices_is_never_interpolated(tmp_path):
    Scanner().write(tmp_path, slices(), places=[0, 1, 2, 3, 8])
    (series,) = dicom.list_series(tmp_path).series
    with pytest.raises(GeometryError, match=r"25\.000 mm .* never interpolated"):
        dicom.read_series(series, resample=True)


def test_two_slices_at_one_place_are_refused_even_with_resample(tmp_path):
    Scanner().write(tmp_path, slices(), places=[0, 1, 2, 2, 3])
    (series,) = dicom.list_series(tmp_path).series
    for resample in (False, True):
        with pytest.raises(GeometryError, match=r"1 slices lie at the position of another \(0\.000 mm"):
            dicom.read_series(series, resample=resample)


def test_a_copy_of_a_file_is_no_second_slice(tmp_path):
    (first, *_) = Scanner().write(tmp_path, slices())
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    scan = dicom.list_series(tmp_path)
    assert len(scan.series[0].frames) == 5 and "1 copies of slices that are there already" in scan.skipped


def test_slices_whose_instances_were_blanked_are_no_copies(tmp_path):
    Scanner(elements={"SOPInstanceUID": "1.2.3"}).write(tmp_path, slices())
    assert len(dicom.list_series(tmp_path).series[0].frames) == 5


@pytest.mark.parametrize("drift", [(0.0, 0.5, 0.0), (-0.3, 0.0, 0.0)], ids=["rows", "columns"])
def test_gantry_tilt_is_refused_in_mm_and_degrees(tmp_path, drift):
    Scanner(drift=drift).write(tmp_path / "in", slices())
    off = 4 * max(abs(d) for d in drift)
    message = refused(tmp_path / "in")
    assert f"{off:.2f} mm off the normal" in message and "--resample" in message
    assert f"{np.degrees(np.arctan(off / 20)):.1f} degrees" in message


def test_one_bad_series_stops_the_import_or_is_left_out(tmp_path, capsys):
    Scanner(series=1).write(tmp_path / "in" / "a", slices())
    Scanner(series=2).write(tmp_path / "in" / "b", slices(), places=[0, 1, 2, 3, 5])
    (tmp_path / "in" / "c.dcm").write_bytes(b"")
    command = ["import", "dicom", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said and "c.dcm" in said and "10.000 mm" in said and "--quarantine" in said
    assert main([*command, "--quarantine"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_cases"] == 1
    assert sum("left out" in w for w in result["warnings"]) == 2


# Row 20: several series or orientations in a folder; localisers


def test_series_and_orientations_become_cases_and_localizers_are_listed(tmp_path, capsys):
    Scanner(series=1).write(tmp_path / "in", slices(4))
    sagittal = {"right": (0.0, 1.0, 0.0), "down": (0.0, 0.0, -1.0)}
    Scanner(series=1, stack=1, **sagittal).write(tmp_path / "in" / "x", slices(5))
    Scanner(series=2, elements={"ImageType": ["DERIVED", "LOCALIZER"]}).write(
        tmp_path / "in" / "y", slices(3)
    )
    out = tmp_path / "out"
    assert main(["import", "dicom", str(tmp_path / "in"), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_cases"] == 2 and "passed over: 3 localizers" in result["warnings"]
    report = check.check(out, tmp_path / "w")
    assert not report.errors and len(report.manifest.cases) == 2
    assert {c.patient for c in report.manifest.cases} == {"p001"}


def test_modalities_get_folders_of_their_own(tmp_path, capsys):
    Scanner(series=1).write(tmp_path / "in" / "a", slices())
    for series in (2, 3):
        ct = Scanner(series=series, elements={"Modality": "CT", "StudyInstanceUID": "1.2.9"})
        ct.write(tmp_path / "in" / f"{series}", slices(seed=series))
    out = tmp_path / "out"
    assert main(["import", "dicom", str(tmp_path / "in"), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == str(out / "CT") and result["options"] == ["--channels", "CT"]
    assert len(list((out / "CT" / "images").iterdir())) == 2
    assert len(list((out / "MR" / "images").iterdir())) == 1


def test_check_names_the_command_for_a_folder_of_dicom(tmp_path, capsys):
    Scanner().write(tmp_path / "in" / "study" / "series", slices())
    assert main(["check", str(tmp_path / "in"), "--out", str(tmp_path / "w")]) == 2
    assert f"seguro import dicom {tmp_path / 'in'}" in " ".join(capsys.readouterr().err.split())
    (path, *_) = (tmp_path / "in" / "study" / "series").iterdir()
    with pytest.raises(DataError, match="seguro import dicom"):
        from_paths(tmp_path / "in", channels=1)
    with pytest.raises(DataError, match="seguro import dicom"):
        read_image([path])


# Row 21: compressed syntax without codec


def compressed(path: Path, syntax: str) -> None:
    """Make a file say that its pixels are compressed in this way; they are not."""
    found = pydicom.dcmread(path)
    found.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    found.PixelData = pydicom.encaps.encapsulate([b"0123"])
    found["PixelData"].VR = "OB"
    found.save_as(path, implicit_vr=False, little_endian=True, force_encoding=True)


@pytest.mark.parametrize(
    "syntax",
    [
        pytest.param("1.2.840.10008.1.2.4.80", id="JPEG-LS"),
        pytest.param("1.2.840.10008.1.2.4.70", id="JPEG lossless"),
        pytest.param("1.2.840.10008.1.2.4.90", id="JPEG 2000"),
    ],
)
def test_a_codec_that_is_not_there_is_named_with_its_extra(tmp_path, monkeypatch, syntax):
    from pydicom.pixels.decoders import base

    monkeypatch.setattr(base.Decoder, "is_available", property(lambda self: False))
    for path in Scanner().write(tmp_path, slices()):
        compressed(path, syntax)
    (series,) = dicom.list_series(tmp_path).series
    with pytest.raises(ExtraMissing, match=r"python-gdcm': pip install 'seguro\[dicom\]'"):
        dicom.read_series(series)
    assert main(["import", "dicom", str(tmp_path), "--out", str(tmp_path.with_name("out"))]) == 1


def test_pydicom_that_is_not_there_is_named_with_its_extra(tmp_path, monkeypatch):
    Scanner().write(tmp_path, slices())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ExtraMissing, match=r"seguro\[dicom\]"):
        dicom.list_series(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [("1.2.840.10008.1.2.9", "transfer syntax"), ("1.2.840.10008.1.2.4.100", "compressed as MPEG2")],
)
def test_a_syntax_that_cannot_be_read_is_named(tmp_path, syntax, message):
    for path in Scanner().write(tmp_path, slices()):
        compressed(path, syntax)
    (series,) = dicom.list_series(tmp_path).series
    with pytest.raises(DataError, match=message):
        dicom.read_series(series)


def test_a_deflated_file_is_refused_unopened(tmp_path):
    (path, *_) = Scanner().write(tmp_path, slices())
    found = pydicom.dcmread(path)
    found.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    found.save_as(path, enforce_file_format=True)
    assert any("deflated as a whole" in line for line in dicom.list_series(tmp_path).damaged)


# Row 23: nothing of the patient is written or shown


def secrets() -> list[str]:
    return [part for v in PATIENT.values() for part in (v, *v.split("^"))] + ["Klinik Beispiel", "20260102"]


def test_nothing_of_the_patient_is_written_or_shown(tmp_path, capsys, caplog):
    source = tmp_path / "in"
    Scanner(series=1).write(source / "a", slices())
    Scanner(series=2).write(source / "b", slices(), places=[0, 1, 2, 3, 5])
    bad = {"PixelSpacing": None, "WindowCenter": "40"}
    Scanner(series=3, elements=bad).write(source / "c", slices())
    out = tmp_path / "out"
    main(["import", "dicom", str(source), "--out", str(out)])
    assert main(["import", "dicom", str(source), "--out", str(out), "--quarantine", "--json"]) == 0
    main(["check", str(out), "--out", str(tmp_path / "w")])
    said = capsys.readouterr()
    shown = said.out + said.err + caplog.text
    uids = [f"{pydicom.dcmread(p).SeriesInstanceUID}" for p in (source / "a").iterdir()]
    for path in [p for folder in (out, tmp_path / "w") for p in folder.rglob("*") if p.is_file()]:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        for secret in [*secrets(), *uids]:
            assert secret.encode() not in content and secret not in path.name, path
    assert not [s for s in [*secrets(), *uids] if s in shown]


def test_names_of_folders_are_kept_only_when_asked(tmp_path):
    Scanner().write(tmp_path / "in" / "Erika M.", slices())
    Scanner(series=2).write(tmp_path / "in" / "other" / "one", slices())
    plain = importer("dicom")(tmp_path / "in", tmp_path / "out")
    named = importer("dicom")(tmp_path / "in", tmp_path / "named", keep_names=True)
    assert not [p for p in plain.folder.rglob("*") if "Erika" in p.name]
    names = {p.name for p in (named.folder / "images").iterdir()}
    assert names == {"Erika-M.nii.gz", "other_one.nii.gz"}


@pytest.mark.parametrize("ids", [("", ""), ("x", "x")], ids=["blanked", "all the same"])
def test_patients_that_were_blanked_are_said(tmp_path, ids):
    for k, patient in enumerate(ids):
        elements = {"PatientID": patient, "StudyInstanceUID": f"1.2.{k}"}
        Scanner(series=k + 1, elements=elements).write(tmp_path / "in" / f"{k}", slices(seed=k))
    found = importer("dicom")(tmp_path / "in", tmp_path / "out")
    lines = (found.folder / "patients.csv").read_text().split()[1:]
    assert len({line.split(",")[1] for line in lines}) == (2 if ids[0] == "" else 1)
    assert any("each study counts" in n if ids[0] == "" else "one patient's id" in n for n in found.notes)


# Rows 1 and 3: truncated, not DICOM, impossible headers


def test_truncated_empty_and_other_files_are_named(tmp_path):
    paths = Scanner().write(tmp_path, slices())
    raw = paths[2].read_bytes()
    paths[2].write_bytes(raw[: len(raw) - 40])
    (series,) = dicom.list_series(tmp_path).series
    with pytest.raises(DataError, match=rf"{paths[2].name}: the pixels cannot be decoded"):
        dicom.read_series(series)
    paths[2].write_bytes(raw[:200])
    paths[3].write_bytes(b"")
    paths[4].write_bytes(b"<!DOCTYPE html><html><body>not found</body></html>")
    damaged = "\n".join(dicom.list_series(tmp_path).damaged)
    assert f"{paths[3].name}: the file is empty" in damaged
    assert paths[4].name in damaged


def test_a_header_that_claims_too_much_is_refused_before_anything_is_allocated(tmp_path):
    huge = Scanner(elements={"Rows": 30000, "Columns": 30000})
    huge.write(tmp_path / "a", slices(3))
    (series,) = dicom.list_series(tmp_path / "a").series
    with pytest.raises(DataError, match="more than the limit"):
        dicom.read_series(series, limit=1 << 30)
    with pytest.raises(DataError, match="the pixels cannot be decoded"):
        dicom.read_series(series, limit=1 << 60)
    Scanner(elements={"Rows": 65535}).write(tmp_path / "b", slices(3))
    assert all("damaged" in line for line in dicom.list_series(tmp_path / "b").damaged)
    Scanner(elements={"PixelSpacing": [0, 1]}).write(tmp_path / "c", slices(3))
    assert all("pixel spacing 0" in line for line in dicom.list_series(tmp_path / "c").damaged)
    Scanner(scale=((0.0, 1.0),) * 3).write(tmp_path / "d", slices(3))
    assert all("rescale slope 0" in line for line in dicom.list_series(tmp_path / "d").damaged)
    assert [len(dicom.list_series(tmp_path / n).damaged) for n in "bcd"] == [3, 3, 3]


@pytest.fixture(scope="module")
def one_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return Scanner().write_enhanced(folder / "all.dcm", slices(3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_anything_but_a_named_error(one_file, tmp_path, data):
    raw = bytearray(one_file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(1, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(128, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "x.dcm"
    path.write_bytes(bytes(raw))
    for series in dicom.list_series(tmp_path).series:
        try:
            volume = dicom.read_series(series, limit=1 << 28)
        except SeguroError as error:
            assert str(tmp_path) in str(error)
        else:
            assert volume.array.ndim == 4
