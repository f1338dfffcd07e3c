"""`seguro plan`: what a user decides instead of the data."""

from __future__ import annotations

import json

import pytest

from seguro.cli.main import main


def test_spacing_patch_and_batch_are_taken_as_given(phantom_folder, tmp_path, capsys):
    words = ["plan", str(phantom_folder), "--out", str(tmp_path / "w"), "--dims", "2", "--json"]
    assert main([*words, "--spacing", "4,2,1.5", "--patch", "32,16", "--batch", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["spacing"], plan["patch"], plan["batch"]) == ([4, 2, 1.5], [32, 16], 3)


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--spacing", "2,2", "expected 3 positive numbers"),
        ("--spacing", "1,0,1", "expected 3 positive numbers"),
        ("--spacing", "1,nan,1", "expected 3 positive numbers"),
        ("--patch", "32x32", "expected 2 or 3 positive numbers"),
        ("--patch", "32.5,32", "expected 2 or 3 positive numbers"),
        ("--patch", "16,16,16", "a 2-D plan needs 2 numbers"),
    ],
)
def test_other_numbers_are_refused_and_nothing_is_written(
    option, text, said, phantom_folder, tmp_path, capsys
):
    words = ["plan", str(phantom_folder), "--out", str(tmp_path / "w"), "--dims", "2"]
    assert main([*words, option, text]) == 1
    told = capsys.readouterr()
    assert said in " ".join((told.out + told.err).split())
    assert not (tmp_path / "w" / "plan" / "plan.json").exists()
