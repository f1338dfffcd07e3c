"""What an adaptation would need is looked at before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from seguro import api
from seguro.api.adaptation import foreseen, frame_as_begun
from seguro.cli import adapt as command
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import write_json
from seguro.data import phantom
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.methods.adapt.config import PRESETS, AdaptConfig

SITES = ("site1", "site2", "site3")


@dataclass(frozen=True)
class Here:
    """A data set of three sites, its plan, and starts that no one trained: only what they say is read."""

    data: Path
    plan: Plan
    folder: Path

    def start(self, method: str, **config: Any) -> Path:
        fields = AdaptConfig.model_validate(
            {**PRESETS["tiny"], "domains": SITES, "source": "site1", "stage": "source"} | config
        )
        path = self.folder / f"{method}{len(list(self.folder.iterdir()))}"
        facts = {
            "method": method,
            "config": fields.model_dump(mode="json"),
            "plan": self.plan.model_dump(mode="json"),
        }
        write_json(path / "model" / "model.json", facts)
        return path

    def lines(
        self, start: Path, settings: dict[str, Any], *, data: Path | None = None, **more: Any
    ) -> list[str]:
        options = api.TrainOptions(
            **{"method": "adapt", "preset": "tiny", "init": start, "settings": settings, **more}
        )
        return foreseen(data or self.data, options, out=self.folder / "none", write=False)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Here:
    folder = tmp_path_factory.mktemp("here")
    data = phantom.write_msd(
        folder / "data", n_labelled=6, n_unlabelled=3, n_test=0, shape=(5, 20, 24), sites=3
    )
    _, _, plan = api.plan(data, out=folder / "w", options=PlanOptions(memory_gib=0.01, dims=2, batch=2))
    (folder / "starts").mkdir()
    return Here(data, plan, folder / "starts")


def test_it_says_who_is_source_and_target_and_writes_nothing(here):
    start = here.start("adapt")
    before = sorted(here.folder.rglob("*"))
    found = here.lines(start, {"target": "site2"}, labelled="1", seed=0)
    assert found[0] == f"start: {start} (method adapt), 32 pixels, domains site1, site2, site3"
    assert found[1].startswith("source: site1, ") and found[1].endswith("all with labels")
    assert (
        found[2].startswith("target: site2, 3 cases of ")
        and "no labels; the model is chosen by translated" in found[2]
    )
    assert sorted(here.folder.rglob("*")) == before


def test_labels_of_the_target_are_counted(here):
    found = here.lines(here.start("adapt"), {"target": "site2", "target_slices": "middle"})
    assert "labels of 2, of their middle slices" in found[2]


def test_a_factory_leads_to_stage_source(here):
    assert len(here.lines(here.start("factory"), {"stage": "source", "source": "site3"})) == 2
    with pytest.raises(ConfigError, match="starts from stage source"):
        here.lines(here.start("factory"), {"source": "site1", "target": "site2"})


def test_stage_repaint_starts_from_stage_adapt_and_keeps_its_sites(here):
    start = here.start("adapt", stage="adapt", target="site2")
    found = here.lines(start, {}, method="repaint")
    assert found[1].startswith("source: site1, ")
    assert found[2].startswith("target: site2, 3 cases of ")
    assert found[2].endswith("labels of 2; guesses elsewhere")
    found = here.lines(start, {"guess_weight": 0}, method="repaint")
    assert found[2] == "target: site2, as it was painted; labels of 2"
    with pytest.raises(ConfigError, match="groups of 4"):
        here.lines(start, {}, method="repaint", batch=6)
    with pytest.raises(ConfigError, match="target: 'site2' there, 'site3' here"):
        here.lines(start, {"target": "site3"}, method="repaint")
    with pytest.raises(ConfigError, match="starts from stage adapt"):
        here.lines(here.start("adapt"), {"target": "site2"}, method="repaint")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"target": "elsewhere"}, "none of the generator's domains", id="target"),
        pytest.param({"target": "site2", "width": 8}, "width: 32 there, 8 here", id="width"),
        pytest.param({"target": "site2", "hidden": 8}, "hidden: 64 there, 8 here", id="branch"),
        pytest.param(
            {"source": "site3", "target": "site2"}, "source: 'site1' there, 'site3' here", id="source"
        ),
    ],
)
def test_what_the_start_does_not_fit_is_refused(here, settings, message):
    with pytest.raises(ConfigError, match=message):
        here.lines(here.start("adapt"), settings)


def test_a_site_that_the_generator_knows_and_the_data_do_not(here, tmp_path):
    data = phantom.write_msd(tmp_path / "two", n_labelled=4, n_test=0, shape=(5, 20, 24), sites=2)
    with pytest.raises(ConfigError, match=r"no case of the target .*the sites are site1, site2"):
        here.lines(here.start("adapt"), {"target": "site3"}, data=data)


def test_labels_that_are_hidden_are_no_source(here):
    ids = [c.patient for c in api.manifest_of(here.data, here.folder.parent / "w").cases if c.site == "site2"]
    with pytest.raises(ConfigError, match="no labelled case of the source"):
        here.lines(here.start("adapt"), {"target": "site3"}, labelled=ids[0] + ",")


def test_a_batch_without_room_for_slices_without_labels_is_refused(here):
    settings = {"target": "site2"}
    with pytest.raises(ConfigError, match="its one slice of the target"):
        here.lines(here.start("adapt"), settings, batch=2)
    assert here.lines(here.start("adapt"), settings, batch=4)


def test_an_odd_batch_and_no_start_are_refused(here):
    with pytest.raises(ConfigError, match="groups of 2"):
        here.lines(here.start("adapt"), {"target": "site2"}, batch=3)
    with pytest.raises(ConfigError, match="starts from a run"):
        here.lines(None, {"target": "site2"})


def test_other_channels_and_classes_are_refused(here, tmp_path):
    start = here.start("adapt")
    two = phantom.write_msd(tmp_path / "channels", n_labelled=3, n_test=0, shape=(5, 20, 24), channels=2)
    with pytest.raises(DataError, match="2 channels"):
        here.lines(start, {"target": "site2"}, data=two)
    facts = here.plan.model_dump(mode="json")
    facts["classes"]["names"] = ["background", "liver", "tumor"]
    other = here.start("adapt")
    model = {"method": "adapt", "config": AdaptConfig(domains=SITES).model_dump(mode="json"), "plan": facts}
    write_json(other / "model" / "model.json", model)
    with pytest.raises(ConfigError, match="segments background, liver, tumor"):
        options = api.TrainOptions(
            method="adapt", preset="paper", init=other, settings={"source": "site1", "target": "site2"}
        )
        foreseen(here.data, options, out=tmp_path / "none", write=False)


def test_another_scale_is_said(here):
    workspace = here.folder.parent / "w"
    start = here.start("adapt", side=20)
    options = api.TrainOptions(
        method="adapt", preset="tiny", init=start, settings={"target": "site2", "side": 40}
    )
    assert not any("scale" in line for line in foreseen(here.data, options, out=workspace))
    coarse = here.plan.model_copy(update={"spacing": tuple(2 * s for s in here.plan.spacing)})
    config = AdaptConfig.model_validate({**PRESETS["tiny"], "domains": SITES, "source": "site1", "side": 20})
    facts = {
        "method": "adapt",
        "config": config.model_dump(mode="json"),
        "plan": coarse.model_dump(mode="json"),
    }
    write_json(start / "model" / "model.json", facts)
    options = api.TrainOptions(method="adapt", preset="tiny", init=start, settings={"target": "site2"})
    assert any("another scale" in line for line in foreseen(here.data, options, out=workspace))


def test_data_without_a_plan_are_planned_at_the_scale_of_the_start(here, tmp_path):
    coarse = here.plan.model_copy(update={"spacing": tuple(2 * s for s in here.plan.spacing)})
    start = replace(here, plan=coarse).start("factory", side=17)
    found = frame_as_begun(here.data, start, out=tmp_path / "w")
    assert found == {"side": 17}
    workspace, _, planned = api.plan(here.data, out=tmp_path / "w")
    assert planned.spacing == pytest.approx(coarse.spacing) and planned.dims == 2
    options = api.TrainOptions(
        method="adapt", preset="tiny", init=start, settings={"source": "site1", "stage": "source", **found}
    )
    assert not any("another scale" in line for line in foreseen(here.data, options, out=workspace))
    assert frame_as_begun(here.data, start, out=workspace) == found  # so that a stopped run goes on
    other = replace(here, plan=here.plan.model_copy(update={"spacing": (9, 9, 9)})).start("factory", side=17)
    assert frame_as_begun(here.data, other, out=workspace) == {}  # the plan that is there stays
    assert frame_as_begun(here.data, start, out=tmp_path / "new", write=False) == found
    assert not (tmp_path / "new").exists()


def test_the_command_refuses_before_it_trains(here, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr("seguro.cli.train.train", lambda *a, **k: calls.append(a))
    with pytest.raises(ConfigError, match="none of the generator"):
        command.adapt(
            here.data, here.start("adapt"), target="elsewhere", out=here.folder / "none", dry_run=True
        )
    assert not calls and not (here.folder / "none").exists()


def test_what_is_refused_leaves_no_plan_behind(here, monkeypatch, tmp_path):
    """A plan on the voxels of the wrong start would stand in the way of the right one."""
    calls: list[Any] = []
    monkeypatch.setattr("seguro.cli.train.train", lambda *a, **k: calls.append(a))
    start, plan = here.start("factory"), tmp_path / "w" / "plan" / "plan.json"
    with pytest.raises(ConfigError, match="none of the generator"):
        command.adapt(here.data, start, source="elsewhere", preset="tiny", out=tmp_path / "w")
    assert not calls and not plan.exists()
    command.adapt(here.data, start, source="site1", preset="tiny", out=tmp_path / "w")
    assert len(calls) == 1 and plan.exists()


def test_train_refuses_the_same_starts(here, tmp_path):
    options = api.TrainOptions(
        method="repaint", preset="tiny", init=here.start("adapt"), settings={"target": "site2"}, updates=1
    )
    with pytest.raises(ConfigError, match="stage repaint starts from stage adapt"):
        api.train(here.data, options, out=tmp_path / "w")


def test_a_dry_run_says_it_and_leaves_the_disk_alone(here, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.adapt(here.data, here.start("adapt"), target="site2", preset="tiny", dry_run=True)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "source: site1, " in said
        and "target: site2, 3 cases of " in said
        and "method adapt, preset tiny" in said
    )
    assert list(tmp_path.iterdir()) == []
