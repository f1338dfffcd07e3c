"""Which patients keep their labels, and that the labels of the others are never opened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from seguro import api
from seguro.api.labelled import doubts, hidden_cases, labelled_patients
from seguro.cli.main import main
from seguro.core.errors import ConfigError
from seguro.core.types import Case, FileFact
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases

FILE = FileFact(path="f", size=1, mtime_ns=0, sha256="0")
SMALL = ["--preset", "tiny", "--updates", "1", "--batch", "1", "--validations", "1", "--memory", "0.02"]


def case(name: str, patient: str, *, label: bool = True) -> Case:
    return Case(
        id=name,
        patient=patient,
        images=(FILE,),
        label=FILE if label else None,
        annotated=("organ",) if label else (),
        shape=(4, 4, 4),
        spacing=(1, 1, 1),
    )


TRAIN = [case(f"p{i}_{scan}", f"p{i}") for i in range(10) for scan in "ab"] + [case("u", "u", label=False)]
HELD_OUT = [case("v_a", "v")]


def chosen(wanted, seed=0):
    return labelled_patients(wanted, TRAIN, HELD_OUT, seed=seed)


def test_a_number_and_a_share_count_patients_not_scans():
    assert len(chosen(3)) == len(chosen("3")) == 3
    assert len(chosen(0.3)) == len(chosen("0.3")) == 3
    assert chosen("1.0") == chosen(10) == tuple(f"p{i}" for i in range(10))
    assert len(chosen(0.01)) == 1  # a share is never nobody


def test_all_scans_of_a_patient_go_together():
    kept = chosen(4)
    hidden = hidden_cases(TRAIN, kept)
    assert hidden == {c.id for c in TRAIN if c.label and c.patient not in kept}
    assert len(hidden) == 2 * 6 and "u" not in hidden  # was never labelled


def test_the_draw_follows_the_seed_and_is_nested():
    assert chosen(3) == chosen(3) and len({chosen(3, seed=s) for s in range(8)}) > 1
    assert set(chosen(3)) < set(chosen(7))


def test_so_many_of_each_site_and_none_of_the_others():
    train = [c.model_copy(update={"site": "ABC"[int(c.patient[1:]) % 3]}) for c in TRAIN if c.patient != "u"]
    at = {c.patient: c.site for c in train}

    def kept(wanted):
        return [at[p] for p in labelled_patients(wanted, train, seed=0)]

    assert sorted(kept("A=all, B=2")) == ["A"] * 4 + ["B"] * 2
    assert kept("B=all") == ["B"] * 3 and sorted(kept("A=1,C=0,B=1")) == ["A", "B"]
    twos, threes = (set(labelled_patients(f"B={n}", train, seed=0)) for n in (2, 3))
    assert twos < threes
    for wanted, word in (
        ("D=1", "the sites are A, B, C"),
        ("A=5", "0 to 4"),
        ("A=x", "0 to 4"),
        ("A=0", "nobody|no patient"),
    ):
        with pytest.raises(ConfigError, match=word):
            kept(wanted)


def test_ids_on_the_line_in_a_sequence_and_in_a_file(tmp_path):
    (tmp_path / "ids.txt").write_text("p7\r\n\np2\n")
    for wanted in ("p2,p7", "p7, p2,", ("p7", "p2", "p7"), str(tmp_path / "ids.txt")):
        assert chosen(wanted) == ("p2", "p7")
    assert chosen("p4") == chosen("p4,") == ("p4",)


def test_an_id_that_is_a_number_is_told_from_a_number_by_its_comma():
    numbered = [case(str(i), str(i)) for i in range(5)]
    assert labelled_patients("3,", numbered, seed=0) == ("3",)
    assert len(labelled_patients("3", numbered, seed=0)) == 3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (11, "1 to 10"),
        (0, "1 to 10"),
        ("0", "1 to 10"),
        (-1, "1 to 10"),
        (0.0, "above 0"),
        (1.5, "above 0"),
        ("nan", "above 0"),
        (True, "expected a number"),
        (",", "no patient at all"),
        ("", "no patient at all"),
        ("p1,nobody", "nobody is no patient of this fold; it has p0, p1"),
        ("u,", "u has no label"),
        ("v,", "v is one that this fold validates on"),
        ("p1_a,", "p1_a is a case of patient p1"),
    ],
)
def test_what_cannot_be_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        chosen(wanted)


@pytest.fixture(scope="module")
def prepared(phantom_folder, tmp_path_factory):
    """A prepared workspace with six labelled and two unlabelled cases."""
    out = tmp_path_factory.mktemp("labelled") / "w"
    options = PlanOptions(memory_gib=0.02)
    store = api.prepare(phantom_folder, out=out, options=options)
    return *api.plan(phantom_folder, out=out, options=options), store


def test_hidden_labels_are_never_opened(prepared, tmp_path):
    """They are deleted, and everything else can be read as before."""
    _, manifest, plan, store = prepared
    cases = manifest.of("train")
    hidden = hidden_cases(cases, [cases[0].patient])
    copy = shutil.copytree(store, tmp_path / "store")
    for c in cases[1:]:
        (copy / f"{c.hash}.label.npy").unlink()
        (copy / f"{c.hash}.locations.npy").unlink()
    seen = Cases(copy, cases, plan.classes, hidden=hidden)
    assert (seen.labelled, seen.unlabelled) == ((0,), tuple(range(1, 6)))
    assert doubts(seen) == []
    whole = Cases(store, cases, plan.classes)
    for ours, theirs in zip(seen, whole, strict=True):
        assert np.array_equal(ours.image, theirs.image)
        if ours.id in hidden:
            assert ours.label is None and not ours.annotated.any() and not len(ours.locations)
        else:
            assert np.array_equal(ours.label, theirs.label) and ours.annotated.all()


def test_a_class_in_no_labelled_case_and_another_spacing_are_named(prepared, tmp_path):
    _, manifest, plan, store = prepared
    copy = shutil.copytree(store, tmp_path / "store")
    first, *others = manifest.of("train")
    path = copy / f"{first.hash}.locations.npy"
    table = np.load(path)
    np.save(path, table[table[:, 0] != 1])
    (coarse,) = (c for c in others[:1])
    far = coarse.model_copy(update={"label": None, "spacing": tuple(2 * s for s in coarse.spacing)})
    shutil.copy(copy / f"{coarse.hash}.json", copy / f"{far.hash}.json")
    lines = doubts(Cases(copy, (first, far), plan.classes))
    assert [line.split(" ")[:2] for line in lines] == [
        ["class", plan.classes.foreground[1]],
        ["unlabelled", "cases"],
    ]
    assert "another spacing" in lines[1]


def test_supervised_training_sees_only_the_labelled_part(phantom_folder, tmp_path, capsys):
    out = tmp_path / "w"
    assert main(["train", str(phantom_folder), "--out", str(out), *SMALL, "--labelled", "2"]) == 0
    assert "2 training and 2 validation cases, labels of 2 (2 patients)" in capsys.readouterr().out
    run = out / "runs" / "supervised-unet-fold0-labelled2"
    kept = yaml.safe_load((run / "config.yaml").read_text())["labelled"]
    sides = json.loads((run / "cases.json").read_text())
    fold = json.loads((out / "plan" / "plan.json").read_text())["folds"][0]
    assert sorted(sides["train"]) == kept and set(kept) < set(fold["train"])
    assert sides["validation"] == fold["validation"]
    assert json.loads((run / "stage.json").read_text())["recorded"]["warnings"] == []
    # the same patients by name are the same run; others are not
    command = ["train", str(out), *SMALL, "--name", run.name, "--labelled"]
    assert main([*command, ",".join(kept)]) == 0 and "finished already" in capsys.readouterr().out
    assert main([*command, "1"]) == 1 and "labelled: was" in capsys.readouterr().err


def test_the_report_prints_the_option(tmp_path):
    from seguro.report.commands import commands

    config = {"method": "supervised", "preset": "tiny", "config": {}, "fold": "0", "labelled": ["3"]}
    line = next(x for x in commands(tmp_path, tmp_path, "", config, lambda *a: {}) if " train " in x)
    assert "--labelled 3," in line


def test_an_unlabelled_image_with_other_channels_is_refused(tmp_path, capsys):
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_unlabelled=1, seed=1)
    path = next((data / "imagesUn").iterdir())
    phantom.write_nifti(path, np.random.default_rng(0).normal(size=(2, 9, 9, 9)).astype(np.float32))
    assert main(["train", str(data), "--out", str(tmp_path / "w"), *SMALL]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert path.name in said and "2 frames on the fourth axis" in said


def test_a_semi_supervised_run_opens_no_hidden_label(phantom_folder, tmp_path, monkeypatch, capsys):
    """Through the whole command: of training cases only the labels of the kept patients are opened."""
    out = tmp_path / "w"
    api.prepare(phantom_folder, out=out, options=PlanOptions(memory_gib=0.02))
    opened, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, *a, **k: (opened.append(str(path)), load(path, *a, **k))[1])
    few = ["--preset", "tiny", "--updates", "2", "--batch", "4", "--validations", "1"]
    assert main(["train", str(out), "--method", "mean-teacher", *few, "--labelled", "2"]) == 0
    assert "labels of 2 (2 patients)" in capsys.readouterr().out
    run = out / "runs" / "mean-teacher-unet-fold0-labelled2"
    sides = json.loads((run / "cases.json").read_text())
    kept = set(yaml.safe_load((run / "config.yaml").read_text())["labelled"])
    manifest = json.loads((out / "check" / "manifest.json").read_text())
    by_id = {c["id"]: Case.model_validate(c) for c in manifest["cases"]}
    labelled = {c for c in sides["train"] if by_id[c].label is not None}
    assert set(sides["labels_hidden"]) == {c for c in labelled if by_id[c].patient not in kept}
    names = {p.rsplit("/", 1)[-1] for p in opened if p.endswith((".label.npy", ".locations.npy"))}
    seen = labelled - set(sides["labels_hidden"]) | set(sides["validation"])
    assert {n.split(".")[0] for n in names} == {by_id[c].hash for c in seen}
    images = {p.rsplit("/", 1)[-1].split(".")[0] for p in opened if p.endswith(".image.npy")}
    assert images & {by_id[c].hash for c in sides["labels_hidden"]}  # their images are learned from
