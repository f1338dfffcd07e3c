"""benchmarks/results.py: what was measured is shown, and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from seguro.core.files import write_json, write_text


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("results")


def row(setting: str, cls: str, value: float, **more: Any) -> dict[str, Any]:
    usual = {"setting": setting, "class": cls, "metric": "dice", "value": value, "low": None, "high": None}
    return usual | {"n": 4} | more


def shown(results, folder: Path, name: str, **content: Any) -> str:
    """The part of an experiment as text."""
    write_text(folder / name / "README.md", f"# {name}\n\nWhat is asked.\n\nMore.")
    usual = {"rows": [row("a", "mean", 0.5)], "minutes": {"a": [1.0]}, "command": "again"}
    write_json(folder / name / "result.json", usual | content)
    return "\n".join(results.experiment(folder / name / "result.json"))


PAIR = {
    "setting": "a", "against": "b", "seeds": [0, 2], "metric": "dice", "n_cases": 4, "difference": 0.0123,
    "low": -0.02, "high": 0.04, "p_permutation": 0.375,
}  # fmt: skip


def test_pairs_are_shown_with_interval_and_seeds_for_the_mean_over_classes(results, tmp_path):
    rows = [PAIR | {"cls": "mean"}, PAIR | {"cls": "liver", "difference": 0.9}]
    rows.append(PAIR | {"cls": "mean", "metric": "hd95", "p_permutation": 1e-4})
    text = shown(results, tmp_path, "x", pairs=rows)
    assert (
        "| a | b | dice | 4 | 0, 2 | 0.012 [-0.020, 0.040] | 0.375 |" in text
        and "| < 0.001 |" in text
        and "0.900" not in text
    )
    assert "Differences" not in shown(results, tmp_path, "y")


def test_margins_say_whether_they_are_kept(results, tmp_path):
    asked = {**PAIR, "at_least": -0.005, "kept": True}
    high = {**PAIR, "metric": "hd95", "difference": 3.0, "at_most": 0, "kept": False}
    text = shown(results, tmp_path, "x", margins=[asked, high])
    assert "| a | b | dice | at least -0.005 | 0.012 [-0.020, 0.040] | yes |" in text
    assert "| a | b | hd95 | at most 0 | 3.000 [-0.020, 0.040] | no |" in text


def test_what_federations_send_is_shown_with_what_a_code_leaves_of_it(results, tmp_path):
    sent = {"up_per_round": 12.5e6, "down_per_round": 25e6, "total": 3e8}
    share = {"setting": "b", "against": "a", "up_per_round": 0.2, "down_per_round": 1.0, "total": 0.6}
    text = shown(results, tmp_path, "x", bytes={"a": sent}, bytes_shares=[share])
    assert "| a | 12.50 | 25.00 | 300.00 |" in text and "| b | a | 0.200 | 1.000 | 0.600 |" in text
    text = shown(results, tmp_path, "y", bytes={"a": sent})
    assert "in MB" in text and "share of" not in text
    assert "in MB" not in shown(results, tmp_path, "z")


def test_the_bench_has_a_table_and_its_drawing_where_there_is_one(results, tmp_path):
    score = {"class": "mean", "metric": "dice", "mean": 0.8}
    system = {"system": "whole", "cpu_s": 1.5, "peak_mb": None, "gflop": 12.25, "unit": "mm"}
    other = {"class": "liver", "metric": "dice", "mean": 0.1}
    facts = {"cases": ["c"], "threads": 1, "device": "cpu", "rows": [system | {"scores": [score, other]}]}
    text = shown(results, tmp_path, "x", bench=facts)
    assert "| whole | 0.800 |  | 1.500 |  | 12.2 |" in text and "HD95 (mm)" in text
    assert "bench.svg" not in text
    write_text(tmp_path / "x" / "bench.svg", "<svg/>")
    assert "experiments/x/bench.svg)" in shown(results, tmp_path, "x", bench=facts)
    assert "GFLOP" not in shown(results, tmp_path, "x", bench=None)


@pytest.mark.parametrize(("name", "single"), [("attack_calls", True), ("rog_hippocampus", False)])
def test_single_attacks_are_shown_where_they_are_the_question(results, tmp_path, name, single):
    rows = [
        row("a", cls, v, attack=attack)
        for attack, v in (("worst", 0.1), ("apgd-ce", 0.25))
        for cls in ("liver", "mean")
    ]
    text = shown(results, tmp_path, name, rows=rows)
    assert ("| a | apgd-ce | mean | 4 | 0.250 |" in text) is single
    assert ("| a | worst | liver | 4 | 0.100 |" in text) is single
    assert ("| a | liver | 4 | 0.100 |" in text) is not single and "apgd-ce | liver" not in text


@pytest.mark.parametrize("measured", [True, False])
def test_a_large_volume_says_when_windows_were_left_out(results, tmp_path, measured):
    cost = {"cpu_s": 10.0, "seconds": 11.0, "peak_gib": 2.5}
    write_json(
        tmp_path / "l.json",
        {
            "size": [4, 5, 6], "width": 2, "threads": 1, "ratio_cpu": 7.5, "pfseg": cost,
            "windows": cost | {"windows": 9, "windows_run": 9 if measured else 3, "measured_whole": measured},
        },
    )  # fmt: skip
    text = "\n".join(results.large_volume(tmp_path / "l.json"))
    assert "4 x 5 x 6" in text and "7.5 times" in text and "| pfseg |  | 10.0 | 11.0 | 2.5 |" in text
    assert ("counted in" in text) is not measured
