"""`seguro attack RUN --support`: a few-shot model under attack and on corrupted scans."""

import json

import pytest

import seguro
from seguro.api.corrupt import CorruptOptions, corrupt
from seguro.attacks.corruptions import names
from seguro.cli.main import main
from seguro.core.files import read_json

PARTS = ("imagesTr", "labelsTr")


@pytest.fixture
def words(few_shot_run, phantom_folder):
    image = phantom_folder / "imagesTr" / "case_000.nii.gz"
    mask = phantom_folder / "labelsTr" / "case_000.nii.gz"
    return ["attack", str(few_shot_run), "--cases", "train", "--limit", "1", "--data-root",
            str(phantom_folder), "--support", str(image), "--support-label", str(mask), "--json"]  # fmt: skip


def test_a_few_shot_model_is_attacked_through_its_support(words, few_shot_run, capsys):
    arguments = [*words, "--suite", "pgd-ce", "--eps", "0,16", "--iters", "2", "--check", "0"]
    assert main([*arguments, "--name", "a"]) == 0
    first = json.loads(capsys.readouterr().out)
    rows = (few_shot_run / "attacks" / "a" / "robustness.csv").read_text().splitlines()
    assert first["cases"] == 1
    assert len(rows) > 2
    assert main([*arguments, "--name", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"]


def test_another_support_is_another_result(few_shot_run, phantom_folder):
    segmenter = seguro.load(few_shot_run)
    options = CorruptOptions(names=names("mr")[:1], severities=(1,), cases="train", limit=1)
    keys = []
    for case in ("case_000", "case_001"):
        bank = segmenter.support(tuple(phantom_folder / part / f"{case}.nii.gz" for part in PARTS))
        found = corrupt(few_shot_run, options, data_root=phantom_folder, name="c", support=bank)
        assert not found.skipped
        keys.append(read_json(found.folder / "stage.json")["key"])
    assert keys[0] != keys[1]


def test_without_a_support_it_is_refused(few_shot_run, phantom_folder, capsys):
    base = ["attack", str(few_shot_run), "--cases", "train", "--data-root", str(phantom_folder)]
    assert main(base) == 1
    assert "--support IMAGE --support-label MASK" in capsys.readouterr().err
    assert main([*base, "--support-label", "m.nii.gz"]) == 1
    assert "give that too" in capsys.readouterr().err
