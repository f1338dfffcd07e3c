"""The conditional generator and its discriminator: published sizes, shapes, and what each part does."""

from __future__ import annotations

import pytest
import torch

from seguro.core.errors import ConfigError, DataError
from seguro.networks.discriminator import Discriminator, spread
from seguro.networks.equalized import ModulatedConv, blurred, enlarged
from seguro.networks.generator import Generator, one_hot


def small(size: int = 32, domains: int = 3, **more) -> Generator:
    torch.manual_seed(0)
    return Generator(size, 1, domains, 4, 16, 8, 2, full=16, **more)


def codes(generator: Generator, n: int = 2) -> torch.Tensor:
    z = torch.randn(n, generator.latent, generator=torch.Generator().manual_seed(1))
    y = generator.conditions(torch.zeros(n, dtype=torch.long), torch.arange(n))
    return generator.codes(z, y)


def test_at_the_published_size_it_has_the_published_parameters():
    with torch.device("meta"):
        nets = [kind(512, 1, 3, 29, embedding=768) for kind in (Generator, Discriminator)]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [30_591_095, 29_655_488]
    maps = [512] * 10 + [256] * 2 + [128] * 2 + [64] * 2
    assert (nets[0].n_latent, nets[0].feature_channels) == (16, maps)


@pytest.mark.parametrize(("size", "domains", "bins"), [(32, 2, 1), (64, 3, 8), (128, 5, 29)])
def test_shapes_at_every_size(size, domains, bins):
    generator = Generator(size, 2, domains, bins, 8, 4, 1, full=16)
    discriminator = Discriminator(size, 2, domains, bins, 8, 4, full=16)
    y = generator.conditions(torch.tensor([0, domains - 1]), torch.tensor([0, bins - 1]))
    w = generator.spread(generator.codes(torch.randn(2, 8), y))
    assert w.shape == (2, 2 * (size.bit_length() - 1) - 2, 8)
    image, maps = generator.synthesize(w, features=True)
    assert image.shape == (2, 2, size, size)
    assert [m.shape[1] for m in maps] == generator.feature_channels
    assert [m.shape[2] for m in maps] == generator.feature_sizes
    assert discriminator(image, y).shape == (2,)


def test_a_demodulated_convolution_has_unit_variance_under_any_style():
    torch.manual_seed(0)
    out = ModulatedConv(64, 64, 3, 16)(torch.randn(8, 64, 24, 24), 3 * torch.randn(8, 16))
    assert float(out[:, :, 1:-1, 1:-1].var()) == pytest.approx(1.0, rel=0.1)  # the border sees zeros


def test_resampling_keeps_a_constant_image():
    ones = torch.ones(1, 2, 8, 8)
    assert torch.allclose(enlarged(ones)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    assert torch.allclose(blurred(ones, before=2, after=1)[..., 2:-2, 2:-2], torch.ones(1, 2, 4, 4))


def test_noise_is_drawn_stored_or_absent():
    generator = small()
    for layer in generator.styled:
        torch.nn.init.ones_(layer.strength)
    w = generator.spread(codes(generator))
    kinds = {k: generator.synthesize(w, noise=k) for k in ("fixed", "none")}
    assert all(torch.equal(kinds[k], generator.synthesize(w, noise=k)) for k in kinds)
    assert not torch.equal(kinds["fixed"], kinds["none"])
    assert not torch.equal(generator.synthesize(w), generator.synthesize(w))

    def rngs(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    together = generator.synthesize(w, rng=rngs(1, 2))
    alone = generator.synthesize(w[1:], rng=rngs(2))
    assert torch.allclose(together[1:], alone, atol=1e-4)  # convolutions sum in another order


def test_content_replaces_what_the_next_resolution_is_made_from():
    generator = small()
    w = generator.spread(codes(generator))
    plain, maps = generator.synthesize(w, noise="none", features=True)
    nothing = {8: (torch.zeros(2, 8, 8, 8), torch.zeros(2, 1, 8, 8), 0.0)}
    assert torch.equal(generator.synthesize(w, noise="none", content=nothing), plain)
    feature = torch.randn(2, 8, 8, 8)
    full = {8: (feature, torch.zeros(2, 1, 8, 8), 1.0)}
    _, new = generator.synthesize(w, noise="none", content=full, features=True)
    assert torch.equal(new[3], feature)  # the second map of resolution 8
    assert torch.equal(new[2], maps[2])
    half = {8: (feature, torch.full((2, 1, 8, 8), 0.25), 0.5)}
    _, new = generator.synthesize(w, noise="none", content=half, features=True)
    assert torch.allclose(new[3], 0.5 * 0.75 * maps[3] + 0.5 * feature)


def test_the_mean_code_is_the_mean_of_each_domain():
    generator = small(domains=2)
    found = generator.mean_code(40, torch.Generator().manual_seed(3))
    z = torch.randn(40, generator.latent, generator=torch.Generator().manual_seed(3))
    for domain in range(2):
        parts = []
        for z_bin in (0, 1, 2):  # the central three of four
            where = torch.full((40,), z_bin)
            parts.append(generator.codes(z, generator.conditions(torch.full_like(where, domain), where)))
        assert torch.allclose(found[domain], torch.cat(parts).mean(0), atol=1e-5)


def test_styles_mix_at_the_crossover():
    generator = small()
    first, second = torch.zeros(2, 16), torch.ones(2, 16)
    mixed = generator.mixed(first, second, torch.tensor([1, 3]))
    assert mixed[:, :, 0].sum(1).tolist() == [generator.n_latent - 1, generator.n_latent - 3]
    assert mixed[1, :4, 0].tolist() == [0, 0, 0, 1]


def test_an_embedding_of_zeros_is_none():
    generator = small(embedding=5)
    z, y = torch.randn(2, 16), generator.conditions(torch.tensor([0, 1]), torch.tensor([0, 1]))
    rows = torch.stack([torch.zeros(5), torch.ones(5)])
    given, none = generator.codes(z, y, rows), generator.codes(z, y)
    assert torch.allclose(given[0], none[0], atol=1e-5)  # 0.8 x + 0.2 x is x but for rounding
    assert not torch.allclose(given[1], none[1])


def test_the_condition_changes_the_code_and_the_score():
    generator, x = small(), torch.randn(1, 1, 32, 32)
    discriminator = Discriminator(32, 1, 3, 4, 16, 8, full=16)
    z = torch.randn(1, 16)
    ys = [one_hot(torch.tensor([d]), torch.tensor([0]), 3, 4) for d in (0, 1)]
    assert not torch.allclose(generator.codes(z, ys[0]), generator.codes(z, ys[1]))
    assert not torch.allclose(discriminator(x, ys[0]), discriminator(x, ys[1]))


def test_the_spread_is_that_of_each_group_of_neighbors():
    x = torch.stack([torch.zeros(2, 4, 4), 2 * torch.ones(2, 4, 4), *[torch.ones(2, 4, 4)] * 2])
    found = spread(x, 2)
    assert torch.allclose(found[:2], torch.ones(2, 1, 4, 4))  # of 0 and 2
    assert float(found[2:].max()) < 1e-3  # of two equal ones
    assert float(spread(x[:3], 2).max()) < 1e-3  # three are no pairs: each alone


@pytest.mark.parametrize("size", [4, 48])
def test_sizes_that_doubling_does_not_reach_are_refused(size):
    with pytest.raises(ConfigError, match="power of two"):
        Generator(size, 1, 2, 2, 8, 4, 1)


def test_what_does_not_fit_is_named():
    generator = small()
    w = generator.spread(codes(generator))
    with pytest.raises(DataError, match="from 0 to 2"):
        generator.conditions(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(DataError, match="fed at"):
        generator.synthesize(w, content={32: (w, w, 1.0)})
    with pytest.raises(DataError, match="activations"):
        generator.synthesize(w, content={8: (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8), 1.0)})
    with pytest.raises(DataError, match="takes"):
        generator.synthesize(w[:, 1:])
    with pytest.raises(DataError, match="without embeddings"):
        generator.codes(torch.randn(1, 16), torch.ones(1, 7), torch.ones(1, 5))
