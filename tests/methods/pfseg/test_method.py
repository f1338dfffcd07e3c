"""Updates and what is deployed: the published sum of losses, no second decoder, grids that fit the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seguro.core.errors import ConfigError
from seguro.core.types import IGNORE, Classes
from seguro.engine.model import save_model
from seguro.inference import whole
from seguro.inference.decision import file_values, probabilities
from seguro.inference.tiling import planned_slabs
from seguro.methods.pfseg.config import PRESETS, PfsegConfig
from seguro.methods.pfseg.method import Pfseg
from seguro.methods.pfseg.predictor import unit
from seguro.methods.pfseg.sample import WholeVolume
from seguro.networks import build

REGIONS = Classes(names=("whole",), values=((1, 2, 4),), regions=True, paint=(1,))


def outputs(method, batch):
    x = unit(batch.image)
    with torch.no_grad():
        maps = method.network.encode(x)
        return x, method.network.segment(maps), method.restored(maps, x)


def test_the_loss_is_the_published_sum(made, batch_of):
    (method, run), batch = made(), batch_of()
    x, logits, restored = outputs(method, batch)
    parts = method.losses(logits, restored, x, None, batch)
    assert list(parts) == ["cross_entropy", "dice", "restoration", "guided", "target", "similarity"]
    by_hand = parts["cross_entropy"] + parts["dice"]
    by_hand = by_hand + 0.5 * (parts["restoration"] + parts["guided"] + parts["target"] + parts["similarity"])
    logged = method.update(batch, run)
    assert logged["loss"].item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_restored_images_are_at_least_zero(made, batch_of, residual):
    method, _ = made(residual=residual)
    _, _, restored = outputs(method, batch_of())
    assert restored.min() >= 0


@pytest.mark.parametrize("classes", [None, REGIONS], ids=["exclusive", "regions"])
def test_what_is_decided_has_probabilities_and_values_of_the_task(made, plan_of, batch_of, classes):
    """As `seguro predict` decides: exclusive classes add up to one, regions are painted over each other."""
    method, _ = made(plan_of(classes=classes) if classes else plan_of())
    predictor = method.predictor(method.modules).eval()
    p = torch.cat([part for _, _, part in planned_slabs(predictor, batch_of().image[0])], 1)
    with torch.no_grad():
        p = probabilities(10 * (p - p.mean()), predictor.classes)  # both answers occur
    assert p.shape == (1 if classes else 2, 32, 32, 64) and p.min() >= 0 and p.max() <= 1
    if classes is None:
        torch.testing.assert_close(p.sum(0), torch.ones(32, 32, 64))
    label = file_values(p, predictor.classes)
    assert set(np.unique(label)) == {0, 1}
    assert ((label == 1) == (p[-1] > 0.5).numpy()).all()


@pytest.mark.parametrize("shape", [(32, 32, 64), (29, 33, 64)], ids=str)
def test_a_volume_is_one_call_of_each_part_however_it_is_gone_through(made, shape):
    method, _ = made(guidance="variance")
    predictor = method.predictor(method.modules).eval()
    calls = {"encoder": 0, "guide": 0}
    for name in calls:
        getattr(method.network, name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    for limit in (whole.TAIL_BYTES, 0):  # the tail at once, and by planes
        with torch.inference_mode():
            found = whole.slabs(predictor, torch.rand(1, *shape), predictor.tiling, tail_limit=limit)
            parts = [part for _, _, part in found]
        assert sum(p.shape[1] for p in parts) == shape[0] and (len(parts) == 1) is (limit > 0)
    assert calls == {"encoder": 2, "guide": 2}
    with torch.inference_mode():
        assert len(list(planned_slabs(predictor, torch.rand(1, *shape)))) == 1
    assert calls == {"encoder": 3, "guide": 3}


def test_a_residual_begins_as_the_enlarged_image(made, batch_of):
    from seguro.networks.resolution import lowered, raised

    method, _ = made(residual=True)
    x, _, restored = outputs(method, batch_of())
    torch.testing.assert_close(restored, raised(lowered(x, (2, 2, 2)), (2, 2, 2)))


def test_what_is_deployed_holds_nothing_that_restores(made, batch_of):
    (method, _), x = made(), batch_of().image
    predictor = method.predictor(method.modules).eval()
    before = predictor(x)
    assert not any("restorer" in name for name in predictor.state_dict())
    with torch.no_grad():
        for p in method.modules["restorer"].parameters():
            p.normal_()
    assert torch.equal(predictor(x), before)
    n = sum(p.numel() for p in predictor.parameters())
    assert n == sum(p.numel() for p in method.network.parameters())


def test_what_is_saved_at_the_published_width_has_the_published_parameters(plan_of, tmp_path):
    plan = plan_of(shape=(32, 32, 64), classes=REGIONS)
    method = Pfseg(PfsegConfig(), plan, build)
    assert sum(p.numel() for p in method.modules.parameters()) == 14_655_042
    predictor = method.predictor(method.modules)
    config = method.config.model_dump(mode="json")
    save_model(tmp_path, method="pfseg", config=config, plan=plan, predictor=predictor)
    written = [load_file(p) for p in tmp_path.glob("*.safetensors")]
    assert sum(t.numel() for tensors in written for t in tensors.values()) == 9_355_249
    assert not any("restorer" in name for tensors in written for name in tensors)


@pytest.mark.parametrize("rule", ["central", "variance"])
def test_trunk_and_tail_are_the_forward_pass(made, rule):
    method, _ = made(guidance=rule)
    predictor, x = method.predictor(method.modules), torch.rand(1, 1, 32, 64, 64)
    torch.testing.assert_close(predictor.tail(predictor.trunk(x)), predictor(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("ablation-us", []),
        ("ablation-sr", ["restoration"]),
        ("ablation-tel", ["restoration", "target"]),
        ("ablation-ssl", ["restoration", "target", "similarity"]),
        ("paper", ["restoration", "guided", "target", "similarity"]),
    ],
)
def test_each_step_of_the_ablation_adds_what_it_says(made, batch_of, preset, parts):
    method, run = made(**PRESETS[preset])
    logged = method.update(batch_of(), run)
    assert list(logged) == ["loss", "cross_entropy", "dice", *parts]
    assert ("restorer" in method.modules) is bool(parts)
    assert (method.network.guide is not None) is (preset == "paper")


def test_without_crops_the_guided_loss_alone_asks_for_no_second_decoder(made, batch_of):
    none = {"restoration_weight": 0.0, "target_weight": 0.0, "similarity_weight": 0.0}
    method, run = made(guidance="none", **none)
    assert "restorer" not in method.modules
    assert list(method.update(batch_of(), run)) == ["loss", "cross_entropy", "dice"]
    assert "restorer" in made(**none)[0].modules


def test_several_channels_and_classes_with_gaps_in_what_is_known(made, plan_of):
    """Three organs, two channels; the second sample was not looked through for the third."""
    organs = Classes(names=("background", "a", "b", "c"), values=((0,), (1,), (2,), (3,)))
    plan = plan_of(classes=organs, channels=2)
    method, run = made(plan, guidance="random", crops=2, inject="scatter")
    label = torch.randint(0, 4, (2, 32, 32, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    label[0, :4] = IGNORE
    annotated = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    batch = WholeVolume(torch.rand(2, 2, 32, 32, 64), label, annotated, torch.rand(2, 2, 3))
    logged = method.update(batch, run)
    assert all(torch.isfinite(v) for v in logged.values())
    assert method.predictor(method.modules)(batch.image).shape == (2, 4, 32, 32, 64)


def test_a_case_in_which_nothing_was_looked_for_pulls_no_class(made, batch_of):
    method, _ = made()
    batch = batch_of()
    x, logits, restored = outputs(method, batch)
    blank = WholeVolume(batch.image, 0 * batch.label + IGNORE, 0 * batch.annotated, batch.places)
    parts = method.losses(logits, restored, x, None, blank)
    assert parts["dice"] == parts["target"] == parts["similarity"] == parts["cross_entropy"] == 0
    assert parts["restoration"] > 0  # the image needs no label


@pytest.mark.parametrize("classes", [None, REGIONS], ids=["exclusive", "regions"])
def test_the_prior_is_the_classes_part_of_a_training_case(plan_of, classes):
    plan = plan_of(classes=classes) if classes else plan_of()
    method = Pfseg(PfsegConfig(prior="plan", width=4, tail_width=4), plan, build)
    bias = method.network.segment.tail.head.bias.detach()
    p = bias.sigmoid() if classes else bias.softmax(0)[1:]
    assert p.tolist() == pytest.approx([0.03], rel=1e-3)


def test_a_prior_without_volumes_is_refused(plan_of):
    plan = plan_of()
    bare = plan.model_copy(update={"fingerprint": plan.fingerprint.model_copy(update={"volume_ml": {}})})
    with pytest.raises(ConfigError, match="prior"):
        Pfseg(PfsegConfig(prior="plan", width=4), bare, build)


@pytest.mark.parametrize(
    ("shape", "spacing", "scale", "pools", "size"),
    [
        ((128, 192, 192), (1.2, 1, 1), (2, 2, 2), [(2, 2, 2)] * 4, (128, 192, 192)),
        (
            (30, 128, 120),
            (8.0, 1.6, 1.6),
            (1, 2, 2),
            [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
            (32, 128, 128),
        ),
        ((12, 20, 24), (1, 1, 1), (2, 2, 2), [(2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)], (12, 24, 24)),
    ],
    ids=["published", "thick slices", "toy"],
)
def test_fitted_grids(plan_of, shape, spacing, scale, pools, size):
    config = PfsegConfig(scale="fitted", pools="fitted", width=2)
    method = Pfseg(config, plan_of(shape=shape, spacing=spacing, patch=(512, 512, 512)), build)
    assert method.network.scale == scale
    assert list(method.network.pools) == pools
    assert method.size == size


def test_a_large_case_is_cut_to_the_memory_of_the_plan(plan_of):
    whole = Pfseg(PfsegConfig(width=8), plan_of(shape=(64, 128, 256), patch=(512, 512, 512)), build)
    cut = Pfseg(PfsegConfig(width=8), plan_of(shape=(64, 128, 256), patch=(32, 32, 64)), build)
    assert whole.size == (64, 128, 256)
    assert cut.size[2] < 256 and all(n % 32 == 0 for n in cut.size)
    assert not whole.notes and "of the median case's 64 x 128 x 256 voxels" in cut.notes[0]
    names = [name for name in PRESETS if name == "paper" or name.startswith("ablation")]
    presets = [PfsegConfig(**PRESETS[name], width=8) for name in names]
    sizes = {Pfseg(c, plan_of(shape=(64, 128, 256), patch=(32, 32, 64)), build).size for c in presets}
    assert len(presets) == 5 and sizes == {cut.size}  # the ablation sees the same
    assert cut.needs.batch(2) == 1  # so the whole case is one, whatever the plan's batch


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"size": (32, 32, 40)}, "multiples of"),
        ({"size": (32, 32, 32)}, "one cell"),
        ({"scale": 3}, "powers of two"),
        ({"crop": (8, 8, 8)}, "inject=scatter"),
        ({"crop": (64, 8, 8)}, "larger than the volume"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else None,
)
def test_what_cannot_be_built_is_refused_before_training(plan_of, config, problem):
    with pytest.raises(ConfigError, match=problem):
        Pfseg(PfsegConfig(width=4, **config), plan_of(), build)


def test_the_same_seed_gives_the_same_trace(made, batch_of):
    traces = []
    for _ in range(2):
        method, run = made(guidance="random")
        traces.append([method.update(batch_of(), run)["loss"].item() for _ in range(3)])
    assert traces[0] == traces[1] and len(set(traces[0])) == 3


def test_another_batch_does_not_change_a_sample(made, batch_of):
    """Norms, guidance and losses are those of each sample alone."""
    method, _ = made(guidance="variance")
    predictor, x = method.predictor(method.modules), batch_of().image
    both = predictor(x)
    torch.testing.assert_close(predictor(x[1:]), both[1:], rtol=1e-4, atol=1e-5)  # float32 sums
