"""What all four have in common: what they read, what they refuse, and that ranks would draw alike."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from seguro import api
from seguro.core.errors import ConfigError
from seguro.core.seeds import generator
from seguro.core.types import IGNORE, Classes
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.methods import get
from seguro.methods.contract import collate
from seguro.methods.semi.recipe import fit, sample
from seguro.networks import build

NAMES = ("mean-teacher", "cps", "unimatch", "bcp")


@pytest.fixture(scope="module")
def data(phantom_folder, tmp_path_factory):
    """A store in which half of the labels are kept back, their files deleted; the plan."""
    out = tmp_path_factory.mktemp("semi")
    workspace, manifest, plan = api.plan(phantom_folder, out=out, options=PlanOptions(memory_gib=0.01))
    store = prepare(workspace, manifest, plan)
    train = manifest.of("train")
    hidden = [c.id for c in train[3:]]
    for case in train[3:]:
        for suffix in (".label.npy", ".locations.npy"):
            (store / case.hash).with_suffix(suffix).unlink()
    return Cases(store, (*train, *manifest.of("unlabelled")), plan.classes, hidden=hidden), plan


@pytest.fixture(params=NAMES)
def method(request, data):
    kind = get(request.param)
    torch.manual_seed(0)
    return kind(kind.Config.model_validate(kind.presets["tiny"]), data[1], build)


def test_labels_that_are_kept_back_are_never_opened(method, data):
    cases, _ = data
    samples = [method.draw(cases, slot, generator(slot)) for slot in range(16)]
    for slot, found in enumerate(samples):
        assert found.labelled == (slot % 2 == 0)
        assert (found.label == IGNORE).all() == (slot % 2 == 1)
    collate(samples)  # the same fields and shapes in both kinds
    view = cases.view()
    for slot in range(1, 40, 2):
        method.draw(view, slot, generator(slot))
    assert len(set(view.touched)) == 5


def test_without_an_unlabelled_case_it_is_refused(method, data):
    cases, plan = data
    only = Cases(cases.folder, [cases.facts[i] for i in cases.labelled], plan.classes)
    with pytest.raises(ConfigError, match="--method supervised"):
        method.draw(only, 0, generator(0))


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_presets_are_valid_and_default_is_the_papers(name, preset):
    kind = get(name)
    config = kind.Config.model_validate(kind.presets[preset])
    assert (config == kind.Config()) == (preset == "paper")


def test_strong_views_are_drawn_where_somebody_looks_at_them(data):
    cases, plan = data
    config = get("unimatch").Config()
    found = [
        sample(config, plan, cases, slot, generator(0), views=2, strong=config.strong) for slot in (0, 1)
    ]
    assert found[0].views.shape == found[1].views.shape
    assert not found[0].views.any()
    assert not np.array_equal(found[1].views[0], found[1].views[1])


def test_pseudo_labels_count_for_every_class_and_labels_for_those_looked_for(toy):
    made = toy("cps", cross_entropy_weight=1.0, dice_weight=1.0).method
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1)).byte()
    args, classes = (made.config, logits, label), made.plan.classes
    every = fit(*args, torch.ones(2, 2), classes)
    assert fit(*args, None, classes) == every != fit(*args, torch.tensor([[1.0, 0.0]] * 2), classes)
    double = made.config.model_copy(update={"cross_entropy_weight": 2.0, "dice_weight": 2.0})
    torch.testing.assert_close(fit(double, logits, label, None, classes), 2 * every)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_no_longer_guessed_shows(name, toy, batch):
    made = toy(name, **({"pretrain": 0.0} if name == "bcp" else {}))
    for network in (*made.method.modules.values(), *made.run.averaged.values()):
        with torch.no_grad():
            network.head.bias[2] = -100
    out = made.method.update(batch(4), made.run)
    assert out["share.b"] == 0 < out["share.a"]
    fresh = toy(name).method
    fresh.load_state(made.method.state())
    assert torch.equal(fresh.state()["shares"], made.method.state()["shares"])


@pytest.mark.parametrize("name", NAMES)
def test_what_unlabelled_rows_carry_as_label_changes_nothing(name, toy, batch):
    one, two, data = toy(name), toy(name), batch(4)
    told = data.label.clone()
    told[1::2] = 1
    for made, seen in ((one, data), (two, replace(data, label=told))):
        made.run.update = 90
        made.method.update(seen, made.run)
    assert torch.equal(one.weights, two.weights)


@pytest.mark.parametrize("name", NAMES)
def test_overlapping_regions_are_learned_from_both_kinds(name, toy, batch):
    regions = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
    config = {"pretrain": 0.0} if name == "bcp" else {"confidence": 0.5} if name == "unimatch" else {}
    data, moved = batch(4), []
    for scale in (1.0, 2.0):
        made = toy(name, classes=regions, **config)
        views, image = data.views.clone(), data.image.clone()
        views[1::2] *= scale
        image[1::2] *= scale
        made.run.update = 50
        out = made.method.update(replace(data, image=image, views=views), made.run)
        assert torch.isfinite(out["loss"])
        moved.append(made.weights)
    assert torch.isfinite(moved[0]).all() and not torch.equal(*moved)  # the unlabelled rows took part


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_batch_is_the_mean_of_its_groups(name, toy, batch):
    """As ranks see it: boxes and dropped channels belong to slots, no loss divides by the whole batch."""
    data, grads = batch(8), []
    for slots in (range(8), range(4), range(4, 8)):
        made = toy(name, batch=8, **({"confidence": 0.4} if name == "unimatch" else {}))
        made.run.update, made.run.slots = 90, slots
        made.run.step = lambda *names: True
        part = {f.name: getattr(data, f.name)[slots.start : slots.stop] for f in fields(data)}
        made.method.update(type(data)(**part), made.run)
        grads.append(torch.cat([p.grad.flatten() for p in made.method.modules.parameters()]))
    whole, mean = grads[0], (grads[1] + grads[2]) / 2
    assert (whole - mean).abs().max() < 1e-5 * whole.abs().max()  # sums in float32
