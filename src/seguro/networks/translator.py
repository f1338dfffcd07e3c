"""The encoder and the label branch around a frozen generator (phase 2 of RobustMedSeg, Galati et al. 2024).

An image becomes codes, which say what it looks like, and content features, which say where things are. The
generator paints the content in the look of the domain that is asked for, and a classifier of its feature maps
labels every pixel. Two domains, two sets of normalization, one set of convolutions.

Parameters as published (512 pixels): backbone 30.8 million, heads of the codes 70.8, content 12.0, each label
branch 0.78.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.networks.equalized import SLOPE, pixel_norm

Norm = Literal["batch", "group", "instance"]
"""batch: statistics of the batch while training, running ones after. group, instance: of each image alone."""
BranchNorm = Literal["batch", "group", "instance", "none"]
"""none: maps as the generator made them; a slice without any class is not stretched to look like one."""
GROUPS = 8
POOLED = 3
"""Pixels across to which every stage is averaged before the codes are read from it."""

KEPT = ("own", "num_batches_tracked")
"""Of a normalization: what differs between domains, and what has no effect."""

Contents = dict[int, tuple[Tensor, Tensor]]
"""Resolution r -> (feature (N, C, r, r), already times its mask, and the mask (N, 1, r, r) in [0, 1))."""


class DomainNorm(nn.Module):
    """A normalization whose scale and shift (and running statistics) are each domain's own.

    Scale and shift are those of all domains plus each one's difference, zero at first: a domain that was not
    seen yet starts from what the others learned.

    Shape: x (N, channels, Y, X), domain (N,) integers -> as x.
    """

    def __init__(self, channels: int, domains: int, kind: Norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.own = nn.Parameter(torch.zeros(domains, 2, channels))
        self.plain = nn.ModuleList(
            plain_norm(channels, kind, affine=False) for _ in range(domains if kind == "batch" else 1)
        )

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Return x normalized, scaled and shifted as its domain is."""
        scale, shift = self.own[domain].unbind(1)
        scale, shift = self.weight + scale, self.bias + shift  # (N, channels)
        return self._normalized(x, domain) * scale[:, :, None, None] + shift[:, :, None, None]

    def _normalized(self, x: Tensor, domain: Tensor) -> Tensor:
        if len(self.plain) == 1:
            return self.plain[0](x)  # type: ignore[no-any-return]
        out = torch.empty_like(x)
        for index in torch.unique(domain).tolist():
            rows = domain == index
            out[rows] = self.plain[index](x[rows])
        return out


def plain_norm(channels: int, kind: BranchNorm, *, affine: bool = True) -> nn.Module:
    """Return a normalization of `channels` that knows no domain."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=affine)
    groups = channels if kind == "instance" else gcd(GROUPS, channels)
    return nn.GroupNorm(groups, channels, affine=affine)


class Residual(nn.Module):
    """Norm, convolution, norm, PReLU, convolution, norm, beside a shortcut (IResNet, Duta et al. 2021).

    Shape: x (N, cin, Y, X) -> (N, cout, Y / stride, X / stride).
    """

    def __init__(self, cin: int, cout: int, stride: int, domains: int, norm: Norm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(DomainNorm(c, domains, norm) for c in (cin, cout, cout))
        self.first = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.bend = nn.PReLU(cout)
        self.second = nn.Conv2d(cout, cout, 3, stride, padding=1, bias=False)
        same = stride == 1 and cin == cout
        self.shortcut = None if same else nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.shortcut_norm = None if same else DomainNorm(cout, domains, norm)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.first(self.norms[0](x, domain))
        y = self.second(self.bend(self.norms[1](y, domain)))
        y = self.norms[2](y, domain)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), domain)
        return y + x  # type: ignore[no-any-return]


class Content(nn.Module):
    """Norm, convolution, norm, PReLU, convolution, norm: a stage's output as content of the generator.

    Shape: x (N, cin, r, r) -> (N, cout, r, r).
    """

    def __init__(self, cin: int, cout: int, domains: int, norm: Norm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(DomainNorm(c, domains, norm) for c in (cin, cout, cout))
        self.first = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.bend = nn.PReLU(cout)
        self.second = nn.Conv2d(cout, cout, 3, padding=1, bias=False)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Return the content features."""
        y = self.first(self.norms[0](x, domain))
        y = self.second(self.bend(self.norms[1](y, domain)))
        return self.norms[2](y, domain)  # type: ignore[no-any-return]


class Gate(nn.Module):
    """Decides, as a gated recurrent unit from coarse to fine, what of the content enters the generator.

    Args:
        coarse: channels of the state from the next coarser resolution; None at the coarsest.
        channels: of the content at this resolution.

    Shape: content (N, channels, r, r), state (N, coarse, r/2, r/2) or None -> feature and state
        (N, channels, r, r), mask (N, 1, r, r) in [0, 1).
    """

    def __init__(self, coarse: int | None, channels: int) -> None:
        super().__init__()
        self.carry = nn.Conv2d(coarse or channels, channels, 3, padding=1)
        self.reset = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.mask = nn.Conv2d(2 * channels, 1, 3, padding=1)
        nn.init.ones_(self.mask.bias)  # type: ignore[arg-type]  # open at first: a closed ReLU learns nothing

    def forward(self, content: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (feature times mask, mask, state for the next finer resolution)."""
        if state is None:
            state = content
        else:
            state = F.interpolate(state, scale_factor=2, mode="bilinear")
        state = F.leaky_relu(self.carry(state), SLOPE)
        both = torch.cat([state, content], dim=1)
        kept = torch.sigmoid(self.reset(both)) * state
        mask = torch.tanh(F.relu(self.mask(both)))
        fused = self.fuse(torch.cat([kept, content], dim=1))
        return fused * mask, mask, kept


class Encoder(nn.Module):
    """Reads the codes and the content of an image, for a generator of `size`.

    Args:
        size: of the generator's images, a power of two.
        channels: of the image.
        n_latent: codes of one image, an even number.
        latent: length of a code.
        widths: channels of the generator by resolution.
        domains: that are told apart, source and target.
        blocks: residual blocks of each stage; one resolution of content for each.
        width: channels of the first stage, doubled at each one after, at most eight times.
        reduction: `size` over the finest resolution of content; the image is seen at twice that resolution.
        norm: see `Norm`.

    Raises:
        ConfigError: more stages than the image can be halved.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        n_latent: int,
        latent: int,
        widths: Mapping[int, int],
        *,
        domains: int = 2,
        blocks: Sequence[int] = (3, 4, 14, 3),
        width: int = 64,
        reduction: Literal[2, 4] = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.resolutions = tuple(size // reduction >> i for i in range(len(blocks)))
        if not blocks or min(blocks) < 1 or self.resolutions[-1] < 4:
            raise ConfigError(
                f"an encoder of {len(blocks)} stages with blocks {tuple(blocks)} for images of {size} pixels "
                f"has content at {self.resolutions}; expected at least one block each, and nothing below 4"
            )
        self.seen = 2 * size // reduction
        self.n_latent, self.latent, self.domains = n_latent, latent, domains
        wide = [width * min(2**i, 8) for i in range(len(blocks))]
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = DomainNorm(width, domains, norm)
        self.stem_bend = nn.PReLU(width)
        self.stages, self.contents, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        cin, coarser = width, [*(widths[r] for r in self.resolutions[1:]), None]
        for n, cout, r, coarse in zip(blocks, wide, self.resolutions, coarser, strict=True):
            stage = [
                Residual(cin if i == 0 else cout, cout, 2 if i == 0 else 1, domains, norm) for i in range(n)
            ]
            self.stages.append(nn.ModuleList(stage))
            self.contents.append(Content(cout, widths[r], domains, norm))
            self.gates.append(Gate(coarse, widths[r]))
            cin = cout
        self.heads = nn.Linear(sum(wide) * POOLED**2, n_latent * latent)
        self.look = nn.Linear(domains, n_latent // 2 * latent)
        """Embedding of the domain that is asked for; two layers of the generator share each part."""
        self.register_buffer("mean", torch.zeros(domains, latent))
        """Mean code of each domain, that the codes are differences from; of the generator, not learned."""
        self.register_buffer("share", torch.zeros(()))
        """How much of the generator's own activations the content has taken the place of, 0 to 1."""

    def forward(self, image: Tensor, domain: Tensor, wanted: Tensor) -> tuple[Tensor, Contents]:
        """Return codes (N, n_latent, latent) and the content.

        Args:
            image: (N, channels, size, size) in [-1, 1].
            domain: (N,) whose normalization is used.
            wanted: (N,) in whose look the image is to be painted.
        """
        x = F.adaptive_avg_pool2d(image, self.seen)
        x = self.stem_bend(self.stem_norm(self.stem(x), domain))
        outputs = []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]  # a ModuleList
                x = block(x, domain)
            outputs.append(x)
        return self._codes(outputs, wanted), self._content(outputs, domain)

    def start_from(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Take the backbone from an IResNet that was trained elsewhere (ArcFace, as published); return names.

        Every domain starts from its normalization; codes and content are left as they are, and so is the
        first convolution where images have other channels.

        Args:
            weights: with the names of insightface's IResNet; its head (`bn2`, `fc`, `features`) is left out.

        Raises:
            DataError: names or shapes that do not agree; nothing is loaded in part.
        """
        new: dict[str, Tensor] = {}
        for own, theirs in self._twins():
            for name, value in self.get_submodule(own).state_dict().items():
                kind = name.removeprefix("plain.").split(".", 1)[-1] if "plain." in name else name
                new |= {} if kind in KEPT else {f"{own}.{name}": weights.get(f"{theirs}.{kind}", value[:0])}
        own_state = self.state_dict()
        first = weights.get("conv1.weight")
        if first is not None and first.shape[1] != own_state["stem.weight"].shape[1]:
            del new["stem.weight"]
        wrong = sorted(name for name, value in new.items() if value.shape != own_state[name].shape)
        if first is None or wrong:
            raise DataError(
                f"weights of an encoder: {len(wrong)} of {len(new)} tensors are not there or of another "
                f"shape, first {wrong[0] if wrong else 'conv1.weight'}; give those of an IResNet of the same "
                "blocks and width (IResNet-50 for preset paper)"
            )
        self.load_state_dict({**own_state, **{k: v.to(own_state[k].dtype) for k, v in new.items()}})
        return sorted(new)

    def _twins(self) -> list[tuple[str, str]]:
        """Return the parts of the backbone, and what insightface calls them."""
        out = [("stem", "conv1"), ("stem_norm", "bn1"), ("stem_bend", "prelu")]
        for i, stage in enumerate(self.stages):
            for j in range(len(stage)):  # type: ignore[arg-type]  # a ModuleList
                own, theirs = f"stages.{i}.{j}", f"layer{i + 1}.{j}"
                out += [(f"{own}.norms.{k}", f"{theirs}.bn{k + 1}") for k in range(3)]
                out += [(f"{own}.first", f"{theirs}.conv1"), (f"{own}.bend", f"{theirs}.prelu")]
                out += [(f"{own}.second", f"{theirs}.conv2")]
            short = f"stages.{i}.0.shortcut"
            out += [
                (short, f"layer{i + 1}.0.downsample.0"),
                (f"{short}_norm", f"layer{i + 1}.0.downsample.1"),
            ]
        return out

    def _codes(self, outputs: Sequence[Tensor], wanted: Tensor) -> Tensor:
        pooled = torch.cat([F.adaptive_avg_pool2d(x.float(), POOLED).flatten(1) for x in outputs], dim=1)
        codes = self.heads(pooled).view(-1, self.n_latent, self.latent)
        look = self.look(F.one_hot(wanted, self.domains).to(codes.dtype))
        look = pixel_norm(look.view(-1, self.latent)).view(len(codes), -1, self.latent)
        codes = codes * look.repeat_interleave(2, dim=1)
        return codes + self.get_buffer("mean")[wanted].unsqueeze(1)  # type: ignore[no-any-return]

    def _content(self, outputs: Sequence[Tensor], domain: Tensor) -> Contents:
        found: Contents = {}
        state: Tensor | None = None
        for level in reversed(range(len(outputs))):
            content = self.contents[level](outputs[level], domain)
            feature, mask, state = self.gates[level](content, state)
            found[self.resolutions[level]] = (feature, mask)
        return found


class LabelBranch(nn.Module):
    """A classifier of every pixel by the feature maps that the generator painted it from.

    Args:
        channels: of each feature map.
        classes: outputs.
        size: of the output.
        hidden: channels that every map is brought to; a quarter of them in the layer after.
        norm: see `BranchNorm`.

    Shape: maps [(N, channels[i], r_i, r_i)] -> logits (N, classes, size, size).
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        size: int,
        *,
        hidden: int = 128,
        norm: BranchNorm = "batch",
    ) -> None:
        super().__init__()
        self.size = size
        inner = max(hidden // 4, 1)
        self.maps = nn.ModuleList(nn.Conv2d(c, hidden, 1) for c in channels)
        self.head = nn.Sequential(
            nn.ReLU(),
            plain_norm(hidden, norm),
            nn.Conv2d(hidden, inner, 1),
            nn.ReLU(),
            plain_norm(inner, norm),
            nn.Conv2d(inner, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits."""
        sums: dict[int, Tensor] = {}  # by resolution: enlarging a sum is the sum of what is enlarged
        for read, one in zip(self.maps, maps, strict=True):
            r = one.shape[-1]
            sums[r] = sums[r] + read(one) if r in sums else read(one)
        parts = [x if r == self.size else self._enlarged(x) for r, x in sums.items()]
        return self.head(reduce(torch.add, parts))  # type: ignore[no-any-return]

    def _enlarged(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        eye = torch.eye(n, device=x.device, dtype=x.dtype)[None, None]
        rows = F.interpolate(eye, (self.size, n), mode="bilinear", align_corners=True)[0, 0]
        return rows @ x @ rows.t()  # a linear map; as matrices half the time of interpolating on a CPU
