"""The grids PFSeg works on: how far the resolution is lowered, where axes are halved, how much is seen."""

from __future__ import annotations

from collections.abc import Sequence

from seguro.core.errors import ConfigError
from seguro.core.types import Three
from seguro.data.plan import Plan
from seguro.methods.pfseg.config import PfsegConfig
from seguro.networks import unet
from seguro.networks.superres import HALVES, SuperRes, training_bytes

THICK = 2.0
"""From this ratio to the finest spacing on an axis is left as it is while finer ones are halved."""
SHORTEST = 4
"""Voxels that an axis must have to be halved."""


def scale_of(config: PfsegConfig, plan: Plan) -> Three:
    """Return the scale per axis."""
    if config.scale == "fitted":
        finest = min(plan.spacing)
        z, y, x = (1 if s >= THICK * finest else 2 for s in plan.spacing)
        return z, y, x
    if isinstance(config.scale, int):
        return config.scale, config.scale, config.scale
    return config.scale


def pools_of(config: PfsegConfig, plan: Plan, scale: Three) -> tuple[Three, ...]:
    """Return the factors between the encoder's levels."""
    if config.pools == "paper":
        return HALVES
    size = config.size or plan.fingerprint.shape
    low = [-(-n // s) for n, s in zip(size, scale, strict=True)]
    mm = [m * s for m, s in zip(plan.spacing, scale, strict=True)]
    pools: list[Three] = []
    for _ in HALVES:
        may = [a for a in range(3) if low[a] >= SHORTEST]
        finest = min((mm[a] for a in may), default=0.0)
        z, y, x = (2 if a in may and mm[a] < THICK * finest else 1 for a in range(3))
        pools.append((z, y, x))
        low = [-(-n // f) for n, f in zip(low, pools[-1], strict=True)]
        mm = [m * f for m, f in zip(mm, pools[-1], strict=True)]
    return tuple(pools)


def size_of(config: PfsegConfig, plan: Plan, network: SuperRes) -> Three:
    """Return how much of a case is trained on at once: (Z, Y, X), a multiple of what the network needs.

    The median case, unless one of that size takes more memory than a U-Net on the plan's patches and batch:
    then its longest axes are cut, with every preset as with both decoders, so that ablations see the same.

    Raises:
        ConfigError: a size that the network cannot divide, or one that leaves a single cell.
    """
    multiple = network.multiple
    if config.size is not None:
        z, y, x = config.size
        if any(n < m or n % m for n, m in zip(config.size, multiple, strict=True)):
            raise ConfigError(f"size {config.size}: expected multiples of {multiple} (z, y, x)")
    else:
        budget = unet.training_bytes(plan.patch, plan.batch, plan.strides)
        z, y, x = whole_size(plan, network)
        while training_bytes((z, y, x), 1, network, decoders=2) > budget:
            smaller = _cut((z, y, x), multiple, plan.spacing)
            if smaller is None:
                break
            z, y, x = smaller
    if (z, y, x) == multiple:
        raise ConfigError(
            f"a volume of {(z, y, x)} (z, y, x) is one cell of the bottleneck, which holds nothing then; "
            "set pools=fitted, a smaller scale or a larger size"
        )
    return z, y, x


def whole_size(plan: Plan, network: SuperRes) -> Three:
    """Return the median case's size (Z, Y, X) in whole cells of the network."""
    z, y, x = (-(-n // m) * m for n, m in zip(plan.fingerprint.shape, network.multiple, strict=True))
    return z, y, x


def _cut(size: Three, multiple: Three, spacing: Sequence[float]) -> Three | None:
    """Return the size with its longest axis that has more than two cells one cell shorter, None if none."""
    out = list(size)
    for axis in sorted(range(3), key=lambda a: -size[a] * spacing[a]):
        if size[axis] > 2 * multiple[axis]:
            out[axis] -= multiple[axis]
            return out[0], out[1], out[2]
    return None
