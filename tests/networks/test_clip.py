"""The image half of CLIP with made weights: against layers of torch, and files that do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from seguro.core.errors import ConfigError, DataError
from seguro.networks.clip import MEAN, SD, Clip, clip_from

WIDTH, PATCH, SIDE, DEPTH = 128, 4, 3, 2
"""Of the made weights (tests/conftest.py)."""


def reference(given: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """Return the embedding of images of the size that the network knows, by layers of torch."""
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, SD))
    x = ((image.expand(-1, 3, -1, -1) + 1) / 2 - mean) / sd
    x = F.unfold(x, PATCH, stride=PATCH).mT @ given["conv1.weight"].flatten(1).T
    x = torch.cat([given["class_embedding"].expand(len(x), 1, -1), x], 1) + given["positional_embedding"]

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), given[f"{name}.weight"], given[f"{name}.bias"])

    x = norm(x, "ln_pre")
    for i in range(DEPTH):
        at = f"transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        attention.load_state_dict({k.split(".attn.")[1]: v for k, v in given.items() if f"{at}.attn." in k})
        y = norm(x, f"{at}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.linear(norm(x, f"{at}.ln_2"), given[f"{at}.mlp.c_fc.weight"], given[f"{at}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, given[f"{at}.mlp.c_proj.weight"], given[f"{at}.mlp.c_proj.bias"])
    return F.normalize(norm(x[:, 0], "ln_post") @ given["proj"], dim=1)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_it_is_the_network_that_layers_of_torch_make(prefix, clip_weights):
    image = torch.rand(3, 1, SIDE * PATCH, SIDE * PATCH) * 2 - 1
    # the words' half of a whole model has some of the same names, and other sizes
    more = {"positional_embedding": torch.zeros(77, 6)} if prefix else {}
    found = Clip({**{prefix + k: v for k, v in clip_weights.items()}, **more})(image)
    torch.testing.assert_close(found, reference(clip_weights, image).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_any_size_and_number_of_channels_is_seen_and_can_be_followed_downhill(clip_weights):
    clip, image = Clip(clip_weights), torch.rand(2, 2, 40, 40, requires_grad=True)
    clip(image)[:, 0].sum().backward()
    assert float(image.grad.abs().max()) > 0
    assert not list(clip.parameters()) and not clip.state_dict()  # frozen, and no part of what is saved


def test_what_does_not_fit_is_named(tmp_path, clip_weights):
    save_file(
        {k: v for k, v in clip_weights.items() if k != "ln_post.bias"}, tmp_path / "lacking.safetensors"
    )
    with pytest.raises(DataError, match=r"1 of 32 tensors .* ln_post\.bias"):
        clip_from(tmp_path / "lacking.safetensors")
    with pytest.raises(DataError, match=r"no conv1\.weight"):
        Clip({"fc.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="never loaded"):
        clip_from(tmp_path / "clip.pt")
