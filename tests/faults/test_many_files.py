"""A folder of very many files: listed in one pass, and said in a few words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from seguro.core.errors import DataError
from seguro.data import phantom
from seguro.data.layouts import list_cases

LIMIT_S = 60
"""Not a speed: one pass over these folders takes a few seconds, a pass per file takes many minutes."""
CHARACTERS = 1500
"""A message that fits a screen."""


def fill(folder: Path, names: str, n: int) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for i in range(n):
        (folder / names.format(i)).touch()
    return folder


@pytest.mark.parametrize("names", ["note{}.txt", "run.{}", "x{}"])
def test_files_that_are_no_images_are_counted_not_listed(tmp_path, names):
    with pytest.raises(DataError, match="no images found") as caught:
        list_cases(fill(tmp_path / "many", names, 2_000))
    assert len(str(caught.value)) < CHARACTERS


def test_they_do_not_matter_beside_images(tmp_path):
    data = phantom.write_msd(tmp_path, n_labelled=2, n_test=0, shape=(3, 6, 7))
    before = list_cases(data)
    fill(data / "imagesTr", "note{}.txt", 2_000)
    fill(data, "note{}.txt", 2_000)
    assert list_cases(data) == before


def test_scans_and_labels_side_by_side_keep_their_pairs(tmp_path):
    fill(tmp_path, "s{}.nii.gz", 500)
    fill(tmp_path, "s{}_seg.nii.gz", 400)
    found = {c.id: c for c in list_cases(tmp_path).found}
    assert len(found) == 500
    for i in range(500):
        case = found[f"s{i}"]
        assert [p.name for p in case.labels] == ([f"s{i}_seg.nii.gz"] if i < 400 else [])


def test_labels_that_share_the_end_of_a_name_keep_their_pairs(tmp_path):
    fill(tmp_path / "images", "G_{}.nii.gz", 500)
    fill(tmp_path / "labels", "{}.nii.gz", 500)
    found = list_cases(tmp_path).found
    assert len(found) == 500 and all(c.labels[0].name == c.images[0].name[2:] for c in found)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["note{}.txt", "run.{}", "folders"])
def test_check_of_a_hundred_thousand_ends(tmp_path, names):
    data = tmp_path / "many"
    if names == "folders":
        data.mkdir()
        for i in range(20_000):
            (data / f"f{i}").mkdir()
    else:
        fill(data, names, 100_000)
    command = [sys.executable, "-m", "seguro", "check", str(data), "--out", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2 and len(done.stdout + done.stderr) < CHARACTERS


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("s{}.nii.gz", "s{}_seg.nii.gz"), ("G_{}.png", "{}.png")])
def test_a_listing_of_a_hundred_thousand_pairs_ends(tmp_path, first, second):
    beside = "_seg" in second
    fill(tmp_path / "d" if beside else tmp_path / "d" / "images", first, 50_000)
    fill(tmp_path / "d" if beside else tmp_path / "d" / "labels", second, 50_000)
    code = (
        "import sys, pathlib; from seguro.data.layouts import list_cases; "
        "print(sum(len(c.labels) for c in list_cases(pathlib.Path(sys.argv[1])).found))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.split() == ["50000"], done.stderr[-2000:]
