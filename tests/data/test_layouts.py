from __future__ import annotations

import json

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.data import phantom
from seguro.data.layouts import list_cases
from seguro.data.layouts.folder import class_name
from seguro.data.layouts.naming import Person, has_side, lateral_pairs, person, read_annotated, read_patients

SMALL = {"shape": (3, 6, 7)}


def edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_decathlon_with_all_parts(tmp_path):
    listing = list_cases(
        phantom.write_msd(tmp_path, n_labelled=3, n_test=2, n_unlabelled=2, channels=2, **SMALL)
    )
    splits = {c.id: c.split for c in listing.found}
    assert listing.layout == "msd" and listing.channels == ("MRI", "MRI")
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 3 + ["unlabelled"] * 2
    assert listing.classes.names == ("background", "organ1", "organ2")
    assert listing.classes.values == ((0,), (1,), (2,))
    assert all(len(c.labels) == (0 if c.split == "unlabelled" else 1) for c in listing.found)
    assert not listing.errors and not listing.warnings


def test_decathlon_orphans_of_each_kind(tmp_path):
    phantom.write_msd(tmp_path, n_labelled=5, n_test=0, **SMALL)
    (tmp_path / "labelsTr" / "case_000.nii.gz").unlink()  # listed pair without label
    (tmp_path / "imagesTr" / "case_001.nii.gz").unlink()  # listed pair without image
    entries = json.loads((tmp_path / "dataset.json").read_text())["training"]
    edit(
        tmp_path,
        training=[e for e in entries if "case_002" not in e["image"] and "case_003" not in e["image"]],
    )
    (tmp_path / "labelsTr" / "case_003.nii.gz").unlink()  # unlisted image
    (tmp_path / "imagesTr" / "case_004.nii.gz").rename(tmp_path / "imagesTr" / "other.nii.gz")
    listing = list_cases(tmp_path)
    assert {c.id: c.split for c in listing.found} == {
        "case_000": "unlabelled",
        "case_003": "unlabelled",
        "other": "unlabelled",
    }
    assert {p.case for p in listing.errors} == {"case_001", "case_004"}
    text = "\n".join(p.message for p in listing.warnings)
    assert "1 training images without label are used as unlabelled: case_000" in text
    assert "1 pairs in imagesTr that dataset.json does not name are left out: case_002" in text
    assert "2 images without label in imagesTr are used as unlabelled: case_003, other" in text


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.nii.gz", "/etc/x.nii.gz", "a/../../x.nii.gz", "a\x00.nii"]
)
def test_paths_that_leave_the_root_are_refused(tmp_path, name):
    phantom.write_msd(tmp_path, n_labelled=1, n_test=0, **SMALL)
    edit(tmp_path, training=[{"image": name, "label": "labelsTr/case_000.nii.gz"}])
    with pytest.raises(DataError, match="lies outside"):
        list_cases(tmp_path)


@pytest.mark.parametrize(("changes", "text"), [
    ({"training": 5}, "'training' is int"),
    ({"training": [7]}, "entry '7'"),
    ({"labels": {"1": "a", "2": "a"}}, "repeat"),
    ({"labels": {"x": "y"}}, "not pairs of value and name"),
    ({"labels": {}}, "expected an object"),
    ({"modality": ["MRI"]}, "modality"),
])  # fmt: skip
def test_malformed_descriptions_name_what_is_wrong(tmp_path, changes, text):
    phantom.write_msd(tmp_path, n_labelled=1, n_test=0, **SMALL)
    edit(tmp_path, **changes)
    with pytest.raises(DataError, match=text):
        list_cases(tmp_path)


def test_nominal_spacing_is_recognised(tmp_path):
    phantom.write_msd(tmp_path, n_labelled=1, n_test=0, **SMALL)
    assert not list_cases(tmp_path).nominal
    edit(tmp_path, description="spacing nominal 1.5 mm")
    assert list_cases(tmp_path).nominal


def test_nnunet_with_channels(tmp_path):
    listing = list_cases(phantom.write_nnunet(tmp_path, n_labelled=2, n_test=1, channels=2, **SMALL))
    assert listing.layout == "nnunet"
    assert [c.id for c in listing.found] == ["case_000", "case_001", "case_002"]
    assert [p.name for p in listing.found[0].images] == ["case_000_0000.nii.gz", "case_000_0001.nii.gz"]
    (tmp_path / "imagesTr" / "case_000_0001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "ghost.nii.gz").write_bytes(b"x")
    listing = list_cases(tmp_path)
    assert {p.case: p.message[:21] for p in listing.errors} == {
        "case_000": "channels 0000 present",
        "ghost": "labelsTr/ghost.nii.gz",
    }


def test_nnunet_regions_and_ignore(tmp_path):
    phantom.write_nnunet(tmp_path, n_labelled=1, n_test=0, **SMALL)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edema": 1, "ignore": 4}
    edit(tmp_path, labels=labels, regions_class_order=[1, 2, 1])
    classes = list_cases(tmp_path).classes
    assert classes.regions and classes.names == ("whole", "core", "edema")
    assert classes.values == ((1, 2, 3), (2, 3), (1,)) and classes.paint == (1, 2, 1) and classes.ignore == 4
    edit(tmp_path, regions_class_order=[1])
    with pytest.raises(DataError, match="regions_class_order"):
        list_cases(tmp_path)


def test_plain_folder_pairs_by_stem_and_suffix(tmp_path):
    phantom.write_folder(tmp_path, n_labelled=2, n_unlabelled=1, **SMALL)
    (tmp_path / "labels" / "case_001.nii.gz").rename(tmp_path / "labels" / "case_001_seg.nii.gz")
    (tmp_path / "labels" / "lost.nii.gz").write_bytes(b"x")
    listing = list_cases(tmp_path)
    assert listing.layout == "folder"
    assert [len(c.labels) for c in listing.found] == [1, 1, 0]
    assert listing.found[1].labels[0].name == "case_001_seg.nii.gz"
    assert [p.case for p in listing.errors] == ["lost"]
    assert "1 of 3 images have no label" in listing.warnings[0].message


def test_site_folders_give_sites_and_unique_ids(tmp_path):
    for site in ("berlin", "oslo"):
        phantom.write_folder(tmp_path / site, n_labelled=2, **SMALL)
    listing = list_cases(tmp_path)
    assert [(c.id, c.site) for c in listing.found] == [
        ("berlin_case_000", "berlin"),
        ("berlin_case_001", "berlin"),
        ("oslo_case_000", "oslo"),
        ("oslo_case_001", "oslo"),
    ]


def test_images_and_labels_side_by_side(tmp_path):
    for name in ("a", "a_seg", "b", "b_gmseg_manual", "c_1"):
        phantom.write_nifti(tmp_path / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))
    listing = list_cases(tmp_path)
    assert listing.masks == ("gm", "foreground")
    assert {c.id: tuple(p and p.name for p in c.labels) for c in listing.found} == {
        "a": (None, "a_seg.nii.gz"), "b": ("b_gmseg_manual.nii.gz", None), "c_1": (),
    }  # fmt: skip


def test_two_observers_are_one_class(tmp_path):
    for name in ("a", "a_1stHO", "a_2ndHO"):
        phantom.write_nifti(tmp_path / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))
    listing = list_cases(tmp_path)
    assert listing.masks == () and listing.found[0].labels[0].name == "a_1stHO.nii.gz"
    assert "2 observers" in listing.warnings[0].message


def test_odd_names_are_kept_in_stable_order(tmp_path):
    names = ["Ärzte scan", "a", "A", "x" * 200, "日本"]
    for name in names:
        phantom.write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))
        phantom.write_nifti(tmp_path / "labels" / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))
    assert [c.id for c in list_cases(tmp_path).found] == sorted(names)


def test_same_stem_twice_is_refused(tmp_path):
    phantom.write_folder(tmp_path, n_labelled=1, **SMALL)
    (tmp_path / "images" / "case_000.nii").write_bytes(b"x")
    with pytest.raises(DataError, match="name the same case"):
        list_cases(tmp_path)


def test_folders_without_images_say_what_is_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"no images found \(no subfolders; 1 \.txt\)(.|\n)*images/ and labels/"
    ):
        list_cases(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        list_cases(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a file"):
        list_cases(tmp_path / "notes.txt")


@pytest.mark.parametrize(("case", "expected"), [
    ("patient012_frame09", Person("patient012", "site1")),
    ("vol03_0287", Person("vol03", "site1")),
    ("Image_01L", Person("Image_01", "site1")),
    ("siteB_007", Person("siteB_007", "siteB")),
    ("anything", Person("anything", "site1")),
])  # fmt: skip
def test_patients_and_sites_from_names(case, expected):
    assert person(case, None, {}) == expected


def test_the_table_wins_over_names(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("\ufeffid,patient,site\nvol03_1,anna,oslo\nvol03_2,ben,\n", encoding="utf-8")
    table = read_patients(path)
    assert person("vol03_1", None, table) == Person("anna", "oslo")
    assert person("vol03_2", "rome", table) == Person("ben", "rome")


@pytest.mark.parametrize(("text", "message"), [
    ("case,who\na,b\n", "expected id,patient"), ("id,patient\na,x\na,y\n", "line 3.*second time"),
    ("id,patient\na,\n", "line 2 has an empty"),
])  # fmt: skip
def test_malformed_tables(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_patients(tmp_path / "p.csv")


def test_annotated_is_in_class_order_and_knows_its_classes(tmp_path):
    path = tmp_path / "annotated.json"
    path.write_text('{"a": ["spleen", "liver"]}')
    assert read_annotated(path, ("liver", "spleen")) == {"a": ("liver", "spleen")}
    with pytest.raises(DataError, match="unknown classes"):
        read_annotated(path, ("liver",))


def test_left_and_right_are_paired():
    assert lateral_pairs(("left kidney", "liver", "right kidney", "Lung_R", "Lung_L")) == (
        ("left kidney", "right kidney"), ("Lung_L", "Lung_R"),
    )  # fmt: skip
    assert lateral_pairs(("left ventricle", "liver")) == ()
    assert lateral_pairs(("rib_left_1", "rib_right_1", "rib_right_2")) == (("rib_left_1", "rib_right_1"),)


@pytest.mark.parametrize("organ", ["ventricle", "atrium", "liver lobe", "lung upper lobe", "coronary artery"])
def test_sides_that_are_no_mirror_twins_are_not_paired(organ):
    assert lateral_pairs((f"left {organ}", f"right {organ}")) == ()
    assert has_side(f"left {organ}") and not has_side(organ)


def test_class_names_from_suffixes():
    assert [class_name(k) for k in ("gmseg_manual", "seg-manual", "mask", "lesion")] == [
        "gm", "foreground", "foreground", "lesion",
    ]  # fmt: skip
