from __future__ import annotations

import json
from pathlib import Path

import pytest

from seguro.cli.main import main
from seguro.data import phantom

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return phantom.write_msd(tmp_path / "scans", n_labelled=2, n_test=1, shape=(4, 12, 14))


def test_json_is_one_object_on_standard_output(data, capsys):
    assert main(["check", "scans", "--json"]) == 0
    out = capsys.readouterr()
    result = json.loads(out.out)
    assert result["ok"] and result["cases"] == {"train": 2, "test": 1, "unlabelled": 0}
    assert result["next"] == "seguro train scans"
    assert (
        Path(result["manifest"]) == Path("scans.seguro/check/manifest.json")
        and Path(result["manifest"]).exists()
    )
    assert "2 train, 1 test" in out.err


def test_dry_run_writes_nothing(data, capsys):
    assert main(["check", "scans", "--dry-run"]) == 0
    assert "3 cases would be read" in capsys.readouterr().out
    assert not Path("scans.seguro").exists()


def test_a_workspace_can_be_checked_again_and_out_is_carried_over(data, capsys):
    assert main(["check", "scans", "--out", "my work"]) == 0
    assert "next: seguro train scans --out 'my work'" in capsys.readouterr().out
    assert main(["check", "my work", "--verify"]) == 0
    assert "2 train" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["--spacing", "1,2"], 2, "one or three positive numbers"), (["--repair", "all"], 1, "only nan=min"),
    (["--classes", "liver"], 1, "names the classes already"),
    (["--out", "scans/w"], 1, "inside the input folder"),
])  # fmt: skip
def test_bad_options(data, capsys, arguments, code, says):
    assert main(["check", "scans", *arguments]) == code
    assert says in capsys.readouterr().err


def test_names_with_markup_are_printed_as_they_are(data, capsys):
    Path("scans/imagesTr/case_000.nii.gz").rename("scans/imagesTr/[red]x[bold].nii.gz")
    assert main(["check", "scans"]) == 2
    assert "[red]x[bold]" in capsys.readouterr().out


def test_options_of_the_last_check_hold_until_said_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = phantom.write_folder(tmp_path / "scans", n_labelled=3, shape=(4, 12, 14))
    assert main(["check", "scans", "--classes", "liver,spleen", "--out", "w"]) == 0
    next(p for p in (data / "images").iterdir()).write_bytes(b"")
    capsys.readouterr()
    assert main(["check", "scans", "--out", "w", "--json"]) == 2
    again = json.loads(capsys.readouterr().out)["next"]
    assert again == "seguro check scans --classes liver,spleen --quarantine --out w"
    assert main(again.split()[1:]) == 0
    capsys.readouterr()
    assert main(["check", "scans", "--out", "w"]) == 0  # the quarantine still holds
    out = capsys.readouterr().out
    assert "as in the last check here: --classes liver,spleen --quarantine" in out
    assert "classes: liver, spleen" in out and Path("w/check/manifest.json").exists()
    assert main(["check", "scans", "--out", "w", "--no-quarantine"]) == 2


@pytest.mark.skipif(not (SHARED / "vessels_octa_synthetic").is_dir(), reason="shared data are not here")
def test_real_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(SHARED / "vessels_octa_synthetic")]) == 2
    assert "(1, 1216, 1216) (4 times as large) for an image of shape (1, 304, 304)" in capsys.readouterr().out
    assert main(["check", str(SHARED / "covid_ct_slices")]) == 0
    assert "overlapping regions: lungs, covid" in capsys.readouterr().out
    assert main(["check", str(SHARED / "vessels_chase")]) == 0
    assert "10 patients" in capsys.readouterr().out
