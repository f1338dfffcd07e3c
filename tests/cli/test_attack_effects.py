"""What options of `seguro attack` do, on a CT; and E1, the threshold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seguro.cli.main import main
from seguro.core.files import read_json
from seguro.data import phantom
from seguro.data.formats import read_image, read_label
from seguro.engine.model import load_model
from seguro.evaluation.robustness import read_csv

pytestmark = pytest.mark.xdist_group("attack effects")

FAINT = "case_000"
"""A case whose values fill three fifths of the others' range."""
BESIDE = 14
"""Its organs begin at this column of 24, so that their center is not that of the volume."""


FEW = ("--suite", "pgd-ce", "--eps", "0,16", "--iters", "3", "--cases", "train", "--limit", "1",
       "--check", "0")  # fmt: skip


@pytest.fixture(scope="module")
def run(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct")
    data = phantom.write_msd(folder / "data", n_labelled=3, n_test=0, seed=1, modality="CT")
    for path in (data / "imagesTr").iterdir():
        array = np.maximum(read_image([path]).array, 0)
        array *= 0.6 if path.name.startswith(FAINT) else 1
        array[:, :2, :2] = -1000
        phantom.write_nifti(path, array)
    for path in (data / "labelsTr").iterdir():
        label = read_label(path).array.copy()
        if path.name.startswith(FAINT):
            label[..., :BESIDE] = 0
        phantom.write_nifti(path, label)
    return untrained(data, folder / "w", patch=(8, 8, 8), batch=2)


@pytest.fixture
def attacked(run, capsys):
    def call(name, *arguments):
        """Attack the faint case, or all with --limit, and return the result with its rows."""
        assert main(["attack", str(run), *FEW, "--name", name, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out), read_csv(run / "attacks" / name / "robustness.csv")

    return call


def test_the_threshold_is_half_the_mean_clean_dice_for_every_attack(run, attacked):
    """E1: of the cases' own scores, whatever attacks there are and in which order; or what is given."""
    bars = {}
    for name, suite in (("one", "pgd-ce"), ("two", "pgd-dice,pgd-ce")):
        found, _ = attacked(name, "--limit", "3", "--suite", suite)
        bars[name] = found["setting"]["threshold"]
        records = [read_json(f) for f in (run / "attacks" / name / "cases").glob("*.json")]
        clean = [r["score"] for r in records if r["eps"] == 0]
        assert len(clean) == 3 and len(set(clean)) > 1
        assert bars[name] == pytest.approx(np.mean(clean) / 2, abs=1e-9)
    assert bars["one"] == bars["two"] > 0
    assert attacked("given", "--threshold", "0.9")[0]["setting"]["threshold"] == 0.9


def test_the_window_of_a_ct_is_the_plans_and_its_own_range_is_the_images(run, attacked):
    (channel,) = load_model(run).plan.channels
    assert channel.scheme == "ct"
    own, window = attacked("own")[0], attacked("window", "--box", "window")[0]
    sizes = [r["native_eps"]["CT, file"]["16"] for r in (own, window)]
    assert sizes[1] == pytest.approx(16 / 255 * (channel.high - channel.low), rel=1e-5)
    assert sizes[0] < 0.9 * sizes[1]
    assert (own["setting"]["box"], window["setting"]["box"]) == ("own", "window")


def test_hounsfield_units_are_those_of_the_file(run, attacked):
    (channel,) = load_model(run).plan.channels
    found = attacked("hu", "--eps", "0,20HU")[0]
    assert found["native_eps"]["CT, file"]["20"] == pytest.approx(20, rel=1e-5)
    assert found["native_eps"]["CT, scaled"]["20"] == pytest.approx(20 / channel.sd, rel=1e-5)


def test_the_center_moves_the_patch(attacked):
    foreground, middle = (attacked(name, "--center", name)[1] for name in ("foreground", "middle"))
    sizes = [
        sum(r.size_ml for r in rows if r.attack == "worst" and r.eps == 0) for rows in (foreground, middle)
    ]
    assert sizes[0] > sizes[1]


def test_restarts_are_made(attacked):
    one, three = (attacked(f"restarts{n}", "--restarts", str(n))[0] for n in (1, 3))
    assert (one["cost"]["backwards"], three["cost"]["backwards"]) == (3, 9)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--suite", "nothing"), 1, "no suite or attack"),
        (("--suite", "pgd-nothing"), 1, "nothing"),
        (("--cases", "nobody"), 1, "expected test, validation"),
        (("--set", "fab.trust=1"), 1, "no attack of this suite"),
    ],
)
def test_a_dry_run_refuses_what_the_attack_would(run, capsys, arguments, code, told):
    command = ["attack", str(run), "--suite", "pgd-ce", "--dry-run", *arguments]
    assert main(command) == code
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_asks_for_a_run_and_tells_the_cases(run, capsys, tmp_path):
    before = sorted(run.rglob("*"))
    assert main(["attack", str(tmp_path / "none"), "--dry-run"]) == 2
    assert "none" in capsys.readouterr().err
    for more in ((), ("--corruptions",)):
        assert (
            main(["attack", str(run), "--cases", "train", "--limit", "2", "--dry-run", "--json", *more]) == 0
        )
        assert json.loads(capsys.readouterr().out)["cases"] == 2
    assert sorted(run.rglob("*")) == before
