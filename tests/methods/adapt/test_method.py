"""What adaptation trains, starts from, chooses by, and predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE
from seguro.engine.limits import Limits
from seguro.engine.log import RunLog
from seguro.engine.loop import Loop
from seguro.engine.runtime import Runtime
from seguro.losses import probabilities
from seguro.methods.painter import SOURCE, TARGET, numbers, paint
from seguro.methods.streams import NO_AUGMENT
from seguro.networks.perceptual import PLACES, SHAPES, perceptual_from


def trained(sites, folder, *, updates=2, seed=0, **fields):
    method = sites.method(**fields)
    loop = Loop(method, sites.cases, folder, Runtime("cpu", "32"), Limits(updates, validations=1), 4, seed)
    loop.fit()
    return method, loop


def test_the_generator_is_frozen_and_its_mean_codes_are_taken(sites, tmp_path):
    method = sites.method()
    before = {k: v.clone() for k, v in method.modules["generator"].state_dict().items()}
    method.optimisers()
    means = method.modules["generator"].mean_code(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.modules["encoder"].mean, means[:2])
    method, _ = trained(sites, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in method.modules["generator"].state_dict().items())
    assert not any(p.requires_grad for p in method.modules["generator"].parameters())


def test_the_targets_branch_starts_from_the_sources_unless_told(sites):
    for start, same in (("source", True), ("own", False)):
        method = sites.method(target_branch=start)
        method.optimisers()
        pairs = zip(*(method.modules[b].parameters() for b in ("source", "target")), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_each_stage_trains_its_branch_and_leaves_the_other(sites, tmp_path):
    for stage, learns, rests in (("source", "source", "target"), ("adapt", "target", "source")):
        fresh = sites.method(stage=stage, target_branch="own")
        method, _ = trained(sites, tmp_path / stage, stage=stage, target_branch="own")
        moved = {
            b: not all(
                torch.equal(a, c)
                for a, c in zip(method.modules[b].parameters(), fresh.modules[b].parameters(), strict=True)
            )
            for b in ("source", "target")
        }
        assert moved == {learns: True, rests: False}


def test_even_updates_stay_within_and_odd_ones_go_across(sites, tmp_path):
    trained(sites, tmp_path, updates=3)
    lines = [line for line in RunLog(tmp_path).lines() if line["kind"] == "train"]
    assert ["reconstruction" in line for line in lines] == [True, False, True]
    assert all({"translated", "cycle"} <= set(line) for line in lines)  # their means are over all updates
    assert lines[0]["translated"] != lines[1]["translated"] == lines[2]["translated"]
    assert [line["share"] for line in lines] == pytest.approx([0, 2 / 3, 1])


def test_feature_maps_are_compared_where_a_file_is_named(sites, tmp_path):
    file = tmp_path / "alexnet.safetensors"
    weights = {f"features.{p}.bias": torch.zeros(s[0]) for p, s in zip(PLACES, SHAPES, strict=True)}
    for place, (cout, cin, k) in zip(PLACES, SHAPES, strict=True):
        weights[f"features.{place}.weight"] = torch.randn(cout, cin, k, k) / (cin * k * k) ** 0.5
    save_file(weights, file)
    plain, ours = sites.method(), sites.method(perceptual=str(file), perceptual_weight=0.5)
    a, b = (torch.rand(2, 1, 32, 32) * 2 - 1 for _ in range(2))
    for method in (plain, ours):
        method.optimisers()
    more = float(ours._image_loss(a, b) - plain._image_loss(a, b))
    assert more == pytest.approx(0.5 * float(perceptual_from(file)(a, b)), rel=1e-4) and more > 0
    assert ours.shared() == plain.shared()  # it is no part of what is saved or travels
    with pytest.raises(DataError):
        sites.method(perceptual=str(tmp_path / "none.safetensors")).optimisers()


def test_the_backbone_may_start_from_a_file(sites, tmp_path):
    file, made = tmp_path / "face.safetensors", sites.method()
    encoder = made.modules["encoder"]
    torch.manual_seed(5)
    weights = {"conv1.weight": torch.randn(encoder.stem.out_channels, 3, 3, 3)}  # of color images
    for own, theirs in encoder._twins()[1:]:
        for name, value in encoder.get_submodule(own).state_dict().items():
            if name != "own":
                weights[f"{theirs}.{name}"] = torch.randn_like(value)
    save_file(weights, file)
    ours, before = sites.method(pretrained=str(file)), encoder.stem.weight.clone()
    ours.modules.load_state_dict(made.modules.state_dict())
    ours.optimisers()
    taken = ours.modules["encoder"]
    assert torch.equal(taken.stages[1][0].first.weight, weights["layer2.0.conv1.weight"])
    assert torch.equal(taken.stem.weight, before)
    with pytest.raises(DataError):
        sites.method(pretrained=str(tmp_path / "none.safetensors")).optimisers()


def test_few_labels_of_the_target_join(sites, tmp_path):
    trained(sites, tmp_path / "few", target="site3", updates=2)
    trained(sites, tmp_path / "none", updates=2)
    few, none = (
        [line for line in RunLog(tmp_path / f).lines() if line["kind"] == "train"] for f in ("few", "none")
    )
    assert all("few" in line for line in few) and "few_cycle" in few[1]
    assert not any("few" in line for line in none)


@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        pytest.param({"cycle": False}, "cycle", id="cycle"),
        pytest.param({"stage": "source"}, "translated", id="source"),
    ],
)
def test_what_is_switched_off_is_not_computed(sites, tmp_path, fields, gone):
    trained(sites, tmp_path, **fields)
    assert not any(gone in line for line in RunLog(tmp_path).lines())


@pytest.mark.parametrize(
    "fields",
    [
        {"content": False},
        {"domain_norm": False},
        {"route": "output"},
        {"norm": "batch"},
        {"branch_norm": "group"},
        {"dice": "sample"},
    ],
)
def test_ablations_change_what_is_predicted(sites, tmp_path, fields):
    plain, _ = trained(sites, tmp_path / "a")
    other, _ = trained(sites, tmp_path / "b", **fields)
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (m.predictor(m.modules).eval() for m in (plain, other))
    assert not torch.allclose(one.logits(x), two.logits(x), atol=1e-4)


def test_labels_on_translations_reach_the_encoder_only_where_told(sites, drawn):
    from seguro.methods.contract import collate

    for translated, reaches in (("branch", False), ("all", True)):
        method = sites.method(translated=translated, cycle=False)
        batch = collate([drawn(method, slot) for slot in range(2)])
        run = _Run()
        parts = method._across(batch, run)
        parts["translated"].backward()
        gradients = [p.grad for p in method.modules["encoder"].parameters() if p.requires_grad]
        assert any(g is not None and g.any() for g in gradients) == reaches
        assert any(p.grad is not None for p in method.modules["target"].parameters())


class _Run:
    """As much of a run as one loss needs."""

    update, updates, world = 1, 4, 1

    def autocast(self):
        from contextlib import nullcontext

        return nullcontext()

    def mean(self, x):
        return x.detach()


def test_unlabelled_rows_of_the_target_count_for_nothing(sites, drawn):
    from seguro.methods.contract import collate

    method = sites.method(target="site3")
    batch = collate([drawn(method, slot) for slot in range(4)])
    assert (batch.label[3] == IGNORE).all() and (batch.label[1] != IGNORE).any()
    rows = batch.domain == TARGET
    logits = torch.randn(2, sites.plan.classes.n, 32, 32)
    changed = logits.clone()
    changed[1] += torch.randn_like(changed[1])
    torch.testing.assert_close(*(method._fit(z, batch, TARGET, _Run()) for z in (logits, changed)))
    assert int(rows.sum()) == 2


def test_the_encoder_sees_the_view_and_paints_the_image(sites, drawn):
    from seguro.methods.contract import collate

    method = sites.method(stage="source")
    batch = collate([drawn(method, slot) for slot in range(2)])
    other = replace(batch, view=-batch.view)
    run = _Run()
    one, two = (method._within(b, run) for b in (batch, other))
    painted = paint(method.modules, method.config, other.view, batch.domain, batch.domain)[0]
    torch.testing.assert_close(two["reconstruction"], method._image_loss(painted, batch.image))
    assert not torch.equal(one["reconstruction"], two["reconstruction"])


def test_three_predictions_differ_and_the_ensemble_is_as_stated(sites, tmp_path):
    method, _ = trained(sites, tmp_path, target_branch="own", prediction="ensemble")
    predictor = method.predictor(method.modules).eval()
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    intra, inter, both = (predictor.logits(x, way) for way in ("intra", "inter", "ensemble"))
    assert not any(torch.allclose(a, b) for a, b in ((intra, inter), (both, inter), (both, intra)))
    classes = sites.plan.classes
    stated = 0.4 * probabilities(intra, classes) + 0.6 * probabilities(inter, classes)
    torch.testing.assert_close(probabilities(both, classes), stated, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.logits(x), both)


@pytest.mark.parametrize("branch", ["batch", "none"])
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_a_prediction_does_not_depend_on_its_neighbors(sites, tmp_path, norm, branch):
    """Check 25: at least 99.9 % of the pixels agree between batches of one and of eight."""
    method, _ = trained(sites, tmp_path, norm=norm, branch_norm=branch)
    predictor = method.predictor(method.modules).eval()
    x = torch.randn(8, 1, 1, *predictor.tiling.size, generator=torch.Generator().manual_seed(2))
    together = predictor(x).argmax(1)
    alone = torch.cat([predictor(x[i : i + 1]) for i in range(8)]).argmax(1)
    assert float((together == alone).float().mean()) >= 0.999


def test_logits_come_back_on_the_planned_slice(sites):
    method = sites.method()
    predictor = method.predictor(method.modules).eval()
    side = method.frame.side
    assert predictor.tiling.size == (side, side)
    x = torch.randn(1, 1, 1, side, side)
    own = predictor.logits(method.frame.shown(x[:, :, 0]))
    torch.testing.assert_close(predictor(x)[:, :, 0], method.frame.enlarged(own))


@pytest.mark.parametrize(
    ("select", "monitor"),
    [("translated", "min:translated"), ("cycle", "min:cycle"), ("dice", "max:dice"), ("last", None)],
)
def test_what_selects_the_model(sites, select, monitor):
    assert sites.method(select=select).needs.monitor == monitor
    assert sites.method(select=select, stage="source").needs.monitor == "max:dice"


def test_the_domains_numbers_are_those_of_the_generator(sites):
    assert numbers(sites.config(source="site3", target="site1")) == ((2,), (0,))
    assert numbers(sites.config(domains=("a", "b"), source="b", target=None)) == ((1,), (0,))
    assert numbers(sites.config(domains=("a", "b"), source=None, target="a")) == ((1,), (0,))
    assert numbers(sites.config(source=None, target="site2")) == ((0, 2), (1,))
    assert numbers(sites.config(source="site3", target=None)) == ((2,), (0, 1))
    assert numbers(sites.config(domains=("a",), source="a", target=None)) == ((0,), (0,))
    assert numbers(sites.config(domains=(), source=None, target=None)) == ((0,), (0,))
    assert (SOURCE, TARGET) == (0, 1)


def test_a_side_of_several_domains_has_their_mean_code(sites):
    method = sites.method(source=None, target="site2")
    method.optimisers()
    means = method.modules["generator"].mean_code(64, torch.Generator().manual_seed(0))
    found = method.modules["encoder"].mean
    torch.testing.assert_close(found, torch.stack([(means[0] + means[2]) / 2, means[1]]))


def test_sites_that_the_generator_does_not_know(sites):
    with pytest.raises(ConfigError, match="none of the generator's domains"):
        numbers(sites.config(source="x"))


@pytest.mark.parametrize(
    ("fields", "scored"),
    [
        pytest.param({"stage": "source"}, {"site1"}, id="source"),
        pytest.param({"stage": "source", "source": None}, {"site1", "site3"}, id="not the target"),
        pytest.param({"select": "dice"}, {"site2"}, id="target"),
        pytest.param({"select": "dice", "target": None}, {"site2", "site3"}, id="not the source"),
        pytest.param({"source": None, "target": None}, {"site1", "site2", "site3"}, id="nobody named"),
    ],
)
def test_only_sites_that_the_model_segments_may_choose_it(sites, fields, scored):
    needs = sites.method(**fields).needs
    assert {s for s in ("site1", "site2", "site3") if needs.scored(s)} == scored


def test_content_goes_on_from_the_encoder_that_it_starts_from(sites, tmp_path):
    """A second ramp from nothing would take from the source's branch what it was trained to read."""
    method = sites.method()
    method.modules["encoder"].share.fill_(0.5)
    Loop(method, sites.cases, tmp_path, Runtime("cpu", "32"), Limits(3, validations=1), 2, 0).fit()
    lines = [line for line in RunLog(tmp_path).lines() if line["kind"] == "train"]
    assert [line["share"] for line in lines] == pytest.approx([0.5, 0.5 + 0.5 * 2 / 3, 1])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"size": 48}, id="size"),
        pytest.param({"source": "site1", "target": "site1"}, id="same"),
        pytest.param({"l1": 0.0, "ssim": 0.0, "gradient": 0.0}, id="no image loss"),
        pytest.param({"limits": (1.0, 1.0)}, id="limits"),
        pytest.param({"view": NO_AUGMENT.model_copy(update={"mirror": True})}, id="view moves"),
    ],
)
def test_options_that_cannot_be(sites, fields):
    with pytest.raises(ValueError, match=r"size|both|all 0|below|moves"):
        sites.config(**fields)
