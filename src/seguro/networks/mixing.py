"""Mix points: any network that names its activations can mix the samples of a batch at one of them.

`MixPlan` says what is mixed with what and where; a hook does it inside the network, so no network knows of
mixing. Layers may be called as in the papers: "I" or 0 the input, 1 ... n the encoder's stages, "L" the last
hidden activation. The head is affine and the weights sum to one, so mixing the logits, "last", is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError

Hook = Callable[[str, Tensor], Tensor]
"""Called as `hook(name, activation)`; what it returns goes on in place of the activation."""
Skips = Literal["official", "all"]
INPUT, LAST = "input", "last"
ALIASES = {"0": INPUT, "I": INPUT, "L": LAST}


@dataclass(frozen=True)
class MixPlan:
    """What is mixed with what, how much of each, and at which activation.

    At the layer h becomes lam * h + (1 - lam) * h[permutation]; with a mask, the mask takes the place of lam.
    """

    layer: str
    """As `MixPoints.resolve` returns it."""
    lam: Tensor
    """() or (N,) share of a sample's own activation."""
    permutation: Tensor
    """(N,) partner of each sample."""
    skips: Skips = "official"
    """official: of the connections that cross from encoder to decoder only the one that leaves at the layer
    is mixed, shallower ones are not. all: every one that leaves no deeper than the layer (of a lattice: every
    edge that leaves before it) and arrives after it, with the same shares and partners."""
    mask: Tensor | None = None
    """(N, 1, *size) in the size of the image: 1 where a sample keeps its own (CutMix, BCP); None: linear."""

    @property
    def kind(self) -> Literal["linear", "mask"]:
        """Whether samples are blended or cut."""
        return "linear" if self.mask is None else "mask"

    def weight(self, size: Sequence[int]) -> Tensor:
        """Return the share of the own sample, (N or 1, 1, *size or ones), for maps of this size."""
        if self.mask is not None:
            if self.mask.shape[2:] == tuple(size):
                return self.mask
            return F.interpolate(self.mask, size=tuple(size), mode="nearest-exact")
        return self.lam.reshape(-1, 1, *[1] * len(size))

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (N, C, *size) mixed."""
        weight = self.weight(x.shape[2:]).to(x.dtype)
        return weight * x + (1 - weight) * x[self.permutation]


@dataclass(frozen=True)
class MixPoints:
    """The activations of one network, in the order of computation."""

    names: tuple[str, ...]
    stages: tuple[str, ...]
    """What the papers number 1 ... n."""
    skips: Mapping[str, str] | None = field(default_factory=dict)
    """Connection -> the activation that it is a copy of; None where the network does not tell."""
    passing: Mapping[str, tuple[str, str]] | None = None
    """Of a network whose connections leave from its activations (`Lattice`): connection -> the activation
    that it leaves from, and is mixed with, and the one that it arrives at."""
    modules: Mapping[str, str] | None = None
    """Of a network that takes no hook itself: activation -> the path of the module that returns it, which may
    be of none; None of one that does."""

    @property
    def tells(self) -> bool:
        """Whether the network names the connections that go past its layers."""
        return self.skips is not None or self.passing is not None

    def resolve(self, layer: str | int) -> str:
        """Return the name of the activation that `layer` stands for.

        Raises:
            ConfigError: there is none; the message lists the known ones.
        """
        wanted = ALIASES.get(str(layer), str(layer))
        if wanted.isdecimal() and 1 <= int(wanted) <= len(self.stages):
            wanted = self.stages[int(wanted) - 1]
        if wanted not in self.names:
            raise ConfigError(
                f"no layer {layer!r} to mix at; known are I (or 0), 1 to {len(self.stages)}, L, and "
                f"{', '.join(self.names)}"
            )
        return wanted

    def mixed_at(self, layer: str, skips: Skips) -> frozenset[str]:
        """Return every activation that mixing at `layer` replaces.

        Raises:
            ConfigError: skips "all" in a network that does not name the connections past its layers.
        """
        if not self.tells:
            if skips == "all" and layer not in (INPUT, LAST):
                raise ConfigError(
                    f"skips=all at {layer}: this network does not name its skip connections; "
                    "use skips=official, or the layers I and L"
                )
            return frozenset({layer})
        order = {name: i for i, name in enumerate(self.names)}
        at = order[layer]
        crossing = {
            skip
            for skip, source in (self.skips or {}).items()
            if order[source] <= at < order[skip] and (skips == "all" or source == layer)
        }
        if skips == "all":
            edges = (self.passing or {}).items()
            crossing |= {edge for edge, (start, end) in edges if order[start] < at < order[end]}
        return frozenset({layer, *crossing})


def points_of(network: nn.Module, *, in_channels: int, size: Sequence[int]) -> MixPoints:
    """Return the mix points of a network.

    Our own networks tell them. Of any other, e.g. of MONAI, they are the outputs of its children, found by
    one pass of a copy without data.

    Args:
        network: maps (N, in_channels, *size) to logits.
        in_channels: image channels.
        size: of the image that the pass is made with.
    """
    names = getattr(network, "names", None)
    if names is not None:
        stages = getattr(network, "stages", names[1:-1])
        skips, passing = (getattr(network, n, None) for n in ("skips", "passing"))
        return MixPoints(tuple(names), tuple(stages), skips, passing)
    found = _observed(network, in_channels, size)
    return MixPoints((INPUT, *found, LAST), tuple(found), None, None, found)


def forward(network: nn.Module, x: Tensor, points: MixPoints, hook: Hook | None) -> Tensor:
    """Return the logits of `x`, every activation in `points` passed through `hook`."""
    if hook is None:
        return cast(Tensor, network(x))
    if points.modules is None:
        return cast(Tensor, network(x, hook))
    handles = [
        network.get_submodule(path).register_forward_hook(_replacing(name, hook))
        for name, path in points.modules.items()
    ]
    try:
        return hook(LAST, network(hook(INPUT, x)))
    finally:
        for handle in handles:
            handle.remove()


def forward_mixed(network: nn.Module, x: Tensor, points: MixPoints, plan: MixPlan | None) -> Tensor:
    """Return the logits of the batch `x` (N, C, *size), mixed as planned; None: not mixed."""
    if plan is None:
        return cast(Tensor, network(x))
    return forward(network, x, points, mix_hook(points, plan))


def mix_hook(points: MixPoints, plan: MixPlan) -> Hook:
    """Return the hook that mixes as planned and leaves every other activation alone."""
    mixed = points.mixed_at(plan.layer, plan.skips)
    return lambda name, x: plan(x) if name in mixed else x


def _replacing(name: str, hook: Hook) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, inputs, output: hook(name, output)


def _children(module: nn.Module, prefix: str) -> list[str]:
    """Return the paths of the parts; of lists, and of a part that is the only one, their own parts."""
    parts = [(f"{prefix}{name}", part) for name, part in module.named_children()]
    out = []
    for path, part in parts:
        several = isinstance(part, nn.ModuleList | nn.ModuleDict)
        inside = _children(part, f"{path}.") if several or len(parts) == 1 else []
        out += inside or [path]
    return out


def _observed(network: nn.Module, in_channels: int, size: Sequence[int]) -> dict[str, str]:
    """Return activation -> module path of the parts called once with a batch of maps as their answer."""
    calls: list[tuple[str, bool]] = []

    def noting(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            maps = isinstance(output, Tensor) and output.ndim == len(size) + 2 and output.shape[0] == 2
            calls.append((path, maps))

        return note

    import copy

    shadow = copy.deepcopy(network).to("meta")
    paths = _children(shadow, "")
    for path in paths:
        shadow.get_submodule(path).register_forward_hook(noting(path))
    shadow(torch.empty(2, in_channels, *size, device="meta"))
    often = [path for path, _ in calls]
    return {path.removeprefix("network."): path for path, maps in calls if maps and often.count(path) == 1}
