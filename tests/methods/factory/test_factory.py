"""Turns, schedules, adaptive augmentation and the domains of the data factory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from seguro.core.errors import ConfigError, DataError
from seguro.data.frame import frame_of, z_bin
from seguro.data.plan import Intensity
from seguro.methods.factory.augment import Adaptive
from seguro.methods.factory.config import FactoryConfig
from seguro.methods.factory.losses import angle
from seguro.methods.factory.method import MADE_BATCH, Asked
from seguro.networks.clip import Clip
from seguro.networks.descriptor import descriptor


@pytest.mark.parametrize(("how", "both"), [("instead", False), ("beside", True)])
def test_turns_regularize_as_often_as_published(toy, how, both):
    """Of 32 turns each, 2 of the discriminator and 8 of the generator."""
    made = toy(regularize=how)
    logged = [made.turn(u) for u in range(64)]
    r1 = [u for u, names in enumerate(logged) if "r1" in names]
    path = [u for u, names in enumerate(logged) if "path" in names]
    assert r1 == [0, 32]
    assert path == list(range(1, 64, 8))
    assert all(("loss" in logged[u]) == both for u in r1 + path)
    assert all("loss" in logged[u] for u in range(64) if u not in r1 + path)


def test_a_turn_moves_one_player_only(toy):
    made = toy(regularize="beside")
    parts = dict(made.method.modules.items())
    for update, mover in ((0, "discriminator"), (1, "generator")):
        before = {k: torch.cat([p.detach().flatten() for p in m.parameters()]) for k, m in parts.items()}
        made.turn(update)
        after = {k: torch.cat([p.detach().flatten() for p in m.parameters()]) for k, m in parts.items()}
        assert [k for k in parts if not torch.equal(before[k], after[k])] == [mover]


def test_with_mixing_two_styles_meet_in_an_image_and_without_one(toy):
    for mixing, kinds in ((1.0, 2), (0.0, 1)):
        made = toy(mixing=mixing)
        generator = made.method.modules["generator"]
        y = generator.conditions(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
        codes = made.method._codes(Asked(y, None), [torch.Generator().manual_seed(i) for i in range(2)])
        assert [len(torch.unique(c, dim=0)) for c in codes.detach()] == [kinds, kinds]


def test_augmentation_rises_while_the_discriminator_is_too_sure():
    adaptive = Adaptive(0.6, 2, 100)
    for sign, p in ((1.0, 0.0), (0.9, 0.1), (0.2, 0.1), (0.9, 0.0), (0.0, 0.0), (0.0, 0.0)):
        adaptive.observe(torch.tensor(sign), 5)
        assert float(adaptive.p) == pytest.approx(p, abs=1e-6)
    other = Adaptive(0.6, 2, 100)
    other.load_state(adaptive.state())
    assert torch.equal(other.state()["augment"], adaptive.state()["augment"])


def test_augmentation_is_kept_with_the_state(toy):
    made = toy(augment=True, augment_every=1, augment_images=4)
    for update in range(4):
        made.turn(update)
    made.method._adaptive.observe(torch.tensor(1.0), 2)
    state = made.method.state()
    assert float(state["augment"][0]) > 0
    assert float(state["path_mean"]) > 0
    fresh = toy(augment=True)
    fresh.method.load_state(state)
    assert all(torch.equal(fresh.method.state()[k], v) for k, v in state.items())


def test_a_case_belongs_to_the_domain_of_its_site(toy):
    method = toy(domains=("a", "b")).method
    assert [method.domain(s) for s in "ab"] == [0, 1]
    with pytest.raises(DataError, match="case x is of site 'c'"):
        method.domain("c", "x")
    assert toy().method.domain("anything") == 0
    with pytest.raises(ValidationError, match="twice"):
        FactoryConfig(domains=("a", "a"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"size": 48}, "power of two"), ({"group": 3}, "multiple of 2"), ({"limits": (1.0, 1.0)}, "below")],
    ids=["size", "group", "limits"],
)
def test_settings_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        FactoryConfig(**fields)


def test_the_mean_embedding_of_a_site_is_that_of_its_real_images(toy):
    made = toy(embedding="descriptor", domains=("a", "b"))
    for update in range(4):
        made.turn(update)
    images = torch.cat([made.batch(update).image for update in (0, 2)])  # turns of the discriminator
    known = made.method.state()["embeddings"]
    torch.testing.assert_close(known[0, :-1], descriptor(images).sum(0))
    assert known[:, -1].tolist() == [4, 0]
    fresh = toy(embedding="descriptor", domains=("a", "b"))
    fresh.method.load_state(made.method.state())
    assert torch.equal(fresh.method.state()["embeddings"], known)
    assert "embeddings" not in toy().method.state()


def test_half_of_the_turns_are_given_the_embedding_and_the_last_ones_are_guided_by_it(toy):
    made = toy(embedding="descriptor", guide_share=0.5)  # of 100 updates
    logged = [made.turn(u) for u in range(100)]
    guided = [u for u, names in enumerate(logged) if "guide" in names]
    assert all(u % 2 == 1 and u >= 50 for u in guided) and 5 <= len(guided) <= 20
    assert not any(
        "guide" in made.turn(u) for made in [toy(embedding="none", guide_share=1.0)] for u in range(4)
    )


def test_the_guide_moves_the_generator_by_its_weight_and_only_while_refining(toy):
    def moved(**fields):
        made = toy(embedding="descriptor", **fields)
        for update in range(12):
            made.turn(update)
        return torch.cat([p.detach().flatten() for p in made.method.modules["generator"].parameters()])

    without = moved(guide=0.0, guide_share=1.0)
    assert not torch.equal(moved(guide=50.0, guide_share=1.0), without)
    assert torch.equal(moved(guide=50.0, guide_share=0.0), without)


def test_both_networks_read_the_embedding(toy):
    made = toy(embedding="descriptor")
    before = {k: v.clone() for k, v in made.method.modules.state_dict().items() if ".embed." in k}
    assert {k.split(".")[0] for k in before} == {"generator", "discriminator"}
    for update in range(12):
        made.turn(update)
    after = made.method.modules.state_dict()
    assert all(not torch.equal(after[k], v) for k, v in before.items())


def test_weights_of_clip_from_a_file_give_the_embedding(toy, tmp_path, clip_weights):
    file, length = tmp_path / "clip.safetensors", clip_weights["proj"].shape[1]
    save_file(clip_weights, file)
    made = toy(embedding=str(file), embedding_length=length, guide_share=1.0, domains=("a", "b"))
    logged = [made.turn(u) for u in range(12)]
    image = torch.cat([made.batch(u).image for u in range(0, 12, 2)])
    known = made.method.state()["embeddings"][0, :-1]
    torch.testing.assert_close(known, Clip(clip_weights)(image).sum(0), rtol=1e-4, atol=1e-4)
    assert any("guide" in names for names in logged)
    assert not any(
        "resblocks" in name for name in made.method.modules.state_dict()
    )  # it is no part of the model
    with pytest.raises(ConfigError, match=f"set embedding_length={length}"):
        toy(embedding=str(file))
    with pytest.raises(ValidationError, match="never loaded"):
        FactoryConfig(embedding="clip.pt")


def test_the_guide_pulls_made_images_towards_their_site():
    image = torch.zeros(2, 1, 16, 16, requires_grad=True)
    site = descriptor(torch.full((2, 1, 16, 16), 0.6))
    start = angle(descriptor(image), site)
    (slope,) = torch.autograd.grad(start, image)
    assert float(angle(descriptor(image - 0.01 * slope.sign()), site).detach()) < float(start.detach())


def test_slices_are_made_a_few_at_a_time(toy, monkeypatch):
    method = toy().method
    generator, sizes = method.modules["generator"], []
    whole = generator.synthesize
    monkeypatch.setattr(generator, "synthesize", lambda w, **k: sizes.append(len(w)) or whole(w, **k))
    found = method.made(method.modules, 0, 2 * MADE_BATCH + 3, torch.Generator().manual_seed(0))
    assert sizes == [MADE_BATCH, MADE_BATCH, 3]
    assert len(found) == sum(sizes) and float(found.abs().max()) <= 1


def test_a_local_discriminator_does_not_leave(toy):
    shared, local = (toy(discriminator=d).method.shared() for d in ("shared", "local"))
    assert set(shared) - set(local) == {k for k in shared if k.startswith("discriminator.")} != set()


def test_slices_are_spread_evenly_over_the_cases_of_a_domain(toy):
    method = toy(domains=("a", "b")).method
    rng = np.random.default_rng(0)

    class Some(list):
        facts = tuple(SimpleNamespace(site=s, id=s) for s in "aba")

    volumes = [np.full((1, 6, 16, 16), k, np.float32) for k in range(3)]
    cases = Some(
        SimpleNamespace(
            id=f"case{k}", shape=(6, 16, 16), label=None, patch=lambda where, v=v: v[(slice(None), *where)]
        )
        for k, v in enumerate(volumes)
    )
    found = method.seen(cases, 0, 4)
    assert found.shape == (4, 1, 8, 8)
    assert [round(float(x.mean()), 4) for x in found] == [
        round((k + 2.5) / 7 * 2 - 1, 4) for k in (0, 0, 2, 2)
    ]
    assert len(method.seen(cases, 1, 99)) == 6
    sample = method.draw(cases, 0, rng)
    assert sample.image.shape == (1, 8, 8)
    assert sample.z_bin < method.config.z_bins


def test_a_frame_shows_planned_slices_and_gives_them_back(toy):
    frame = frame_of(toy().method.plan, 16)
    assert (frame.side, frame.window) == (16, (1, 16, 16))
    planned = torch.linspace(-2.5, 4.5, 256).view(1, 1, 16, 16)
    shown = frame.shown(planned)
    assert (float(shown.min()), float(shown.max())) == (-1.0, 1.0)
    assert torch.allclose(frame.planned(shown), planned, atol=1e-5)
    assert float(frame.shown(planned + 100).min()) == 1.0
    half = replace(frame, size=8)
    assert torch.allclose(half.planned(half.shown(torch.full((1, 1, 16, 16), 1.5))), torch.tensor(1.5))


def test_a_frame_needs_to_know_black_and_white(toy):
    stored = toy().method.plan.model_copy(update={"channels": (Intensity(name="x", scheme="none"),)})
    with pytest.raises(ConfigError, match="limits"):
        frame_of(stored, 16)
    assert frame_of(stored, 16, limits=(0.0, 5.0)).high == (5.0,)


def test_bins_cover_every_depth_in_order():
    assert [z_bin(i, 8, 4) for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [z_bin(i, 3, 29) for i in range(3)] == [0, 9, 19]
