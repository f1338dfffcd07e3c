"""What a method asks of a plan that is made for it, and how its options come together."""

from __future__ import annotations

import pytest

from seguro.api import TrainOptions, configure, default_network, planned_for
from seguro.data.planner import PlanOptions


@pytest.mark.parametrize(
    ("method", "fields"),
    [("supervised", {}), ("alpnet", {"dims": 2}), ("pfseg", {"dims": 3, "full_resolution": True})],
    ids=["supervised", "alpnet", "pfseg"],
)
def test_a_first_plan_is_as_the_method_needs_it(tmp_path, method, fields):
    assert planned_for(method, tmp_path, None) == PlanOptions.model_validate(fields)
    asked = planned_for(method, tmp_path, PlanOptions(dims=3, folds=4))
    assert asked == PlanOptions.model_validate({**fields, "dims": 3, "folds": 4})


def test_a_plan_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text("{}")
    assert planned_for("alpnet", tmp_path, None) is None
    given = PlanOptions(dims=3)
    assert planned_for("alpnet", tmp_path, given) is given


@pytest.mark.parametrize(
    ("method", "network"), [("supervised", "unet"), ("rog", "lattice"), ("roam", ""), ("pfseg", "")]
)
def test_a_run_is_named_after_a_network_that_every_preset_has(method, network):
    """Those of roam are of two networks, and which preset is taken depends on the machine."""
    assert default_network(method) == network


@pytest.mark.parametrize(
    "given",
    [{"network": "unet-classic"}, {"settings": {"network": "unet-classic"}}],
    ids=["option", "setting"],
)
def test_another_network_does_not_get_the_options_of_the_presets(given):
    """Neither way of naming it: a network of MONAI has no `width`."""
    _, config = configure(TrainOptions(method="supervised", preset="small", **given), gpu=False)
    assert (config.network, config.network_options) == ("unet-classic", {})
    own = {"settings": {"network": "unet", "network_options": {"depth": 3}}}
    _, config = configure(TrainOptions(method="supervised", preset="small", **own), gpu=False)
    assert config.network_options == {"width": 16, "depth": 3}
