"""From images of three sites to a prediction at one without labels: factory, source, volumes, adaptation."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seguro import api
from seguro.api.generate import FACTS, _sides, foreseen, generate
from seguro.api.made import AUDIT, START_AUDIT
from seguro.api.training import _whole
from seguro.cli.adapt import stage_of
from seguro.cli.main import main
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, write_json
from seguro.core.settings import read_yaml
from seguro.data import check, phantom
from seguro.data.formats import read_image, read_label
from seguro.data.layouts.naming import read_patients
from seguro.data.planner import PlanOptions
from seguro.engine.model import load_model
from seguro.inference import validate
from seguro.inference.predict import predict
from seguro.inference.segmenter import Segmenter
from seguro.inference.synthesis import as_read, placed, swept, volumes
from seguro.methods.contract import Needs

pytestmark = pytest.mark.xdist_group("generate")  # what the tests share is made by one worker

BINS, STEPS = 4, 3


@dataclass(frozen=True)
class Pipeline:
    """Runs of a tiny pipeline, and where its data lie."""

    data: Path
    workspace: Path
    factory: Path
    source: Path


def train(data: Path, out: Path, name: str, method: str, **more) -> Path:
    options = {"preset": "tiny", "updates": 2, "batch": 4, "validations": 1, "threads": 1}
    return api.train(
        data,
        api.TrainOptions(method=method, name=name, **{**options, **more}),
        out=out,
        plan_options=PlanOptions(memory_gib=0.01, dims=2, batch=2),
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("pipeline")
    data = phantom.write_msd(folder / "data", n_labelled=15, n_test=0, shape=(5, 20, 24), sites=3, seed=2)
    out = folder / "w"
    _, manifest, plan = api.plan(data, out=out, options=PlanOptions(memory_gib=0.01, dims=2, batch=2))
    here = {c.id for c in manifest.cases if c.site == "site1"}
    fold = next(f.name for f in plan.folds if here & set(f.validation))  # the audit needs held-out cases
    factory = train(data, out, "factory", "factory", fold=fold)
    # hardly trained: group norm lets every class appear in what it paints
    settings = {"stage": "source", "source": "site1", "branch_norm": "group"}
    source = train(data, out, "source", "adapt", init=factory, settings=settings, fold=fold)
    return Pipeline(data, out, factory, source)


def test_a_run_takes_over_what_its_start_decides(pipeline):
    made, began = (
        read_json(r / "model" / "model.json")["config"] for r in (pipeline.source, pipeline.factory)
    )
    names = ("domains", "size", "width", "latent", "z_bins", "full", "mapping_layers", "side", "limits")
    assert {n: made[n] for n in names} == {n: began[n] for n in names}
    assert made["domains"] == ["site1", "site2", "site3"]
    weights = load_model(pipeline.source).predictor.state_dict()
    from safetensors.torch import load_file

    old = load_file(pipeline.factory / "model" / "weights.safetensors")
    kept = [k for k in old if k.startswith("generator.")]
    assert kept and all(torch.equal(weights[k], old[k]) for k in kept)
    assert stage_of("auto", pipeline.factory) == "source" and stage_of("auto", pipeline.source) == "adapt"


def test_volumes_have_their_slices_and_labels(pipeline, tmp_path):
    """Check 20."""
    made = generate(pipeline.source, "site1", 2, tmp_path / "s", steps=STEPS, seed=3)
    assert (made.n_volumes, made.n_slices) == (2, (BINS - 1) * STEPS)
    image = read_image([tmp_path / "s" / "imagesTr" / "synthetic_001.nii.gz"])
    label = read_label(tmp_path / "s" / "labelsTr" / "synthetic_001.nii.gz", like=image.grid)
    slices = image.array[0]
    assert slices.shape[0] == made.n_slices and np.abs(slices).max() <= 1
    assert set(np.unique(label.array).tolist()) <= {0, 1, 2}
    steps = np.abs(np.diff(slices, axis=0)).mean((1, 2))
    assert (steps > 0).all()  # no slice twice
    model = load_model(pipeline.source)
    x = torch.from_numpy(slices[:2, None].copy())
    own = model.predictor.logits(x).argmax(1).numpy()
    assert (own == label.array[:2]).mean() >= 0.999  # ties may fall otherwise in another batch
    manifest = check.ensure(tmp_path / "s", tmp_path / "s.seguro")
    assert {(c.site, c.split) for c in manifest.cases} == {("site1", "train")}
    extent = model.plan.fingerprint.extent[0].median
    assert image.grid.spacing[0] * made.n_slices == pytest.approx(extent, rel=1e-4)


def test_the_same_seed_makes_the_same_volumes_and_neighbors_are_alike(pipeline):
    model = load_model(pipeline.source)
    one, two, other = (
        [v.image for v in volumes(model.predictor, model.plan.classes, 0, 2, steps=STEPS, seed=s)]
        for s in (0, 0, 1)
    )
    assert np.array_equal(one[0], two[0]) and not np.array_equal(one[0], other[0])
    near = np.abs(np.diff(one[0][0], axis=0)).mean()
    apart = np.abs(one[0][0] - one[1][0]).mean()
    assert near < apart


def test_codes_pass_every_position_once_and_lie_between():
    from seguro.networks.generator import Generator

    torch.manual_seed(0)
    made = Generator(8, 1, 2, 4, latent=8, width=8, mapping_layers=2)
    codes = swept(made, 1, 5, torch.Generator().manual_seed(1))
    assert codes.shape == (15, 8)
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).expand(4, -1)
    at = made.codes(z, made.conditions(torch.ones(4, dtype=torch.long), torch.arange(4)))
    torch.testing.assert_close(codes[::5], at[:3])
    torch.testing.assert_close(codes[7], 0.6 * at[1] + 0.4 * at[2])
    alone = Generator(8, 1, 2, 1, latent=8, width=8, mapping_layers=2)
    assert swept(alone, 0, 5, torch.Generator().manual_seed(1)).shape == (1, 8)


def test_the_audit_is_made_in_the_workspace_and_else_nothing_is_releasable(pipeline, tmp_path):
    here = generate(pipeline.source, "site1", 1, tmp_path / "here", steps=STEPS)
    noted = read_json(pipeline.source / "generated" / "here.json")
    assert noted == read_json(tmp_path / "here" / "synthetic.json") and noted["volumes"] == 1
    facts = read_json(tmp_path / "here" / FACTS)
    assert facts["audit"]["n_made"] == here.n_slices and facts["audit"]["n_train"] > 0
    assert facts["releasable"] == here.releasable == (facts["audit"]["ratio"] >= 0.9)
    away = generate(pipeline.source / "model", "site1", 1, tmp_path / "away", steps=STEPS)
    assert (away.releasable, away.reason) == (here.releasable, here.reason)
    shutil.copytree(pipeline.source / "model", tmp_path / "bare")
    bare = generate(tmp_path / "bare", "site1", 1, tmp_path / "out", steps=STEPS)
    assert not bare.releasable and "does not lie in its workspace" in bare.reason


@pytest.mark.parametrize("failed", [None, "site2"])
def test_a_generator_of_a_federation_is_released_by_the_audit_of_its_sites(pipeline, tmp_path, failed):
    """Its other sites' cases are not here, so that no audit can be made beside it."""
    federation = tmp_path / "federation" / "run"
    shutil.copytree(pipeline.factory / "model", federation / "model")
    domains = {s: {"passed": s != failed} for s in ("site1", "site2", "site3")}
    write_json(federation / AUDIT, {"releasable": failed is None, "domains": domains})
    name = f"from-{failed}"
    settings = {"stage": "source", "source": "site1", "branch_norm": "group"}
    (pipeline.workspace / "runs" / "factory").rename(tmp_path / "away")
    try:
        source = train(pipeline.data, pipeline.workspace, name, "adapt", init=federation, settings=settings)
        made = generate(source, "site1", 1, tmp_path / "out", steps=STEPS)
    finally:
        (tmp_path / "away").rename(pipeline.workspace / "runs" / "factory")
    facts = read_json(tmp_path / "out" / FACTS)["audit"]
    assert facts["n_train"] > 0  # the source's own cases are here, and are looked at too
    assert made.releasable == (failed is None and facts["ratio"] >= 0.9)
    assert f"at the sites that trained it: {'passed' if failed is None else 'not releasable'}" in made.reason
    assert (failed or "passed") in made.reason
    assert read_json(source / "stage.json")["outputs"][START_AUDIT]
    write_json(source / START_AUDIT, {"releasable": True, "domains": ["site1"]})
    (pipeline.workspace / "runs" / "factory").rename(tmp_path / "away")
    try:
        with pytest.raises(DataError, match=START_AUDIT):
            foreseen(source, "site1", 1, tmp_path / "other")
    finally:
        (tmp_path / "away").rename(pipeline.workspace / "runs" / "factory")


def test_a_case_that_only_the_factory_saw_is_not_held_out(pipeline, tmp_path):
    """A source run of another fold holds out what the factory was trained on: no proof of anything."""
    workspace = tmp_path / "w"
    shutil.copytree(pipeline.workspace, workspace)
    source = workspace / "runs" / "source"
    facts = read_json(source / "cases.json")
    trained = {
        c for r in ("factory", "source") for c in read_json(workspace / "runs" / r / "cases.json")["train"]
    }
    model = load_model(source)
    train, held_out, whole = _sides(source, model)
    assert whole and {c.id for c in train.facts} == trained
    assert {c.id for c in held_out.facts} == set(facts["validation"])
    seen = facts["validation"][0]
    factory = read_json(workspace / "runs" / "factory" / "cases.json")
    write_json(workspace / "runs" / "factory" / "cases.json", factory | {"train": [*factory["train"], seen]})
    train, held_out, _ = _sides(source, model)
    assert seen in {c.id for c in train.facts} and seen not in {c.id for c in held_out.facts}
    (source / "stage.json").rename(source / "elsewhere.json")
    assert not _sides(source, model)[2]  # what it began from is not known
    (source / "elsewhere.json").rename(source / "stage.json")
    shutil.rmtree(workspace / "runs" / "factory")
    assert not _sides(source, model)[2]  # the sites' audit lies beside the run: what is here is looked at
    (source / START_AUDIT).unlink()
    assert "the generator comes from" in _sides(source, model)


def test_what_would_be_made_is_said_and_refused_before_anything_is_written(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = foreseen(pipeline.source, "site1", 2, tmp_path / "new", steps=STEPS, beside=pipeline.data)
    assert lines[0] == "2 volumes of site1, 9 slices of 32 pixels each"
    assert lines[2] == f"beside them 10 cases of {pipeline.data}"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="domains are"):
        foreseen(pipeline.source, "nowhere", 2, tmp_path / "new")
    with pytest.raises(DataError, match="is there already"):
        foreseen(pipeline.source, "site1", 2, tmp_path)
    generate(pipeline.source, "site1", 1, tmp_path / "made", steps=1)
    with pytest.raises(DataError, match=r"has synthetic cases already \(synthetic_000"):
        foreseen(pipeline.source, "site1", 2, tmp_path / "new", beside=tmp_path / "made")


def test_no_real_case_of_the_made_domain_lies_beside_and_what_lies_beside_is_not_released(pipeline, tmp_path):
    """Else a synthetic source would train on real scans and labels of the source, and nobody would know."""
    made = generate(pipeline.source, "site1", 1, tmp_path / "both", steps=1, beside=pipeline.data)
    manifest = api.manifest_of(pipeline.data, pipeline.workspace)
    real = {c.id for c in manifest.cases if c.site == "site1"}
    cases = check.ensure(tmp_path / "both", tmp_path / "both.seguro").cases
    assert real and {c.id for c in cases} == {c.id for c in manifest.cases} - real | {"synthetic_000"}
    assert {c.id for c in cases if c.site == "site1"} == {"synthetic_000"}
    files = {p.name.partition(".")[0] for p in (tmp_path / "both").rglob("*.nii.gz")}
    assert not files & real
    facts = read_json(tmp_path / "both" / FACTS)
    assert facts["beside"] == 10 and not facts["releasable"] and not made.releasable
    assert "10 real cases lie beside" in made.reason
    nameless = phantom.write_msd(tmp_path / "one", n_labelled=1, n_test=0, shape=(5, 20, 24), seed=3)
    with pytest.raises(DataError, match="all 1 cases are of site site1"):
        foreseen(pipeline.source, "site1", 1, tmp_path / "x", beside=nameless)


def test_the_command_draws_what_it_made_and_says_what_is_next(pipeline, tmp_path, capsys):
    out, beside = tmp_path / "alone", tmp_path / "both"
    command = ["generate", str(pipeline.source), "--domain", "site1", "--volumes", "4", "--steps", "1"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "--beside TARGET_DATA" in said and "seguro adapt" not in said
    assert sorted(p.name for p in (out / "pictures").iterdir()) == [f"synthetic_00{i}" for i in range(3)]
    assert all(list(p.glob("*.png")) for p in (out / "pictures").iterdir())
    assert main([*command, "--out", str(beside), "--beside", str(pipeline.data)]) == 0
    assert "seguro adapt" in capsys.readouterr().out
    assert main(["check", str(beside), "--out", str(tmp_path / "w")]) == 0


def test_each_phase_is_a_command_that_first_says_what_it_does(pipeline, tmp_path, monkeypatch, capsys):
    """Check 30: --dry-run looks at each site's data and says what would leave it; nothing is written."""
    monkeypatch.chdir(tmp_path)
    data, factory, source = map(str, (pipeline.data, pipeline.factory, pipeline.source))
    federate = ["federate", "simulate", data, "--method", "factory", "--preset", "tiny", "--batch", "2"]
    adapt = ["adapt", data, "--out", str(pipeline.workspace), "--preset", "tiny", "--source", "site1"]
    said = {}
    for phase, command in {
        "factory": [*federate, "--rounds", "2", "--updates", "2"],
        "source": [*adapt, "--from", factory],
        "generate": ["generate", source, "--domain", "site1", "--beside", data],
        "adapt": [*adapt, "--from", source, "--target", "site2"],
    }.items():
        assert main([*command, "--dry-run", "--json"]) == 0, phase
        said[phase] = capsys.readouterr()
    told = json.loads(said["factory"].out)
    assert sorted(told["sites"]) == ["site1", "site2", "site3"] and told["bytes_up"] > 0
    assert all(facts["n_cases"] == 5 for facts in told["sites"].values())
    assert all(f"site {s}: " in said["factory"].err for s in told["sites"])
    assert any(name.startswith("generator.") for name in told["arrays"])
    assert "distances of what is made to its own slices" in said["factory"].err
    assert "5 real cases" not in said["generate"].err and "beside them 10 cases" in said["generate"].err
    assert "site1" in said["source"].err and "site2" in said["adapt"].err
    assert list(tmp_path.iterdir()) == []
    broken = tmp_path / "broken"
    shutil.copytree(pipeline.data, broken)
    for file in (broken / "imagesTr").iterdir():
        file.write_bytes(b"no image")
    federate[2] = str(broken)
    assert main([*federate, "--dry-run"]) == 2


def test_a_start_whose_generator_does_not_fit_is_refused(pipeline):
    """Else the part that does not fit would stay untrained and frozen, and nobody would notice."""
    settings = {"stage": "source", "source": "site1", "width": 16}
    with pytest.raises(ConfigError, match="width: 32 there, 16 here"):
        train(pipeline.data, pipeline.workspace, "odd", "adapt", init=pipeline.factory, settings=settings)
    with pytest.raises(ConfigError, match="stage adapt starts from stage source"):
        train(
            pipeline.data, pipeline.workspace, "early", "adapt", init=pipeline.factory,
            settings={"source": "site1", "target": "site2"},
        )  # fmt: skip
    needy = SimpleNamespace(needs=Needs(begins=("generator", "encoder")))
    lacking = ["encoder.stem", "generator.map", "source.last"]
    with pytest.raises(ConfigError, match="2 weights of encoder, generator are not there"):
        _whole(needy, lacking, pipeline.factory)
    _whole(needy, lacking[2:], pipeline.factory)


def test_a_generator_that_nobody_trained_is_warned_of(pipeline):
    options = {"settings": {"stage": "source", "source": "site1"}, "updates": 1}
    run = train(pipeline.data, pipeline.workspace, "bare", "adapt", **options)
    assert "no --init, starting untrained: generator" in read_json(run / "stage.json")["recorded"]["warnings"]
    begun = read_json(pipeline.source / "stage.json")["recorded"]["warnings"]
    assert not any("--init" in line for line in begun)


def test_only_cases_of_the_source_choose_its_model(pipeline, monkeypatch):
    """Others' labels would choose it by a site that is to have none."""
    seen: list[set[str]] = []
    real = validate.dice_validation

    def noted(cases, runtime):
        seen.append({c.site for c in cases.facts})
        return real(cases, runtime)

    monkeypatch.setattr(validate, "dice_validation", noted)
    run = read_yaml(pipeline.source / "config.yaml")
    settings = {"stage": "source", "source": "site1"}
    options = {"init": pipeline.factory, "settings": settings, "fold": run["fold"], "updates": 1}
    train(pipeline.data, pipeline.workspace, "again", "adapt", **options)
    manifest = api.manifest_of(pipeline.data, pipeline.workspace)
    held_out = read_json(pipeline.source / "cases.json")["validation"]
    assert len({c.site for c in manifest.cases if c.id in held_out}) > 1
    assert seen == [{"site1"}]


def test_from_synthetic_source_to_a_prediction_at_the_target(pipeline, tmp_path):
    target = phantom.write_msd(
        tmp_path / "target", n_labelled=0, n_unlabelled=9, n_test=0, shape=(5, 20, 24), sites=3, seed=2
    )
    table = target / "patients.csv"  # a name may hold a comma
    table.write_text(table.read_text().replace("site3", '"site3, annex"'))
    generate(pipeline.source, "site1", 3, tmp_path / "both", steps=1, beside=target)
    sites = {p.site for p in read_patients(tmp_path / "both" / "patients.csv").values()}
    assert sites == {"site1", "site2", "site3, annex"}
    settings = {"stage": "adapt", "source": "site1", "target": "site2"}
    run = train(
        tmp_path / "both", tmp_path / "w2", "a", "adapt", init=pipeline.source, settings=settings, fold="all"
    )
    model = load_model(run)
    assert model.config["target"] == "site2" and model.config["domains"] == ["site1", "site2", "site3"]
    file = next(iter(sorted((target / "imagesUn").glob("*.nii.gz"))))
    result = Segmenter([model]).predict(file)
    assert result.array.shape == read_image([file]).grid.shape
    found = {}
    for way in (None, "intra", "inter", "ensemble"):
        report = predict([run], file, tmp_path / f"out-{way}", probabilities=True, way=way)
        (volume,) = (report.out / "probabilities").iterdir()
        found[way] = read_image([volume], channels=3).array
    assert np.array_equal(found[None], found["inter"])  # as preset tiny says
    stated = 0.4 * found["intra"] + 0.6 * found["inter"]
    np.testing.assert_allclose(found["ensemble"], stated, atol=1e-2)  # logits were enlarged
    with pytest.raises(ConfigError, match="it knows intra, inter, ensemble"):
        predict([run], file, tmp_path / "none", way="both")
    with pytest.raises(ConfigError, match="one way only"):
        predict([pipeline.source], file, tmp_path / "none", way="intra")


@pytest.mark.parametrize(
    ("run", "domain", "message"),
    [
        pytest.param("factory", "site1", "made by method factory", id="factory"),
        pytest.param("source", "nowhere", "domains are site1, site2, site3", id="unknown"),
        pytest.param("source", "site2", "segments site1", id="other"),
    ],
)
def test_what_cannot_be_labelled_is_refused(pipeline, tmp_path, run, domain, message):
    with pytest.raises((ConfigError, DataError), match=message):
        generate(getattr(pipeline, run), domain, 1, tmp_path / "x", steps=1)
    assert not (tmp_path / "x").exists()


def test_intensities_are_written_as_the_plan_reads_them(pipeline):
    from seguro.data.frame import frame_of

    plan = load_model(pipeline.source).plan
    frame = frame_of(plan, 32)
    x = np.linspace(-1, 1, 5, dtype=np.float32).reshape(1, 5)
    assert np.array_equal(as_read(x, frame, plan), x)
    ct = plan.channels[0].model_copy(update={"scheme": "ct", "mean": 50.0, "sd": 20.0})
    other = plan.model_copy(update={"channels": (ct,)})
    low, high = frame.low[0] * 20 + 50, frame.high[0] * 20 + 50
    np.testing.assert_allclose(as_read(x, frame, other)[0, [0, 4]], [low, high], rtol=1e-5)


def test_a_volume_lies_along_the_slice_axis(pipeline):
    model = load_model(pipeline.source)
    made = next(iter(volumes(model.predictor, model.plan.classes, 0, 1, steps=STEPS, seed=0)))
    frame = replace(model.predictor.frame, axis=1)
    lying, grid = placed(made, frame, model.plan)
    assert lying.image.shape == (1, 32, 9, 32) and lying.label.shape == grid.shape == (32, 9, 32)
    np.testing.assert_array_equal(lying.image[0, :, 4], made.image[0, 4])
