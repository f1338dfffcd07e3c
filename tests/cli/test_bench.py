"""`seguro bench pfseg`: every system measured and scored on the same cases, in one table and one plot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seguro import api
from seguro.cli.bench import systems_of
from seguro.cli.main import main
from seguro.cli.predict import tasks_of
from seguro.core.errors import ConfigError
from seguro.core.types import Classes
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.preprocess import to_planned
from seguro.engine.model import load_model, save_model
from seguro.inference import bench as measuring
from seguro.inference.whole import Tailed
from seguro.methods import get
from seguro.methods.contract import Windows
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.predictor import WholePredictor
from seguro.networks import build
from seguro.networks.cost import GIGA, forward_flops
from seguro.networks.superres import SuperRes
from seguro.report.tradeoff import Dot, decades, tradeoff


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained pfseg and windowed runs of fold 0 on one plan, and a run of fold 1."""
    folder = tmp_path_factory.mktemp("bench")
    data = phantom.write_msd(
        folder / "d", n_labelled=4, n_test=1, shape=(16, 32, 32), seed=2, spacing=(1, 1, 1)
    )
    workspace = folder / "d.seguro"
    options = PlanOptions(memory_gib=0.01, batch=2, dims=3, patch=(16, 16, 16), folds=2)
    _, _, plan = api.plan(data, out=workspace, options=options)
    out = {}
    settings = {
        "whole": ("pfseg", {"size": (16, 32, 32)}, "0"),
        "windows": ("supervised", {"network": "resunet", "network_options": {"width": 4}}, "0"),
        "other": ("supervised", {}, "1"),
    }
    for name, (method, config, fold) in settings.items():
        kind = get(method)
        resolved = kind.Config.model_validate(kind.presets["tiny"] | config)
        torch.manual_seed(0)
        made = kind(resolved, plan, build)
        out[name] = run = workspace / "runs" / name
        save_model(
            run / "model", method=method, config=resolved.model_dump(mode="json"), plan=plan,
            predictor=made.predictor(made.modules),
        )  # fmt: skip
        (run / "config.yaml").write_text(f"fold: '{fold}'\n")
        sides = {"train": plan.fold(fold).train, "validation": plan.fold(fold).validation}
        (run / "cases.json").write_text(json.dumps(sides))
    return out


@pytest.fixture
def in_this_process(monkeypatch):
    """A fresh process per system takes seconds to start; what it does is the same."""
    monkeypatch.setattr(measuring, "measure_apart", measuring.measure)


def test_every_system_in_one_table_and_plot(runs, capsys, tmp_path, in_this_process):
    whole, windows = runs["whole"], runs["windows"]
    command = ["bench", "pfseg", str(whole), "--with", str(windows), "--overlaps", "0", "--controls"]
    command += [
        "--second",
        str(windows),
        "--blocks",
        "2",
        "--out",
        str(tmp_path / "b"),
        "--json",
        "--seed",
        "3",
    ]
    assert main(command) == 0
    printed = capsys.readouterr()
    rows = {r["system"]: r for r in json.loads(printed.out)["rows"]}
    assert list(rows) == [
        "whole", "windows", "windows, overlap 0", "whole + 2 blocks of windows", "whole, guidance zeroed",
        "whole, guidance of another case",
    ]  # fmt: skip
    kept = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert {r["system"] for r in kept["rows"]} == set(rows) and kept["threads"] == 1 and kept["seed"] == 3
    n = len(kept["cases"])
    for row in rows.values():
        assert row["seconds"] > 0 and row["gflop"] > 0
        dice = [s for s in row["scores"] if s["metric"] == "dice"]
        assert {s["n"] for s in dice} == {n} and all(0 <= s["mean"] <= 1 for s in dice)
    # 18 windows of 16^3 at half overlap, 4 without: the median case is 16 x 32 x 32
    assert rows["windows"]["gflop"] > 2 * rows["windows, overlap 0"]["gflop"]
    per_window = forward_flops(load_model(windows).predictor, (1, 1, 16, 16, 16)) / GIGA
    counts = [rows[k]["gflop"] / per_window * n for k in ("windows", "windows, overlap 0")]
    assert all(c == pytest.approx(round(c), abs=0.02) for c in counts)  # kept to 4 digits
    extra = rows["whole + 2 blocks of windows"]["gflop"] - rows["whole"]["gflop"]
    assert extra == pytest.approx(2 * per_window, abs=2e-4)
    assert rows["whole, guidance zeroed"]["gflop"] == pytest.approx(rows["whole"]["gflop"], rel=1e-3)
    drawing = ET.fromstring((tmp_path / "b" / "bench.svg").read_text())
    circles = [e for e in drawing.iter() if e.tag.endswith("circle")]
    assert len(circles) >= 6 * 3
    assert "guidance zeroed" in printed.err


def test_time_and_memory_are_those_without_a_counter(runs, tmp_path, monkeypatch):
    """A counter sees every operation, which slows a prediction down: nothing is timed beneath one."""
    seen = []

    def label(ensemble, volume):
        seen.append(_get_current_dispatch_mode() is not None)
        return np.zeros(volume.grid.shape, np.uint8)

    monkeypatch.setattr(measuring.Ensemble, "label", label)
    times = iter(range(100))
    clock = SimpleNamespace(
        perf_counter=lambda: (seen.append("clock"), float(next(times)))[1], process_time=lambda: 0.0
    )
    monkeypatch.setattr(measuring, "time", clock)
    task = tasks_of([runs["whole"]], [], data=None, cases="validation", out=None)[0]
    [cost] = measuring.measure(measuring.System("s", runs["whole"]), task.inputs[:1], tmp_path)
    assert seen == [False, "clock", False, "clock", True]  # warm, timed, counted
    assert cost.seconds == 1


def test_one_pass_of_any_method_has_no_overlaps(runs, tmp_path):
    """The baselines on whole volumes are measured once each."""
    model = load_model(runs["windows"])
    config = {**model.config, "tiling": "whole"}
    made = get("supervised")(get("supervised").Config.model_validate(config), model.plan, build)
    plain = tmp_path / "plain"
    save_model(
        plain / "model", method="supervised", config=config, plan=model.plan,
        predictor=made.predictor(made.modules),
    )  # fmt: skip
    found = systems_of(runs["whole"], [plain, runs["windows"]], [0.0], None, [8], False)
    assert [s.name for s in found] == ["whole", "plain", "windows", "windows, overlap 0"]


def test_the_models_are_of_the_two_kinds(runs):
    assert isinstance(load_model(runs["whole"]).predictor, Tailed)
    assert isinstance(load_model(runs["windows"]).predictor.tiling, Windows)


def test_predict_with_a_second_model(runs, capsys, tmp_path):
    command = ["predict", str(runs["whole"]), "--cases", "test", "--json"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert (
        main([*command, "--out", str(tmp_path / "b"), "--second", str(runs["windows"]), "--blocks", "4"]) == 0
    )
    assert main([*command, "--out", str(tmp_path / "c"), "--blocks", "4"]) == 1
    assert "--second" in capsys.readouterr().err
    label = next((tmp_path / "a").glob("*.nii.gz")).name
    assert (tmp_path / "a" / label).read_bytes() != (tmp_path / "b" / label).read_bytes()
    assert main([*command, "--out", str(tmp_path / "d"), "--second", str(runs["whole"])]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "RUN"], "known are pfseg"),
        (["pfseg", "RUN", "--with", "OTHER"], "trained on"),
        (["pfseg", "RUN", "--overlaps", "a"], "--overlaps a: expected numbers from 0"),
        (["pfseg", "RUN", "--with", "WINDOWS", "--overlaps", "0,1"], "to below 1"),
        (["pfseg", "RUN", "--overlaps", "0"], "no run works in windows"),
        (["pfseg", "RUN", "--blocks", "8"], "give that too"),
        (["pfseg", "RUN", "--second", "WINDOWS", "--blocks", "2.5"], "whole numbers from 1"),
        (["pfseg", "RUN", "--second", "WINDOWS", "--blocks", "0"], "whole numbers from 1"),
        (["pfseg", "RUN", "--with", "WINDOWS", "--with", "AGAIN"], "two systems are called windows"),
    ],
    ids=[
        "bench",
        "another fold",
        "overlap",
        "full overlap",
        "no windows",
        "no second",
        "part of a block",
        "no block",
        "same name",
    ],
)
def test_what_cannot_be_compared_is_refused(runs, capsys, arguments, message):
    paths = {"RUN": str(runs["whole"]), "OTHER": str(runs["other"]), "WINDOWS": str(runs["windows"])}
    paths["AGAIN"] = str(runs["windows"].parent / ".." / "runs" / "windows")
    assert main(["bench", *(paths.get(a, a) for a in arguments)]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_measures_nothing(runs, capsys, tmp_path):
    command = ["bench", "pfseg", str(runs["whole"]), "--out", str(tmp_path / "b"), "--dry-run", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["systems"] == ["whole"]
    assert not (tmp_path / "b").exists()


def test_guidance_without_its_information(runs, tmp_path):
    """The controls change what the network answers, and nothing is left behind in it."""
    task = tasks_of([runs["whole"]], [], data=None, cases="validation", out=None)[0]
    model = load_model(runs["whole"])
    images = [torch.from_numpy(to_planned(i.read(), model.plan)[0])[None] for i in task.inputs]
    with torch.no_grad():
        own = model.predictor(images[0])
        out = {}
        for kind in ("zeroed", "exchanged"):
            with measuring._guided(model, kind, task.inputs[1]):
                out[kind] = model.predictor(images[0])
        assert torch.equal(model.predictor(images[0]), own)
    assert not torch.equal(out["zeroed"], own) and not torch.equal(out["exchanged"], own)
    assert not torch.equal(out["zeroed"], out["exchanged"])
    with torch.no_grad(), measuring._guided(model, "exchanged", task.inputs[0]):
        assert torch.equal(model.predictor(images[0]), own)  # its own crops in their place
    system = measuring.System("s", runs["whole"], guidance="exchanged")
    with pytest.raises(ConfigError, match="only 1 case"):
        measuring.measure(system, task.inputs[:1], tmp_path)


@pytest.mark.parametrize("rule", ["central", "variance", "random"])
def test_crops_of_another_case_are_those_of_the_same_rule(rule):
    """Cut where the rule takes them from the other image, joined where they were: only content changes."""
    config = PfsegConfig(guidance=rule, inject="scatter", crops=1 if rule == "central" else 2)
    network = SuperRes(in_channels=1, classes=2, width=4, inject="scatter")
    classes = Classes(names=("background", "a"), values=((0,), (1,)))
    predictor = WholePredictor(network, classes, config).eval()
    x, other = torch.rand(2, 1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    other[..., 40:] *= 3  # where it varies most
    seen = []
    guide = network.guide
    with torch.no_grad(), guide.register_forward_hook(lambda module, given, out: seen.append(given[0])):
        own = predictor(x), predictor(other)
        with guide.register_forward_pre_hook(measuring._exchanged(predictor, other[0])):
            exchanged = predictor(x)
    assert torch.equal(seen[2], seen[1]) and not torch.equal(seen[2], seen[0])
    assert not any(torch.equal(exchanged, o) for o in own)


@pytest.mark.slow
def test_a_process_of_its_own_measures_the_same_work(runs, tmp_path):
    task = tasks_of([runs["whole"]], [], data=None, cases="validation", out=None)[0]
    system = measuring.System("s", runs["whole"])
    apart = measuring.measure_apart(system, task.inputs, tmp_path / "a")
    here = measuring.measure(system, task.inputs, tmp_path / "b")
    assert [(c.case, c.gflop) for c in apart] == [(c.case, c.gflop) for c in here]
    assert all(c.peak_mb is None or c.peak_mb >= 0 for c in apart)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.fixture
def elsewhere(runs, tmp_path):
    """A windowed model of another grid."""
    model = load_model(runs["windows"])
    plan = model.plan.model_copy(update={"spacing": (2.0, 1.0, 1.0)})
    save_model(
        tmp_path / "coarse" / "model", method="supervised", config=model.config, plan=plan,
        predictor=model.predictor,
    )  # fmt: skip
    return tmp_path / "coarse"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["WINDOWS", "--controls"], "no guidance"),
        (["WHOLE", "--controls", "--cases", "test"], "only 1 case"),
        (["WHOLE", "--second", "ELSEWHERE"], "planned differently"),
    ],
    ids=["no guidance", "one case", "another grid"],
)
def test_what_could_not_be_measured_is_refused_before_anything_is(
    runs, elsewhere, capsys, monkeypatch, arguments, message, dry
):
    monkeypatch.setattr(measuring, "measure_apart", lambda *a, **k: pytest.fail("measured"))
    paths = {"WINDOWS": runs["windows"], "WHOLE": runs["whole"], "ELSEWHERE": elsewhere}
    assert main(["bench", "pfseg", *(str(paths.get(a, a)) for a in arguments), *dry]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_plot_escapes_names_and_places_dots():
    page = tradeoff({"seconds": [Dot("<a>", 1.0, 0.5), Dot("b", 10.0, 0.9)], "MB": []}, y_axis="Dice")
    drawing = ET.fromstring(page)
    marks = {e[0].text.split(":")[0]: e for e in drawing.iter() if e.tag.endswith("circle") and len(e)}
    a, b = marks["<a>"], marks["b"]
    assert float(a.get("cx")) < float(b.get("cx")) and float(a.get("cy")) > float(b.get("cy"))
    assert "<a>" not in page and "&lt;a&gt;" in page


def test_no_two_systems_of_the_plot_look_alike_and_the_first_is_on_top():
    dots = [Dot(str(i), 1.0, 0.5) for i in range(20)]
    drawing = ET.fromstring(tradeoff({"seconds": dots}, y_axis="Dice"))
    groups = [g for g in drawing.iter() if g.get("class", "").startswith("c")]
    looks = {
        (g.get("class"), g[0].tag, len(g[0].get("points", "").split()), *_around(g[0].get("points")))
        for g in groups
    }
    assert len(groups) == 2 * len(dots) and len(looks) == len(dots)
    assert [g[0][0].text.split(":")[0] for g in groups if len(g[0])] == [d.name for d in reversed(dots)]


def _around(points: str | None) -> list[float]:
    """Return the corners of a mark from its first one, so that its place does not count."""
    numbers = [[float(v) for v in p.split(",")] for p in (points or "").split()]
    return [round(v - w, 1) for p in numbers for v, w in zip(p, numbers[0], strict=True)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 3.2, [10.0, 100.0, 1000.0]),
        (-1.05, 0.2, [0.1, 0.2, 0.5, 1.0]),
        (2.0, 2.6, [100.0, 200.0]),
        (2.35, 2.45, [240.0, 260.0, 280.0]),
    ],
    ids=["decades", "a decade", "less", "hardly any"],
)
def test_costs_are_labelled_at_round_numbers(low, high, expected):
    assert decades(low, high) == expected
