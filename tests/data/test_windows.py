"""CT windows: exact limits, refused where there are no Hounsfield units; slices cut another way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seguro import api
from seguro.cli.main import main
from seguro.core.errors import ConfigError, DataError
from seguro.data import phantom
from seguro.data.formats import read_image, read_label
from seguro.data.planner import PlanOptions
from seguro.data.preprocess import scale
from seguro.data.windows import WINDOWS, channel_of, parse_window, windowed


def test_a_window_is_level_and_width_or_a_name():
    assert parse_window("40,400") == WINDOWS["abdomen"] == (40, 400)
    assert parse_window("-504.4,2204.3") == parse_window("covid")
    for text in ("40", "40,0", "40,-1", "a,b", "nan,1", "1,inf", "liver", "1,2,3", ""):
        with pytest.raises(ConfigError, match="LEVEL,WIDTH"):
            parse_window(text)


def test_the_published_window_has_its_published_limits():
    how = windowed("CT", WINDOWS["covid"], -1024.0, np.empty(0))
    assert (how.scheme, round(how.low, 2), round(how.high, 2)) == ("ct", -1606.55, 597.75)


def test_values_are_clipped_and_the_foreground_brought_to_mean_0_and_deviation_1():
    samples = np.linspace(-500, 500, 1001)
    how = windowed("CT", (40, 400), -1000.0, samples)
    x = scale(samples.astype(np.float32).reshape(1, 1, -1), how)
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5  # float32
    assert x.min() == x[0, 0, 0] == x[0, 0, 340] and x[0, 0, 341] > x.min()  # -160 is the lower limit
    assert x.max() == x[0, 0, -1] == x[0, 0, 740] and x[0, 0, 739] < x.max()
    even = windowed("CT", (40, 400), -1000.0, np.empty(0))
    assert even.mean == 40 and even.sd == pytest.approx(np.linspace(-160, 240, 100001).std(), rel=1e-4)


def test_the_only_channel_or_the_only_ct():
    assert channel_of(("MRI",), (False,)) == 0
    assert channel_of(("PET", "CT"), (False, True)) == 1
    for ct in ((False, False), (True, True)):
        with pytest.raises(ConfigError, match="named CT, expected one"):
            channel_of(("a", "b"), ct)


def hounsfield(tmp_path, air: float):
    """A phantom data set with a margin of air around each scan."""
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_test=0, seed=1, modality="CT")
    for path in (data / "imagesTr").iterdir():
        array = np.maximum(read_image([path]).array, 0)
        array[:, :2, :2] = air
        phantom.write_nifti(path, array)
    for path in (data / "labelsTr").iterdir():
        phantom.write_nifti(path, read_label(path).array)
    return data


def test_the_command_plans_a_window_and_coronal_slices(tmp_path, capsys):
    data = hounsfield(tmp_path, -1000.0)
    command = ["plan", str(data), "--out", str(tmp_path / "w"), "--memory", "0.01", "--json"]
    assert main([*command, "--window", "-504.4,2204.3", "--dims", "2", "--slices", "coronal"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (round(plan["channels"][0]["low"], 2), plan["slice_axis"], plan["dims"]) == (-1606.55, 1, 2)
    assert main(command) == 0  # what was told once holds
    assert json.loads(capsys.readouterr().out)["channels"] == plan["channels"]
    from seguro.report.commands import commands

    line = commands(tmp_path / "w", tmp_path, "", {}, lambda *a: {})[1]
    assert "--window -504.4,2204.3" in line and "--slices coronal" in line


def test_no_window_without_hounsfield_units(tmp_path, flat_folder):
    options = PlanOptions(memory_gib=0.01, window=(40, 400))
    with pytest.raises(DataError, match="nothing below"):
        api.plan(hounsfield(tmp_path, 0.0), out=tmp_path / "w", options=options)
    with pytest.raises(DataError, match="pictures hold none"):
        api.plan(flat_folder, out=tmp_path / "f", options=options)


def test_slices_of_a_3d_plan_are_refused(phantom_folder, tmp_path, capsys):
    command = ["plan", str(phantom_folder), "--out", str(tmp_path / "w"), "--slices"]
    assert main([*command, "coronal", "--dims", "3"]) == 1 and "--dims 2 too" in capsys.readouterr().err
    assert main([*command, "oblique"]) == 1


def test_a_plan_from_before_windows_stays_valid(phantom_folder, tmp_path):
    """The key of a plan without the new options is that of a plan that never heard of them."""
    api.plan(phantom_folder, out=tmp_path / "w", options=PlanOptions(memory_gib=0.01))
    config = json.loads((tmp_path / "w" / "plan" / "stage.json").read_text())["config"]
    assert not {"window", "slices", "recipe"} & set(config)


def test_the_number_of_folds_is_told_once(phantom_folder, tmp_path, capsys):
    from seguro.report.commands import commands

    out = tmp_path / "w"
    command = ["plan", str(phantom_folder), "--out", str(out), "--memory", "0.01"]
    assert main([*command, "--folds", "3"]) == 0 and main(command) == 0
    folds = json.loads((out / "plan" / "plan.json").read_text())["folds"]
    assert [len(f["validation"]) for f in folds] == [2, 2, 2]
    assert commands(out, tmp_path, "", {}, lambda *a: {})[1].endswith("--folds 3")
    assert main([*command, "--folds", "1"]) == 1
