"""Every method that segments: its model is deployed, loads by itself, predicts odd grids always the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from seguro import api
from seguro.core.seeds import generator
from seguro.data import phantom
from seguro.data.formats import read_image, read_label
from seguro.data.planner import PlanOptions
from seguro.engine.model import load_model, load_weights
from seguro.inference.segmenter import Segmenter
from seguro.inference.tiling import planned_slabs
from seguro.methods import TABLE, get

pytestmark = pytest.mark.xdist_group("prediction")  # one worker trains each method once

OPTIONS = {"preset": "tiny", "updates": 2, "validations": 1, "threads": 1}


@pytest.fixture(scope="module", params=[n for n in TABLE if get(n).needs.segments])
def run(request, tmp_path_factory):
    """A finished run of the method on three-dimensional data where it can, else on pictures."""
    name, folder = request.param, tmp_path_factory.mktemp("run")
    write = phantom.write_msd if 3 in get(name).needs.dims else phantom.write_png
    data = write(folder / "data", n_labelled=4, n_unlabelled=2, seed=3)
    return api.train(
        data,
        api.TrainOptions(method=name, batch=max(2, get(name).needs.group), **OPTIONS),
        out=folder / "w",
        plan_options=PlanOptions(memory_gib=0.02),
    )


def logits(model, image: np.ndarray) -> torch.Tensor:
    axis = getattr(model.predictor.tiling, "axis", 0)
    with torch.inference_mode():
        parts = [part for _, _, part in planned_slabs(model.predictor, image, axis=axis)]
    return torch.cat(parts, dim=axis + 1)


@pytest.fixture
def load(with_support):
    """Loads a model, bound to a support where its method needs one."""

    def loaded(path):
        model = load_model(path)
        return replace(model, predictor=with_support(model.predictor, model.method, model.plan))

    return loaded


def test_a_loaded_model_predicts_the_same_twice_and_every_size(run, load):
    one, two = load(run), load(run / "model")
    for shape in ((7, 13, 9), (1, 5, 31), (20, 24, 28)):
        image = generator(0, "image").normal(size=(len(one.plan.channels), *shape)).astype(np.float32)
        a, b = logits(one, image), logits(two, image)
        assert torch.equal(a, b) and torch.isfinite(a).all()
        assert a.shape == (one.plan.classes.n, *shape)


def test_a_model_names_no_case_and_knows_its_plan(run):
    text = (run / "model" / "model.json").read_text()
    assert "case_0" not in text and str(run.parent) not in text
    assert load_model(run).plan.folds == ()


def test_anisotropic_oblique_and_flipped_input_comes_back_on_its_own_grid(run, load, tmp_path):
    segmenter = Segmenter([load(run)])
    rng = generator(0, "odd")
    shape = (5, 22, 27)
    array = rng.normal(100, 20, (len(segmenter.models[0].plan.channels), *shape)).astype(np.float32)
    look = {"spacing": (3.3, 0.7, 1.1), "codes": "PIR", "oblique_deg": 10.0}
    file = phantom.write_nifti(tmp_path / "odd.nii.gz", array if len(array) > 1 else array[0], **look)
    result = segmenter.predict(file)
    image = read_image([file], channels=len(array))
    assert result.array.shape == image.grid.shape
    from seguro.data.formats import write_label

    back = read_label(write_label(tmp_path / "label.nii.gz", result.array, result.source), like=image.grid)
    np.testing.assert_array_equal(back.array, result.array)
    np.testing.assert_allclose(back.grid.affine, image.grid.affine, atol=1e-4)  # float32 header


def test_the_predictor_is_differentiable_in_its_input(run, load):
    model = load(run)
    size = getattr(model.predictor.tiling, "size", (16, 16, 16))
    x = torch.randn(
        1, len(model.plan.channels), *((1, *size) if len(size) == 2 else size), requires_grad=True
    )
    model.predictor(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_another_run_can_start_from_its_weights(run):
    model = load_model(run)
    kind = get(model.method)
    from seguro.networks import build

    fresh = kind(kind.Config.model_validate(model.config), model.plan, build)
    loaded, missing = load_weights(fresh.modules, run)
    deployed = model.predictor.state_dict()
    assert loaded and set(loaded) | set(missing) == set(fresh.modules.state_dict())
    assert all(torch.equal(fresh.modules.state_dict()[k], deployed[k]) for k in loaded)
    assert set(deployed) <= set(loaded)
