"""Several models on one robustness table: the numbers, and the attacks that are not alike."""

import json

import pytest

from seguro.cli.main import main
from seguro.cli.robustness import compare_attacks
from seguro.core.errors import ConfigError, DataError
from seguro.evaluation.robustness import RobustRow, write_csv

SETTING = {
    "suite": "strong", "where": "patch", "iterations": 20, "restarts": 1, "queries": 300, "seed": 0,
    "threshold": 0.45, "box": "own", "eps_unit": "255ths of each channel's range", "unit": "mm",
}  # fmt: skip


def attack(workspace, run, gain=0.0, *, eps=(0, 8, 16), cases=5, **setting):
    folder = workspace / "runs" / run / "attacks" / "strong"
    rows = [
        RobustRow(f"c{i}", f"p{i}", "s", cls, name, e, drop + gain + i / 100, 1.0)
        for i in range(cases)
        for cls in ("anterior", "posterior")
        for name in ("worst", "noise")
        for e, drop in zip(eps, (0.8, 0.4, 0.2, 0.1, 0.1, 0.1), strict=False)
    ]
    write_csv(folder / "robustness.csv", rows)
    (folder / "summary.json").write_text(json.dumps({"setting": SETTING | setting, "eps": [*eps]}))
    return folder


def test_one_table_with_areas_and_paired_differences(tmp_path, capsys):
    folders = [str(attack(tmp_path, "clean")), str(attack(tmp_path, "free", 0.1))]
    assert main(["compare", *folders, "--json", "--out", str(tmp_path / "out")]) == 0
    content = json.loads(capsys.readouterr().out)
    clean, free = content["models"]
    area = {(r["attack"], r["class"]): r["mean"] for r in clean["areas"]}
    # trapezoids by hand: (.8 + .4) / 2 and (.4 + .2) / 2 over equal steps; the cases add .02 in the mean
    assert area["worst", "anterior"] == pytest.approx((0.6 + 0.3) / 2 + 0.02)
    point = next(r for r in free["curves"] if (r["attack"], r["class"], r["eps"]) == ("worst", "mean", 8))
    assert point["mean"] == pytest.approx(0.52) and point["low"] < 0.52 < point["high"]
    row = next(r for r in content["paired"][0]["rows"] if (r["attack"], r["class"]) == ("worst", "mean"))
    assert row["difference"] == pytest.approx(0.1) and row["p"] == 2 / 2**5
    holm = next(r for r in content["paired"][0]["rows"] if r["class"] == "anterior")
    assert holm["p_holm"] == 2 * holm["p"]  # two classes
    assert json.loads((tmp_path / "out" / "robustness.json").read_text())["reference"] == "clean"


def test_the_table_is_readable_in_eighty_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folders = [str(attack(tmp_path, n, g)) for n, g in (("clean", 0.0), ("free", 0.1), ("unet", -0.05))]
    assert main(["compare", *folders]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    for said in (
        "clean",
        "n 5 (5)",
        "0.820",
        "0.220",
        "area - first",
        "p 0.125",
        "eps in 255ths of each channel",
        "worst, strong",
    ):
        assert said in out


def test_corruptions_are_compared_by_their_mean(tmp_path, capsys):
    setting = {"suite": "corruptions", "eps_unit": "severity"}
    folders = [str(attack(tmp_path, n, g, eps=range(6), **setting)) for n, g in (("a", 0.0), ("b", 0.1))]
    assert main(["compare", *folders]) == 0
    out = capsys.readouterr().out
    assert "severity" in out and "weighted" in out and "mean over corruptions" in out
    comparison = compare_attacks([tmp_path / "runs" / n / "attacks" / "strong" for n in "ab"])
    weights = [(2 / 3) ** s for s in range(1, 6)]
    score = sum(w * d for w, d in zip(weights, (0.4, 0.2, 0.1, 0.1, 0.1), strict=True)) / sum(weights) + 0.02
    found = {(r.attack, r.cls): r for r in comparison.weighted[0]}
    assert found["all", "mean"].mean == pytest.approx(score)


@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        ({"eps": (0, 8, 20)}, DataError, r"eps: 1 \(16\) only in the first"),
        ({"cases": 4}, DataError, r"cases: 1 \(c4\) only in the first"),
        ({"iterations": 5}, ConfigError, "iterations is 20 for clean and 5 for free"),
        ({"suite": "rog"}, ConfigError, "suite is strong for clean and rog for free"),
        ({"where": "volume"}, ConfigError, "where is patch for clean and volume for free"),
        ({"eps_unit": "severity"}, ConfigError, "eps_unit"),
    ],
)
def test_unlike_attacks_are_refused_unless_told(tmp_path, other, error, said):
    folders = [attack(tmp_path, "clean"), attack(tmp_path, "free", **other)]
    with pytest.raises(error, match=said):
        compare_attacks(folders)
    if "eps_unit" in other:  # severities and 255ths never go on one table
        with pytest.raises(error, match=said):
            compare_attacks(folders, intersect=True)
    else:
        assert compare_attacks(folders, intersect=True).warnings


def test_intersect_uses_what_all_models_share(tmp_path):
    folders = [
        attack(tmp_path, "a"),
        attack(tmp_path, "b", 0.1, cases=4),
        attack(tmp_path, "c", 0.1, cases=3),
    ]
    comparison = compare_attacks(folders, intersect=True)
    assert {r.n_cases for of_model in comparison.areas for r in of_model} == {3}
    assert {r.n_cases for rows in comparison.paired for r in rows} == {3}
    assert "left out" in comparison.warnings[0]


def test_bad_folders_say_what_is_wrong(tmp_path, capsys):
    one, two = attack(tmp_path, "clean"), attack(tmp_path, "free")
    assert main(["compare", str(one)]) == 1
    assert main(["compare", str(one), str(tmp_path)]) == 1
    assert "no robustness.csv in it" in capsys.readouterr().err
    (two / "summary.json").write_text("{}")
    with pytest.raises(DataError, match=r"summary\.json: no setting"):
        compare_attacks([one, two])
    (two / "summary.json").unlink()
    with pytest.raises(DataError, match=r"summary\.json: cannot be read"):
        compare_attacks([one, two])
