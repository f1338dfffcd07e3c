import json
import re
import tomllib
from pathlib import Path

import pytest

from seguro.cli import doctor
from seguro.cli import main as command_line
from seguro.core import files
from seguro.core.errors import RunError

ROOT = Path(__file__).parents[2]
FINE = {
    "machine": {"torch_threads": 2, "usable_cores": 2, "memory_gib": {"total": 16.0, "available": 8.0}},
    "folder": {"atomic_writes": True, "reason": None, "free_gib": 50.0},
}


def changed(part: str, **values: object) -> dict[str, dict[str, object]]:
    return {**FINE, part: {**FINE[part], **values}}


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: tuple(re.split(r"[<>=!~]", requirement)[0] for requirement in requirements)
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert declared == doctor.EXTRAS


def test_everything_that_is_pinned_is_pinned_exactly() -> None:
    lines = [n for n in (ROOT / "constraints.txt").read_text().splitlines() if n and not n.startswith("#")]
    assert [n for n in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", n)] == []
    assert "torch==2.13.0" in lines


def test_json_is_one_object_on_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["doctor", "--json", "--seconds", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["folder"]["atomic_writes"], result["speed"]) == (True, None)
    assert result["versions"]["seguro"]
    assert list(tmp_path.iterdir()) == []


def test_speed_and_time_are_two_sides_of_one_measurement() -> None:
    speed = doctor.probe_speed(0.01)
    assert speed["gflops"] > 0
    # each is rounded by itself, to 0.1 GFLOP/s, 0.01 s and 0.1 min
    assert speed["seconds_per_update"] * speed["gflops"] == pytest.approx(doctor.UPDATE_GFLOP, rel=0.02)
    assert speed["minutes_per_1000_updates"] == pytest.approx(
        speed["seconds_per_update"] * 1000 / 60, rel=0.02
    )


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (changed("folder", atomic_writes=False, reason="Read-only file system"), "Read-only file system"),
        (changed("folder", free_gib=0.5), "0.5 GiB free"),
        (changed("machine", torch_threads=64), "OMP_NUM_THREADS=2"),
        (changed("machine", memory_gib={"total": 4.0, "available": 1.0}), "1.0 GiB of memory"),
    ],
)
def test_each_concern_is_said(result: dict[str, dict[str, object]], word: str) -> None:
    assert doctor.concerns(FINE) == []
    assert [word in line for line in doctor.concerns(result)] == [True]


@pytest.mark.parametrize(
    ("error", "word"),
    [(OSError(30, "Read-only file system"), "Read-only"), (RunError("disk full"), "disk full")],
)
def test_a_folder_that_takes_no_file_is_said_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, word: str
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise error

    monkeypatch.setattr(files, "write_bytes", refuse)
    found = doctor.probe_folder(tmp_path)
    assert not found["atomic_writes"]
    assert word in found["reason"]


@pytest.mark.parametrize("text", ["", "MemTotal: x kB", "MemTotal: 16 kB\n", "no colon"])
def test_unreadable_memory_facts_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proc" / "meminfo"
    path.parent.mkdir()
    path.write_text(text)
    assert doctor.memory_gib(tmp_path) is None


def test_memory_is_in_gib(tmp_path: Path) -> None:
    path = tmp_path / "proc" / "meminfo"
    path.parent.mkdir()
    path.write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    assert doctor.memory_gib(tmp_path) == {"total": 16.0, "available": 8.0}
    assert doctor.memory_gib(tmp_path / "none") is None
