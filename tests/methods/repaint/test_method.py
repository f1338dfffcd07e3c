"""Source slices are painted in the target's look, labels stay, only the network learns and is deployed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seguro import api
from seguro.core.errors import ConfigError
from seguro.core.seeds import generator
from seguro.core.types import IGNORE
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.sampling import middle_slice
from seguro.data.store import Cases, prepare
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.runtime import Runtime
from seguro.methods.adapt.config import PRESETS as ADAPT
from seguro.methods.adapt.config import AdaptConfig
from seguro.methods.adapt.method import Adapt
from seguro.methods.painter import SOURCE, TARGET, paint
from seguro.methods.repaint.config import PRESETS, RepaintConfig
from seguro.methods.repaint.method import Repaint
from seguro.methods.streams import NO_AUGMENT
from seguro.networks import build

STILL = {"augment": NO_AUGMENT.model_dump(), "p_foreground": 0.0}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A plan, cases by the ids whose labels are hidden, and an adaptation whose content counts."""
    folder = tmp_path_factory.mktemp("repaint")
    data = phantom.write_msd(folder / "data", n_labelled=4, n_test=0, sites=2, shape=(5, 20, 24))
    out, manifest, plan = api.plan(data, out=folder / "w", options=PlanOptions(memory_gib=0.01, dims=2))
    store = prepare(out, manifest, plan)
    cases = manifest.of("train")
    of_target = [c.id for c in cases if c.site == "site2"]
    torch.manual_seed(0)
    fields = {"domains": ("site1", "site2"), "source": "site1", "target": "site2", "view": NO_AUGMENT}
    adapted = Adapt(AdaptConfig.model_validate({**ADAPT["tiny"], **fields}), plan, build)
    adapted.optimisers()
    adapted.modules["encoder"].share.fill_(1.0)
    return plan, lambda hidden=of_target: Cases(store, cases, plan.classes, hidden=hidden), adapted, of_target


def method(setting, **given):
    plan, _, adapted, _ = setting
    torch.manual_seed(1)
    painter = {n: getattr(adapted.config, n) for n in RepaintConfig.inherits}
    config = RepaintConfig.model_validate({**PRESETS["tiny"], **painter, **given})
    found = Repaint(config, plan, build)
    for name in ("generator", "encoder"):
        found.modules[name].load_state_dict(adapted.modules[name].state_dict())
    return found.modules.eval() and found


def test_a_slice_is_painted_as_the_adaptation_paints_it_and_its_label_stays(setting):
    _, cases, adapted, _ = setting
    drawn = [
        method(setting, p_painted=p, **STILL).draw(cases(), 0, generator(3, "draw", 0)) for p in (0.0, 1.0)
    ]
    assert np.array_equal(drawn[0].label, drawn[1].label) and drawn[0].annotated.all()
    frame = adapted.frame
    one = torch.ones(1, dtype=torch.long)
    with torch.no_grad():
        shown = frame.shown(torch.from_numpy(drawn[0].image)[None])
        wanted, _ = paint(adapted.modules.eval(), adapted.config, shown, one * SOURCE, one * TARGET)
    np.testing.assert_allclose(drawn[1].image, frame.planned(wanted.clamp(-1, 1))[0].numpy(), atol=1e-5)
    assert not np.allclose(drawn[0].image, drawn[1].image, atol=0.1)


def test_sometimes_a_slice_is_left_as_it_is(setting):
    cases = setting[1]
    half, never = (method(setting, p_painted=p, **STILL) for p in (0.5, 0.0))
    painted = [
        not np.array_equal(*(m.draw(cases(), 0, generator(k, "draw", 0)).image for m in (half, never)))
        for k in range(12)
    ]
    assert any(painted) and not all(painted)


def test_a_labelled_slice_of_the_target_is_shown_as_it_is(setting):
    _, cases, _, of_target = setting
    found = cases(of_target[1:])
    case = found[[c.id for c in found.facts].index(of_target[0])]
    index = middle_slice(case, 0)
    middle = case.patch((slice(index, index + 1), slice(None), slice(None)))
    ours = method(setting, target_slices="middle", **STILL)
    for k in (1, 5):
        drawn = ours.draw(found, k, generator(k, "draw", k))
        inside = drawn.label != IGNORE
        assert set(np.unique(drawn.image[0][inside])) <= set(np.unique(middle)) and drawn.labelled
    assert not set(np.unique(ours.draw(found, 2, generator(2, "draw", 2)).image)) <= set(np.unique(middle))


def test_images_of_the_target_come_without_label_in_odd_slots(setting):
    _, cases, _, of_target = setting
    found, bare = cases(of_target[1:]), cases()
    ours = method(setting, **STILL)
    for of, slots in ((found, (3, 7)), (bare, (1, 3))):
        for k in slots:
            drawn = ours.draw(of, k, generator(k, "draw", k))
            seen = np.concatenate([of[i].image.ravel() for i, c in enumerate(of.facts) if c.id in of_target])
            assert set(np.unique(drawn.image)) <= set(np.unique(seen))
            assert (drawn.label == IGNORE).all() and not drawn.annotated.any() and not drawn.labelled
    assert [bool(ours.draw(found, k, generator(k, "draw", k)).labelled) for k in range(8)] == [1, 1, 1, 0] * 2
    without = method(setting, guess_weight=0, **STILL)
    assert all(without.draw(bare, k, generator(k, "draw", k)).labelled for k in range(4))


def test_guesses_are_the_averages_but_for_a_box_of_the_slice_before(setting):
    ours, cases = method(setting), setting[1]()
    rows = [ours.draw(cases, k, generator(k, "draw", k)) for k in range(4)]
    batch = SimpleNamespace(
        **{f.name: torch.from_numpy(np.stack([getattr(r, f.name) for r in rows])) for f in fields(rows[0])}
    )
    run = SimpleNamespace(
        averaged={"network": lambda x: torch.eye(3)[2].reshape(1, 3, 1, 1).expand(len(x), -1, *x.shape[2:])},
        autocast=nullcontext,
        slots=range(4),
        mean=lambda x: x,
        rng=lambda *key: torch.Generator().manual_seed(key[-1]),
    )
    image, label, logged = ours.mixed(batch, torch.tensor([1, 3]), run)
    assert logged
    for i, row in enumerate((1, 3)):
        from_before = image[i, 0] == batch.image[row - 1, 0]
        kept = image[i, 0] == batch.views[row, 0, 0]
        assert (from_before | kept).all() and 0.1 < from_before.float().mean() < 0.55
        assert torch.equal(label[i][~from_before], torch.full_like(label[i], 2)[~from_before])
        assert torch.equal(label[i][~kept], batch.label[row - 1][~kept])


def test_without_guesses_the_target_need_not_be_at_hand(setting):
    cases = setting[1]([])
    own = Cases(cases.folder, [c for c in cases.facts if c.site == "site1"], setting[0].classes)
    assert method(setting, guess_weight=0).draw(own, 1, generator(0, "draw")).labelled
    with pytest.raises(ConfigError, match="no case of the target"):
        method(setting).draw(own, 1, generator(0, "draw"))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"average": None}, "guess_weight to 0"), ({"box": (0.5, 0.1)}, "two rising shares")],
)
def test_options_that_exclude_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RepaintConfig.model_validate(given)


def test_only_the_network_learns_and_is_deployed(setting, tmp_path):
    cases = setting[1]
    ours = method(setting)
    before = {k: v.clone() for k, v in ours.modules.state_dict().items()}
    Loop(ours, cases(), tmp_path, Runtime("cpu", "32"), Limits(2, validations=1), 4, 0).fit()
    after = ours.modules.state_dict()
    assert {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])} == {"network"}
    assert {k.split(".")[0] for k in ours.predictor(ours.modules).state_dict()} == {"network"}


def test_any_network_takes_frames_that_are_no_multiple_of_its_stride(setting, tmp_path):
    plan, cases = setting[:2]
    assert 22 % max(plan.multiple)
    other = method(setting, side=22, network="unet-classic", network_options={"width": 4})
    Loop(other, cases(), tmp_path, Runtime("cpu", "32"), Limits(1, validations=1), 4, 0).fit()


def test_without_labels_of_the_source_it_says_so(setting):
    cases = setting[1]
    bare = cases([c.id for c in cases().facts])
    with pytest.raises(ConfigError, match="no labelled case of the source"):
        method(setting).draw(bare, 0, generator(0, "draw"))
