"""Networks by name: our own in the table, and any class of `monai.networks.nets` as "monai:Name"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError, ExtraMissing
from seguro.data.plan import Plan
from seguro.networks.blocks import pad_to_multiple
from seguro.networks.classic import ClassicUNet, classic_from_plan
from seguro.networks.lattice import Lattice, lattice_from_plan
from seguro.networks.resunet import resunet_from_plan
from seguro.networks.superres import SuperRes, superres_from_plan
from seguro.networks.unet import UNet, unet_from_plan

TABLE: dict[str, Callable[..., nn.Module]] = {
    "unet": unet_from_plan,
    "unet-classic": classic_from_plan,
    "lattice": lattice_from_plan,
    "superres": superres_from_plan,
    "resunet": resunet_from_plan,
}
__all__ = ["TABLE", "ClassicUNet", "Lattice", "SuperRes", "UNet", "build"]


def build(name: str, *, in_channels: int, classes: int, plan: Plan, **options: Any) -> nn.Module:
    """Return the network `name` with `in_channels` inputs and `classes` outputs for the grid of `plan`.

    Args:
        name: a key of TABLE, or "monai:Name" for a class of `monai.networks.nets`.
        in_channels: image channels.
        classes: output channels.
        plan: gives dimensions, strides, kernels and patch.
        options: passed on to the network; unknown ones are refused.

    Raises:
        ConfigError: unknown name or options.
    """
    if name.startswith("monai:"):
        return _from_monai(name.removeprefix("monai:"), in_channels, classes, plan, options)
    if name not in TABLE:
        raise ConfigError(f"no network {name!r}; known are {', '.join(TABLE)} and monai:Name")
    try:
        return TABLE[name](in_channels=in_channels, classes=classes, plan=plan, **options)
    except TypeError as error:
        raise ConfigError(f"network {name!r} does not take these options ({error})") from error


def _from_monai(name: str, in_channels: int, classes: int, plan: Plan, options: dict[str, Any]) -> nn.Module:
    """Return a MONAI network; what its constructor asks for and the plan knows is set, `options` override."""
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ExtraMissing("monai", "nets", f"network monai:{name}") from error
    kind = getattr(nets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        known = sorted(n for n in dir(nets) if inspect.isclass(getattr(nets, n)) and n.lower() != n)
        raise ConfigError(f"monai.networks.nets has no network {name!r}; it has {', '.join(known)}")
    strides = [s[0] if len(set(s)) == 1 else s for s in plan.strides]
    offers = {
        "spatial_dims": plan.dims,
        "dimensions": plan.dims,
        "in_channels": in_channels,
        "out_channels": classes,
        "num_classes": classes,
        "n_classes": classes,
        "img_size": plan.patch,
        "channels": [16 * 2 ** min(i, 4) for i in range(len(strides) + 1)],
        "strides": strides,
    }
    taken = inspect.signature(kind).parameters
    if name in ("DynUNet",):  # counts the first, undivided level among its strides
        offers |= {
            "strides": [1, *strides],
            "kernel_size": list(plan.kernels),
            "upsample_kernel_size": strides,
        }
    unknown = set(options) - set(taken)
    if unknown:
        raise ConfigError(f"monai:{name} has no options {sorted(unknown)}; it has {', '.join(taken)}")
    arguments = {k: v for k, v in offers.items() if k in taken} | options
    problem = ""
    for multiple in MULTIPLES:
        size = tuple(-(-n // multiple) * multiple for n in plan.patch)
        if "img_size" in taken and "img_size" not in options:
            arguments["img_size"] = size
        problem = _refusal(kind, arguments, size, in_channels, classes)
        if not problem:
            network = kind(**arguments)
            return network if size == tuple(plan.patch) else Padded(network, multiple)
    raise ConfigError(
        f"monai:{name} cannot be built for patches of {plan.patch} ({problem}); "
        "give what it needs with --set network_options.NAME=VALUE"
    )


MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Padding that is tried until a network of unknown total stride accepts the planned patch."""


def _refusal(
    kind: type[nn.Module], arguments: dict[str, Any], size: tuple[int, ...], in_channels: int, classes: int
) -> str:
    """Return why the network does not map `size` to logits of `size`, "" if it does; nothing is computed."""
    try:
        with torch.device("meta"):
            out = kind(**arguments)(torch.empty(2, in_channels, *size))
    except ImportError as error:
        raise ConfigError(
            f"{kind.__name__} needs a further package ({str(error).splitlines()[0]})"
        ) from error
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    if not isinstance(out, torch.Tensor):
        return f"it returns {type(out).__name__} instead of logits"
    return "" if out.shape == (2, classes, *size) else f"it returns {tuple(out.shape)}"


class Padded(nn.Module):
    """A network whose input is padded at its far end to a multiple, and its output cut back.

    Shape: (N, C, *size) -> (N, classes, *size), any size.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the size of `x`."""
        padded, undo = pad_to_multiple(x, [self.multiple] * (x.ndim - 2))
        return cast(Tensor, self.network(padded)[undo])
