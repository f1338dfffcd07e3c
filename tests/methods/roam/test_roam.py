"""ROAM's update: which rows are fitted with what, the paper's step, options, refusals, lost classes."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from seguro.core.errors import ConfigError
from seguro.core.seeds import derive
from seguro.core.types import IGNORE, Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods.roam.config import PRESETS, RoamConfig
from seguro.methods.roam.method import Roam
from seguro.methods.roam.targets import guess
from seguro.methods.streams import Shares, TwoStream
from seguro.networks import build
from seguro.networks.mixing import MixPlan

CLASSES = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
SPREAD = Spread(low=1, median=1, high=1)
SIZE = 16
PLAN = Plan(
    name="toy", dims=2, spacing=(1, 1, 1), unit="mm", channels=(Intensity(name="x", scheme="zscore"),),
    classes=CLASSES, patch=(SIZE, SIZE), strides=((2, 2), (2, 2)), kernels=((3, 3),) * 3, batch=8, folds=(),
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=1, shape=(1, SIZE, SIZE), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({},), volume_ml={}, present={},
    ),
)  # fmt: skip
SMALL = {"network_options": {"width": 4}}


def batch(n: int = 8, seed: int = 0, views: int = 0, *, unlabelled: bool = True) -> TwoStream:
    rng = np.random.default_rng(seed)
    label = torch.from_numpy(rng.integers(0, 3, (n, SIZE, SIZE)).astype(np.uint8))
    image = torch.from_numpy(rng.normal(size=(n, 1, SIZE, SIZE)).astype(np.float32)) + label[:, None]
    labelled = torch.ones(n)
    if unlabelled:
        labelled[1::2] = 0
    label[labelled == 0] = IGNORE
    others = torch.from_numpy(rng.normal(size=(n, views, 1, SIZE, SIZE)).astype(np.float32))
    return TwoStream(image, others, label, labelled[:, None].expand(n, 2).clone(), labelled)


def made(seed: int = 0, updates: int = 10, plan: Plan = PLAN, n: int = 8, **config: Any):
    torch.manual_seed(derive(seed, "init"))
    method = Roam(RoamConfig.model_validate({**SMALL, **config}), plan, build)
    run = LoopRun(method, Runtime("cpu"), seed=seed, batch=n, updates=updates)
    run.train()
    return method, run


def weights(method: Roam) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.modules.parameters()])


def test_the_paper_is_the_default_and_all_presets_are_valid():
    assert PRESETS["paper"] == {} and RoamConfig().layers == ("I", 1, "L")
    for name, options in PRESETS.items():
        config = RoamConfig.model_validate(options)
        Roam(RoamConfig.model_validate({**options, **SMALL}), PLAN, build)
        paper = name.startswith(("paper", "released", "mixmatch"))
        extras = (config.guesses, config.teacher, config.confidence, config.mixing, config.dice_weight)
        assert (extras == (1, False, 0.0, "linear", 0.0)) == paper, name
        assert (config.augment.p_spatial == 0 and config.skips == "official") == paper


def test_one_update_is_the_papers_written_out():
    """Guess in training mode on the unlabelled alone, sharpen, mix, cross entropy and squared error, Adam."""
    method, run = made(layers=("I",), updates=10, lambda_u=75.0, ramp_epochs=10)
    other, _ = made(layers=("I",))
    network = other.modules["network"].train()
    data = batch()
    run.update = 4
    rows = torch.arange(0, 8, 2), torch.arange(1, 8, 2)
    plan = method.mix_plan(data.image, run)
    lam, order = float(plan.lam), plan.permutation
    with torch.no_grad():
        p = network(data.image[rows[1]]).softmax(1)
    target = torch.zeros(8, 3, SIZE, SIZE)
    target[rows[0]] = torch.nn.functional.one_hot(data.label[rows[0]].long(), 3).movedim(-1, 1).float()
    target[rows[1]] = p**2 / (p**2).sum(1, keepdim=True)
    target = lam * target + (1 - lam) * target[order]
    z = network(lam * data.image + (1 - lam) * data.image[order])
    ce = -(target * z.log_softmax(1)).sum(1)[rows[0]].mean()
    square = (z.softmax(1) - target).square()[rows[1]].mean()
    loss = ce + 75 * 0.4 * square
    loss.backward()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    optimiser.step()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1 - 4e-5
    out = method.update(data, run)
    assert out["supervised"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert out["unlabelled"].item() == pytest.approx(square.item(), rel=1e-5)
    assert out["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for key, value in method.modules["network"].state_dict().items():
        # Adam's first step has the sign of a gradient, also of one that is 0 but for rounding (biases
        # before a normalization)
        if not key.endswith(("0.bias", "3.bias")):
            assert torch.allclose(value.float(), network.state_dict()[key].float(), atol=2e-4), key


def test_labelled_rows_are_fitted_by_cross_entropy_whoever_their_partner_is():
    method, run = made(partner="other", group=2, layers=("I",), guess_bn="eval", weight_decay=0)
    data, seen = batch(), {}
    method._fit = lambda *a, even: seen.setdefault("labels", a)[0].sum() * 0
    method._fit_guesses = lambda *a: seen.setdefault("guesses", a)[0].sum() * 0
    plan = method.mix_plan(data.image, run)
    assert plan.permutation.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]  # each with one of the other kind
    method.modules["network"].eval()
    method.update(data, run)
    with torch.no_grad():
        logits = method.modules["network"](plan(data.image))
    assert torch.allclose(seen["labels"][0], logits[0::2], atol=1e-5)
    assert torch.allclose(seen["guesses"][0], logits[1::2], atol=1e-5)
    own = torch.nn.functional.one_hot(data.label[0::2].long(), 3).movedim(-1, 1).float()
    share = float(plan.lam)
    assert (seen["labels"][1] - share * own).min() > -1e-6
    assert not torch.allclose(seen["labels"][1], own)


def test_fitted_by_voxel_a_guess_without_weight_moves_nothing_wherever_it_lands():
    how = {"mixing": "mask", "layers": ("I",), "partner": "other", "group": 2, "dice_weight": 1.0}
    for fitted_by, same in (("voxel", True), ("sample", False)):
        trained = []
        for temperature in (0.3, 1.0):  # changes the guesses only
            more = {"fitted_by": fitted_by, "temperature": temperature, "lambda_u": 0.0}
            method, run = made(network="unet", **how, **more)
            method.update(batch(), run)
            trained.append(weights(method))
        assert torch.equal(*trained) == same


def test_without_mixing_it_does_not_matter_by_what_is_fitted():
    found = []
    for fitted_by in ("sample", "voxel"):
        method, run = made(layers=("none",), fitted_by=fitted_by, dice_weight=1.0, group=2, network="unet")
        out = method.update(batch(), run)
        found.append([out["supervised"].item(), out["unlabelled"].item()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("mixing", ["linear", "mask"])
def test_fitted_by_voxel_every_voxel_of_a_group_weighs_the_same(mixing):
    """However small the box is by which a label or a guess got into a sample of the other kind."""
    how = {"layers": ("I",), "partner": "other", "group": 2, "mixing": mixing, "lambda_per": "sample"}
    method, run = made(network="unet", fitted_by="voxel", **how)
    data = batch()
    plan = method.mix_plan(data.image, run)
    labelled = data.labelled > 0
    target = torch.randn(8, 3, SIZE, SIZE).softmax(1)
    share = plan(data.labelled.reshape(8, 1, 1, 1).expand(8, 1, SIZE, SIZE)).squeeze(1)
    logits = torch.randn(8, 3, SIZE, SIZE)
    got = method._losses(logits, target, torch.ones(8, SIZE, SIZE), labelled, plan)
    per_voxel = -(plan(target) * logits.log_softmax(1)).sum(1)
    square = (logits.softmax(1) - plan(target)).square().mean(1)
    for loss, value, part in zip(got, (per_voxel, square), (share, 1 - share), strict=True):
        pairs = [(value * part)[i : i + 2].sum() / part[i : i + 2].sum() for i in range(0, 8, 2)]
        assert loss.item() == pytest.approx(sum(pairs).item() / 4, rel=1e-5)


def test_an_update_that_learns_nothing_shrinks_every_parameter():
    method, run = made(decay="paper", learning_rate=1e-12)
    before = weights(method)
    method.update(batch(), run)
    assert torch.allclose(weights(method), before * (1 - 4e-5), rtol=2e-7, atol=1e-11)


def test_a_part_of_the_updates_mixes():
    method, run = made(p_mix=0.5)
    unmixed = 0
    for run.update in range(400):
        unmixed += method.mix_plan(batch().image, run) is None
    assert 140 < unmixed < 260  # 200 +- 6 standard deviations


def test_only_unlabelled_samples_are_trained_on_their_strong_view():
    method, _ = made(strong={"p_intensity": 1.0})
    data = batch(views=2)
    labelled = data.labelled > 0
    image = method._trained_on(data, labelled)
    assert torch.equal(image[labelled], data.image[labelled])
    assert torch.equal(image[~labelled], data.views[~labelled, -1])


def test_the_network_guesses_until_the_teacher_takes_over_in_evaluation_mode(monkeypatch):
    method, run = made(average=0.5, teacher=True, teacher_after=0.5)
    asked = []

    def noting(network, views, classes):
        asked.append((network, network.training))
        return guess(network, views, classes)

    monkeypatch.setattr("seguro.methods.roam.method.guess", noting)
    for run.update in (4, 5):
        method.update(batch(), run)
    assert asked == [(method.modules["network"], True), (run.averaged["network"], False)]


def test_skips_are_mixed_wherever_a_network_names_them():
    for network, skips in (("unet", "all"), ("lattice", "all"), ("monai:BasicUNet", "official")):
        options = {"features": (4, 4, 4, 4, 4, 4)} if skips == "official" else {"width": 4}
        method, run = made(network=network, network_options=options, skips="auto", layers=(2,))
        assert method.skips == method.mix_plan(batch().image, run).skips == skips


def test_partners_stay_in_their_group_and_ranks_draw_the_same():
    method, run = made(group=4, n=8, lambda_per="sample", mixing="mask")
    images = batch().image
    whole = method.mix_plan(images, run)
    assert all(int(a) // 4 == i // 4 for i, a in enumerate(whole.permutation))
    for part in (range(0, 4), range(4, 8)):
        run.slots = part
        half = method.mix_plan(images[: len(part)], run)
        assert half.layer == whole.layer
        assert torch.equal(half.lam, whole.lam[part.start : part.stop])
        assert torch.equal(half.mask, whole.mask[part.start : part.stop])
        assert torch.equal(half.permutation + part.start, whole.permutation[part.start : part.stop])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_smaller_last_batch_is_trained_on(n):
    for more in ({}, {"partner": "other", "mixing": "mask", "lambda_per": "sample"}):
        method, run = made(network="unet", **more)
        run.update = 5
        plan = method.mix_plan(batch(n).image, run)
        assert sorted(plan.permutation.tolist()) == list(range(n))
        assert math.isfinite(method.update(batch(n), run)["loss"])


def test_layers_are_drawn_from_the_set_the_last_one_too_and_none_mixes_nothing():
    method, run = made(layers=("I", 1, "L", "none"))
    drawn = []
    for run.update in range(400):
        plan = method.mix_plan(batch().image, run)
        drawn.append("none" if plan is None else plan.layer)
    counts = {name: drawn.count(name) for name in ("input", "enc0", "last", "none")}
    assert sum(counts.values()) == 400 and min(counts.values()) > 60  # 100 +- 4.6 standard deviations
    released, run = made(**PRESETS["released-code"])
    names = set()
    for run.update in range(50):
        names.add(released.mix_plan(batch().image, run).layer)
    assert names == {"input", "enc0"}


def test_without_unlabelled_samples_it_is_supervised():
    method, run = made()
    run.update = 9
    out = method.update(batch(unlabelled=False), run)
    assert set(out) == {"loss", "supervised"} and torch.equal(out["loss"], out["supervised"])
    one, run_one = made(seed=1, layers=("none",))
    two, run_two = made(seed=1, layers=("none",), temperature=0.9, lambda_u=3)
    for method, run in ((one, run_one), (two, run_two)):
        method.update(batch(unlabelled=False), run)
    assert torch.equal(weights(one), weights(two))


def test_at_the_start_of_the_ramp_guesses_move_nothing():
    method, run = made(layers=("none",), lambda_u=75.0, decay="paper", weight_decay=0, network="unet")
    other, run_other = made(layers=("none",), lambda_u=0.0, decay="paper", weight_decay=0, network="unet")
    method.update(batch(), run)
    other.update(batch(), run_other)
    assert torch.equal(weights(method), weights(other))
    run.update = run_other.update = 5
    method.update(batch(), run)
    other.update(batch(), run_other)
    assert not torch.equal(weights(method), weights(other))


def test_before_the_start_it_trains_on_the_labels_alone():
    method, run = made(start=0.5, ramp=0.5, ramp_epochs=None, lambda_u=2.0)
    other, run_other = made(layers=("none",))
    given = batch()
    rows = given.labelled > 0
    assert set(method.update(given, run)) == {"loss", "supervised"}
    other.update(replace(given, **{f.name: getattr(given, f.name)[rows] for f in fields(given)}), run_other)
    assert torch.equal(weights(method), weights(other))
    said = {}
    for run.update in (5, 6, 8, 9):
        said[run.update] = float(method.update(given, run)["weight"])
    assert said == pytest.approx({5: 0.0, 6: 0.8, 8: 2.0, 9: 2.0})


@pytest.mark.parametrize(
    "config",
    [
        {"start": 0.2},
        {"guesses": 3, "augment": {"p_intensity": 1.0}},
        {"guess_bn": "eval"},
        {"average": 0.5, "teacher": True, "teacher_after": 0.0},
        {"confidence": 0.5},
        {"mixing": "mask", "layers": (2,)},
        {"skips": "all", "layers": (3,)},
        {"lambda_per": "sample"},
        {"partner": "other"},
        {"dice_weight": 1.0},
        {"unlabelled_loss": "same"},
        {"fitted_by": "voxel"},
        {"p_mix": 0.0},
        {"lambda_norm": "sum"},
        {"strong": {"p_intensity": 1.0}},
        {"layer_weights": (0, 0, 1)},
        {"alpha": 5.0},
        {"temperature": 1.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_option_changes_what_is_learnt(config):
    trained = []
    for more in ({k: v for k, v in config.items() if k == "layers"}, config):
        method, run = made(lambda_u=3.0, ramp=0.0, **more)
        for run.update in range(4):
            out = method.update(batch(seed=run.update, views=2), run)
        assert math.isfinite(out["loss"])
        trained.append(weights(method))
    assert torch.isfinite(trained[1]).all()
    assert not torch.equal(*trained)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"layer_weights": (1,)}, "3 layers"),
        ({"layers": (1, 1)}, "repeat"),
        ({"group": 3}, "whole number"),
        ({"teacher": True}, "average"),
        ({"decay": "decoupled"}, "adamw"),
        ({"strong": {}, "guesses": 2}, "guesses"),
        ({"guesses": 2}, "the same image"),
        ({"layer_weights": (0, 0, 0)}, "zero"),
        ({"layers": ()}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, word):
    with pytest.raises(ValidationError, match=word):
        RoamConfig.model_validate(config)


def test_layers_and_batches_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="known are I"):
        made(layers=("bottom",))
    with pytest.raises(ConfigError, match="repeats"):
        made(layers=("I", 0))
    with pytest.raises(ConfigError, match="skips=official"):
        made(network="monai:BasicUNet", network_options={"features": (4,) * 6}, skips="all", layers=(2,))
    with pytest.raises(ConfigError, match="multiple of 8"):
        made(n=4)


def test_a_class_that_guesses_have_lost_is_seen():
    shares, (_, run) = Shares(CLASSES), made()
    target = torch.zeros(4, 3, 8, 8)
    target[:2, 0, :4], target[:2, 1, 4:6], target[:2, 2, 6:] = 1, 1, 1
    target[2:, 0, :6], target[2:, 1, 6:] = 1, 1
    labelled = torch.tensor([True, True, False, False])
    counts = torch.ones(4, 8, 8)
    for _ in range(3):
        out = shares.observe(target, counts, labelled, run)
    assert {k: round(float(v), 6) for k, v in out.items()} == {"share.a": 1.0, "share.b": 0.0}
    target[:2, 0] += target[:2, 2]
    target[:2, 2] = 0
    assert set(Shares(CLASSES).observe(target, counts, labelled, run)) == {"share.a"}  # b never shown
    again = Shares(CLASSES)
    again.load_state(shares.state())
    assert torch.equal(again.state()["shares"], shares.state()["shares"])


def test_the_predictor_is_the_network():
    method, _ = made()
    predictor = method.predictor(method.modules).eval()
    x = batch().image.unsqueeze(2)
    with torch.no_grad():
        assert torch.equal(predictor(x).squeeze(2), method.modules["network"].eval()(x.squeeze(2)))
    assert isinstance(method.mix_plan(batch().image, made()[1]), MixPlan)
