from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError
from seguro.data import manifest, phantom
from seguro.data.check import Options, check, ensure
from seguro.data.check_options import command, remembered
from seguro.data.recommendation import recommend

SMALL = {"shape": (4, 12, 14)}


@pytest.fixture
def data(tmp_path):
    return phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=2, n_unlabelled=1, **SMALL)


def run(data, tmp_path, **options):
    return check(data, tmp_path / "w", options=Options(**options))


def test_a_good_folder_gives_a_manifest_that_reads_back(data, tmp_path):
    report = run(data, tmp_path)
    assert report.ok and not report.errors and not report.warnings
    kept = manifest.load(tmp_path / "w")
    assert kept == report.manifest
    assert [len(kept.of(s)) for s in ("train", "test", "unlabelled")] == [4, 2, 1]
    case = kept.of("train")[0]
    volume = manifest.read_case(case, kept)
    label = manifest.read_case_label(case, kept, like=volume.grid)
    made = next(phantom.cases(4, 2, 1, phantom.Spec(**SMALL)))
    assert np.array_equal(label.array, made.label) and np.array_equal(volume.array, made.image)
    assert case.annotated == ("organ1", "organ2") and case.shape == made.label.shape


@pytest.mark.parametrize("write", [phantom.write_nnunet, phantom.write_folder, phantom.write_png])
def test_other_layouts_give_the_same_labels(tmp_path, write):
    look = {} if write is phantom.write_png else SMALL
    report = run(write(tmp_path / "data", n_labelled=2, **look), tmp_path)
    assert report.ok
    case = report.manifest.of("train")[0]
    image = manifest.read_case(case, report.manifest)
    label = manifest.read_case_label(case, report.manifest, like=image.grid)
    assert set(np.unique(label.array)) == {v[0] for v in report.manifest.classes.values} == {0, 1, 2}
    assert image.grid.unit == case.unit == ("px" if write is phantom.write_png else "mm")


def test_second_check_reads_nothing_and_says_the_same(data, tmp_path, monkeypatch):
    first = run(data, tmp_path)
    monkeypatch.setattr("seguro.data.check.inspect", None)  # would fail if a file was read
    again = run(data, tmp_path)
    assert again == first


def test_a_touched_file_is_read_again(data, tmp_path):
    run(data, tmp_path)
    path = data / "imagesTr" / "case_000.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    report = run(data, tmp_path)
    assert [p.case for p in report.errors] == ["case_000"]
    assert not (tmp_path / "w" / "check" / "manifest.json").exists()  # the old one is no longer true


def test_verify_finds_a_change_that_left_size_and_time_alone(data, tmp_path):
    run(data, tmp_path)
    path = data / "labelsTr" / "case_000.nii.gz"
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[9] ^= 1  # operating system byte of the gzip header: no checksum covers it
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(data, tmp_path).ok
    report = check(data, tmp_path / "w", verify=True)
    assert "content changed" in report.errors[0].message and report.errors[0].case == "case_000"


def test_quarantine_lists_what_is_left_out_and_is_remembered(data, tmp_path):
    (data / "imagesTr" / "case_001.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 problems(.|\n)*case_001(.|\n)*--quarantine"):
        ensure(data, tmp_path / "w")
    report = run(data, tmp_path, quarantine=True)
    assert report.ok and len(report.manifest.of("train")) == 3
    assert report.manifest.excluded[0].id == "case_001"
    assert ensure(data, tmp_path / "w") == report.manifest


def test_every_problem_is_found_in_one_go(data, tmp_path):
    (data / "imagesTr" / "case_000.nii.gz").write_bytes(b"")
    phantom.write_nifti(data / "imagesTr" / "case_001.nii.gz", np.full(SMALL["shape"], 3.0, np.float32))
    phantom.write_nifti(data / "labelsTr" / "case_002.nii.gz", np.full(SMALL["shape"], 9, np.uint8))
    (data / "labelsTr" / "case_003.nii.gz").write_bytes(b"<html>")
    report = run(data, tmp_path)
    assert {p.case: p.kind for p in report.errors} == {
        "case_000": "file", "case_001": "intensity", "case_002": "label", "case_003": "file",
    }  # fmt: skip
    problems = json.loads((tmp_path / "w" / "check" / "problems.json").read_text())
    assert len(problems["errors"]) == 4


def test_nothing_is_written_into_the_data(data, tmp_path):
    before = sorted((p.relative_to(data), p.stat().st_mtime_ns) for p in data.rglob("*"))
    run(data, tmp_path)
    assert sorted((p.relative_to(data), p.stat().st_mtime_ns) for p in data.rglob("*")) == before


def test_classes_of_a_plain_folder(tmp_path):
    folder = phantom.write_folder(tmp_path / "data", n_labelled=2, **SMALL)
    assert run(folder, tmp_path).manifest.classes.names == ("background", "class 1", "class 2")
    named = run(folder, tmp_path, classes=("liver", "spleen")).manifest.classes
    assert named.names == ("background", "liver", "spleen") and named.values == ((0,), (1,), (2,))
    explicit = run(folder, tmp_path, classes=("2=liver", "1=spleen")).manifest.classes
    assert explicit.names == ("background", "spleen", "liver")
    with pytest.raises(ConfigError, match=r"1 classes \(liver\), the labels hold the values \[1, 2\]"):
        run(folder, tmp_path, classes=("liver",))


def test_masks_of_0_and_255_are_one_class(tmp_path):
    folder = phantom.write_png(tmp_path / "data", n_labelled=2, n_classes=1, spread=True)
    classes = run(folder, tmp_path).manifest.classes
    assert classes.names == ("background", "foreground") and classes.values == ((0,), (255,))


def masks(tmp_path, **files):
    """Mask folders over one image; each mask is a list of set columns, None leaves the file out."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        phantom.write_nifti(folder / "images" / f"{case}.nii.gz", rng.random((2, 3, 8), np.float32))
    for name, columns in files.items():
        for case, chosen in zip(("a", "b"), columns, strict=True):
            if chosen is not None:
                mask = np.zeros((2, 3, 8), np.uint8)
                mask[..., chosen] = 1
                phantom.write_nifti(folder / name / f"{case}.nii.gz", mask)
    return folder


def test_masks_apart_become_exclusive_classes(tmp_path):
    report = run(masks(tmp_path, liver=([0, 1], [2]), spleen=([4], None)), tmp_path)
    assert report.manifest.classes.names == ("background", "liver", "spleen")
    a, b = report.manifest.of("train")
    assert a.annotated == ("liver", "spleen") and b.annotated == ("liver",)
    label = manifest.read_case_label(a, report.manifest, like=manifest.read_case(a, report.manifest).grid)
    assert label.array[0, 0].tolist() == [1, 1, 0, 0, 2, 0, 0, 0]
    assert any("spleen is annotated in 1 of 2" in p.message for p in report.warnings)


def test_overlapping_masks_become_regions_and_are_counted(tmp_path):
    report = run(masks(tmp_path, core=([1, 2], [1]), whole=([0, 1, 2, 3], [1, 4])), tmp_path)
    classes = report.manifest.classes
    assert classes.regions and classes.names == (
        "whole",
        "core",
    )  # larger first, so that the smaller is painted over
    assert any("core and whole share 18 voxels" in p.message for p in report.warnings)
    case = report.manifest.of("train")[0]
    label = manifest.read_case_label(
        case, report.manifest, like=manifest.read_case(case, report.manifest).grid
    )
    row = label.array[0, 0]
    for name, columns in (("core", [1, 2]), ("whole", [0, 1, 2, 3])):
        index = classes.names.index(name)
        assert np.flatnonzero(np.isin(row, classes.values[index])).tolist() == columns
    out = np.zeros(8, int)  # painting the regions gives the label back
    for index, columns in enumerate(([0, 1, 2, 3], [1, 2])):
        out[columns] = classes.paint[index]
    assert np.array_equal(out, row)


def test_patients_sites_and_annotations(tmp_path):
    folder = phantom.write_msd(
        tmp_path / "data", n_labelled=4, n_test=0, sites=2, scans_per_patient=2, **SMALL
    )
    (folder / "annotated.json").write_text('{"case_001": ["organ2"]}')
    report = run(folder, tmp_path)
    cases = {c.id: c for c in report.manifest.cases}
    assert cases["case_001"].patient == cases["case_000"].patient == "p000"
    assert cases["case_001"].site == "site2"
    assert cases["case_001"].annotated == ("organ2",)
    assert any("organ1 is annotated in 3 of 4" in p.message for p in report.warnings)
    advice = report.recommendation
    assert advice.method == "federate" and advice.command == f"seguro federate simulate {folder}"


def test_a_site_without_labels_gets_a_factory(tmp_path):
    folder = phantom.write_msd(tmp_path / "data", n_labelled=12, n_test=0, n_unlabelled=2, **SMALL)
    found = run(folder, tmp_path).manifest
    cases = tuple(c.model_copy(update={"site": "B"} if c.label is None else {}) for c in found.cases)
    advice = recommend(found.model_copy(update={"cases": cases}), "d")
    assert (advice.method, advice.command) == ("factory", "seguro train d --method factory --dims 2")
    assert "none from B" in advice.why and "seguro adapt" in advice.why


def test_a_patient_in_train_and_test_is_pointed_out(tmp_path):
    folder = phantom.write_msd(tmp_path / "data", n_labelled=1, n_test=1, scans_per_patient=2, **SMALL)
    assert any("both train and test: p000" in p.message for p in run(folder, tmp_path).warnings)


@pytest.mark.parametrize(
    ("numbers", "method"), [((12, 0), "supervised"), ((1, 3), "alpnet"), ((2, 6), "roam"), ((0, 2), "none")]
)
def test_recommendation(tmp_path, numbers, method):
    labelled, unlabelled = numbers
    folder = phantom.write_msd(
        tmp_path / "d a", n_labelled=labelled, n_test=0, n_unlabelled=unlabelled, **SMALL
    )
    advice = run(folder, tmp_path).recommendation
    assert advice.method == method
    assert advice.command.split(" ")[1] in ("train", "check") and f"'{folder}'" in advice.command


def test_without_any_label_the_methods_that_need_none_are_named(tmp_path):
    folder = phantom.write_folder(tmp_path / "bare", n_labelled=0, n_unlabelled=2, seed=1)
    advice = run(folder, tmp_path).recommendation
    assert advice.method == "none"
    assert "2 unlabelled" in advice.why and "alpnet" in advice.why and "factory" in advice.why


def test_large_volumes_get_pfseg(data, tmp_path):
    found = run(data, tmp_path).manifest
    change = {"shape": (200, 512, 512), "split": "train"}
    huge = tuple(
        c.model_copy(update=change | {"patient": str(i), "label": c.images[0]})
        for i, c in enumerate(found.cases * 2)
    )
    assert recommend(found.model_copy(update={"cases": huge}), "d").method == "pfseg"


def test_manifest_that_leaves_its_root_or_is_none_of_ours_is_refused(data, tmp_path):
    run(data, tmp_path)
    path = tmp_path / "w" / "check" / "manifest.json"
    content = json.loads(path.read_text())
    content["cases"][0]["images"][0]["path"] = "../../secret.nii.gz"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="outside its root"):
        manifest.load(path)
    path.write_text(json.dumps(content | {"extra": 1}))
    with pytest.raises(DataError, match="not a manifest of this version"):
        manifest.load(path)


def test_moved_data_are_found_again(data, tmp_path):
    kept = run(data, tmp_path).manifest
    moved = data.rename(tmp_path / "elsewhere")
    again = manifest.load(tmp_path / "w", data_root=moved)
    assert manifest.read_case(again.cases[0], again).array.shape[1:] == kept.cases[0].shape


def test_the_same_image_under_two_patients_is_an_error_even_at_two_sites(tmp_path):
    folder = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0, sites=2, **SMALL)
    shutil.copy(folder / "imagesTr" / "case_000.nii.gz", folder / "imagesTr" / "case_001.nii.gz")
    shutil.copy(folder / "labelsTr" / "case_000.nii.gz", folder / "labelsTr" / "case_001.nii.gz")
    report = run(folder, tmp_path)
    assert len({c.site for c in report.manifest.cases}) == 2
    assert [(p.kind, p.case) for p in report.errors] == [("duplicate", "case_001")]


def write_patients(folder, *rows):
    with (folder / "patients.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "patient", "split"), *rows])


def test_a_case_told_to_be_unlabelled_loses_its_label(data, tmp_path):
    write_patients(data, ("case_001", "p1", "unlabelled"))
    kept = run(data, tmp_path).manifest
    case = next(c for c in kept.cases if c.id == "case_001")
    assert (case.split, case.label, case.masks, case.annotated) == ("unlabelled", None, (), ())
    assert all(c.label for c in kept.of("train")) and len(kept.of("train")) == 3


def test_a_check_after_a_move_saves_the_new_place(data, tmp_path):
    run(data, tmp_path)
    moved = data.rename(tmp_path / "elsewhere")
    run(moved, tmp_path)
    kept = manifest.load(tmp_path / "w")
    assert kept.root == str(moved.resolve())
    assert run(moved, tmp_path).manifest == kept


def test_the_splits_of_the_data_are_in_the_manifest(data, tmp_path):
    assert run(data, tmp_path).manifest.splits_sha256 is None
    (data / "splits_final.json").write_text("[]")
    first = run(data, tmp_path).manifest.splits_sha256
    (data / "splits_final.json").write_text("[ ]")
    assert first is not None and run(data, tmp_path).manifest.splits_sha256 not in (None, first)
    assert manifest.load(tmp_path / "w").splits_sha256 == run(data, tmp_path).manifest.splits_sha256


def test_options_outlive_a_failed_check_and_stand_in_the_hint(tmp_path):
    folder = phantom.write_folder(tmp_path / "data", n_labelled=3, **SMALL)
    told = Options(classes=("liver", "spleen"), channels=("MRI",))
    assert check(folder, tmp_path / "w", options=told).ok
    next(p for p in (folder / "images").iterdir()).write_bytes(b"")
    with pytest.raises(DataError) as error:
        ensure(folder, tmp_path / "w")
    assert remembered(tmp_path / "w") == told
    hint = command(
        folder, tmp_path / "w", Options(told.spacing, told.classes, told.channels, quarantine=True)
    )
    assert "--classes liver,spleen --channels MRI --quarantine --out" in hint and hint in str(error.value)


def test_the_outputs_of_a_copy_made_later_are_the_same(tmp_path):
    from seguro.core.stage import output_hash

    first = phantom.write_msd(tmp_path / "a" / "data", n_labelled=3, n_test=1)
    second = shutil.copytree(first, tmp_path / "b" / "data", copy_function=shutil.copyfile)
    for data in (first, second):
        check(data, data.parent / "w")
    one, two = (output_hash(p / "w" / "check") for p in (first.parent, second.parent))
    assert one == two
    texts = [(p.parent / "w" / "check" / "manifest.json").read_text() for p in (first, second)]
    assert texts[0] != texts[1]  # folder and dates are kept, only not hashed
