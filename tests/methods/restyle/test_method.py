"""A labelled patch in the look of an unlabelled one: its label stays, its look is the other's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seguro import api
from seguro.core.errors import ConfigError
from seguro.core.seeds import generator
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.methods.restyle.config import PRESETS, RestyleConfig
from seguro.methods.restyle.method import Restyle
from seguro.methods.streams import NO_AUGMENT
from seguro.networks import build


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restyle")
    data = phantom.write_msd(folder / "data", n_labelled=4, n_test=0, sites=2, shape=(4, 16, 16))
    out, manifest, plan = api.plan(data, out=folder / "w", options=PlanOptions(memory_gib=0.01, dims=2))
    store = prepare(out, manifest, plan)
    cases = manifest.of("train")
    bare = [c.id for c in cases if c.site == "site2"]
    return plan, lambda hidden=True: Cases(store, cases, plan.classes, hidden=bare if hidden else [])


def method(plan, **fields):
    torch.manual_seed(0)
    config = {**PRESETS["tiny"], "augment": NO_AUGMENT.model_dump(), "p_foreground": 0.0, **fields}
    return Restyle(RestyleConfig.model_validate(config), plan, build)


@pytest.mark.parametrize("look", ["histogram", "fourier"])
def test_the_label_stays_and_the_look_changes(setting, look):
    plan, cases = setting
    rows = [method(plan, look=look, p_look=p).draw(cases(), 0, generator(3, "draw", 0)) for p in (0.0, 1.0)]
    assert np.array_equal(rows[0].label, rows[1].label) and rows[0].annotated.all()
    assert not np.allclose(rows[0].image, rows[1].image, atol=1e-3)


def test_a_matched_patch_has_intensities_of_an_unlabelled_case(setting):
    plan, cases = setting
    found = cases()
    image = method(plan, look="histogram").draw(found, 0, generator(1, "draw", 0)).image
    low = min(found[i].patch((slice(None),) * 3).min() for i in found.unlabelled)
    high = max(found[i].patch((slice(None),) * 3).max() for i in found.unlabelled)
    assert low - 1e-5 <= image.min() and image.max() <= high + 1e-5


def test_without_unlabelled_cases_it_says_so(setting):
    plan, cases = setting
    with pytest.raises(ConfigError, match="0 unlabelled"):
        method(plan).draw(cases(hidden=False), 0, generator(0, "draw"))
