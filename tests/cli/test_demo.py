import json
from pathlib import Path

import pytest
import typer

from seguro.cli import demo
from seguro.cli import main as command_line
from seguro.core.errors import ExtraMissing
from seguro.data import example, phantom


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Replace the template's subjects by phantoms; return the list that counts how often they were made."""
    made: list[int] = []

    def write(folder: Path, *, seed: int) -> Path:
        made.append(seed)
        return phantom.write_msd(folder, n_labelled=1, n_test=1, seed=seed)

    template = tmp_path / "template"
    template.write_bytes(b"template")
    monkeypatch.setattr(example, "template_path", lambda name: template)
    monkeypatch.setattr(example, "write_subjects", write)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the command line by a recorder."""
    calls: list[list[str]] = []
    real = command_line.main

    def main(arguments: list[str]) -> int:
        if arguments[0] == "demo":
            return real(arguments)
        calls.append(arguments)
        return 0

    monkeypatch.setattr(command_line, "main", main)
    return calls


def test_the_arrow_is_made_of_real_commands_in_order(tmp_path: Path) -> None:
    names = [arguments[0] for arguments in demo.steps(tmp_path, 5, 0)]
    assert names == ["check", "plan", "prepare", "train", "predict", "evaluate", "report"]
    assert set(names) <= set(command_line.COMMANDS)


def test_what_is_printed_is_what_is_run(
    tmp_path: Path, small: list[int], called: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a folder"
    assert command_line.main(["demo", "--out", str(out), "--updates", "7", "--seed", "3"]) == 0
    assert called == demo.steps(out, 7, 3)
    printed = capsys.readouterr().out
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("$ ")] == [
        c[0] for c in called
    ]
    assert demo.CAVEAT in printed
    assert printed.rstrip().endswith("next: seguro train FOLDER")


def test_run_again_it_makes_no_second_set_of_subjects(
    tmp_path: Path, small: list[int], called: list[list[str]]
) -> None:
    for _ in range(2):
        command_line.main(["demo", "--out", str(tmp_path / "d")])
    assert small == [0]
    assert len(called) == 2 * len(demo.steps(tmp_path, 1, 0))  # each command decides for itself what is done
    command_line.main(["demo", "--out", str(tmp_path / "d"), "--seed", "1"])
    assert small == [0, 1]


def test_a_lost_subject_is_made_again(tmp_path: Path, small: list[int], called: list[list[str]]) -> None:
    command_line.main(["demo", "--out", str(tmp_path)])
    (tmp_path / "brains" / "imagesTr" / "case_000.nii.gz").unlink()
    command_line.main(["demo", "--out", str(tmp_path)])
    assert (tmp_path / "brains" / "imagesTr" / "case_000.nii.gz").exists()


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_failing_step_stops_it_with_the_steps_own_exit_code(
    tmp_path: Path, small: list[int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, calls = command_line.main, []

    def main(arguments: list[str]) -> int:
        calls.append(arguments[0])
        return code if arguments[0] == "plan" else 0

    monkeypatch.setattr(command_line, "main", main)
    assert real(["demo", "--out", str(tmp_path)]) == code
    assert calls == ["check", "plan"]


def test_dry_run_writes_nothing(tmp_path: Path, small: list[int], called: list[list[str]]) -> None:
    assert command_line.main(["demo", "--out", str(tmp_path / "d"), "--dry-run"]) == 0
    assert (small, called, (tmp_path / "d").exists()) == ([], [], False)


def test_dry_run_prints_its_commands_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["demo", "--out", str(tmp_path / "d"), "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["commands"]
    assert said == [["seguro", *c] for c in demo.steps(tmp_path / "d", demo.UPDATES, 0)]


def test_without_the_extra_it_is_named_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Path:
        raise ExtraMissing("nilearn", "demo", "the demo")

    monkeypatch.setattr(example, "template_path", missing)
    assert command_line.main(["demo", "--out", str(tmp_path / "d")]) == 1
    assert "seguro[demo]" in capsys.readouterr().err


def test_a_step_that_fails_raises_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    from seguro.cli.terminal import console

    monkeypatch.setattr(command_line, "main", lambda arguments: 2)
    with pytest.raises(typer.Exit) as stop:
        demo.run_step(console(), ["check", "x"])
    assert stop.value.exit_code == 2
