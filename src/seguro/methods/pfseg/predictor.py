"""What PFSeg deploys: encoder, guidance and segmenting decoder on a whole volume; nothing that restores."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from seguro.core.errors import DataError
from seguro.core.types import Classes, Three
from seguro.methods.contract import Predictor, Support, Whole
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.guidance import most_varied, scattered
from seguro.networks.blocks import pad_to_multiple
from seguro.networks.guidance import central, cut
from seguro.networks.superres import SuperRes, Tail

IMAGES, MAPS = 6, 7
"""Copies of an image's channel, and of the widest map at low resolution, that a forward pass holds at its
peak: 13.3 GiB by these for 400 x 512 x 512 voxels of one channel at width 32, where 13.6 were measured."""
TINY = 1e-6
"""Smallest range of an image that is scaled up."""


def unit(x: Tensor) -> Tensor:
    """Return x (N, C, Z, Y, X) with each channel of each sample from 0 to 1."""
    dims = (2, 3, 4)
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return (x - low) / (high - low).clamp(min=TINY)


def corners_of(
    x: Tensor,
    network: SuperRes,
    config: PfsegConfig,
    places: Tensor | None = None,
    crop: Three | None = None,
) -> Tensor | None:
    """Return the corners (N, K, 3) of the crops that guide x (N, C, Z, Y, X), of a size that is a multiple.

    Args:
        x: the volumes.
        network: knows the crops' size.
        config: the rule.
        places: (N, K, 3) in [0, 1), where the rule is random; None for the same ones every time.
        crop: (Z, Y, X) of the crops; None for what the network takes of volumes of this size.

    Returns:
        None where the network takes the central crop, or has no guidance.
    """
    if config.guidance in ("none", "central"):
        return None
    crop = network.crop_size(x.shape[2:]) if crop is None else crop
    if config.guidance == "variance":
        return most_varied(x, crop, config.crops)
    if places is None:
        drawn = torch.rand((1, config.crops, 3), generator=torch.Generator().manual_seed(0))
        places = drawn.expand(len(x), -1, -1).to(x.device)
    return scattered(places, x.shape[2:], crop)


class WholePredictor(Predictor):
    """One pass over the whole volume.

    `trunk` holds what must see everything at once, `tail` (from low to high resolution) may be computed in
    parts: `forward(x)` is `tail(trunk(x))` for sizes that are a multiple of `tiling.multiple`.
    """

    def __init__(self, network: SuperRes, classes: Classes, config: PfsegConfig) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.config = config
        self.tiling = Whole(network.multiple)

    def refuse_size(self, size: Sequence[int]) -> None:
        """Refuse volumes of `size` (Z, Y, X) that the network cannot take.

        Raises:
            DataError: one that is a single cell of the bottleneck after padding, where normalization leaves
                nothing, or one that a crop of fixed size does not go with.
        """
        multiple = self.network.multiple
        z, y, x = (-(-n // m) * m for n, m in zip(size, multiple, strict=True))
        if (z, y, x) == multiple:
            raise DataError(
                f"{tuple(size)} voxels (z, y, x) of the planned grid are one cell of the bottleneck, which "
                f"holds nothing then; expected more than {multiple} along at least one axis: a model with "
                "pools=fitted or a smaller scale takes smaller volumes"
            )
        if self.network.guide is not None:
            self.network.crop_size((z, y, x))

    def forward_bytes(self, shape: Sequence[int]) -> int:
        """Return about how many bytes an image (C, Z, Y, X) takes at its peak, in float32."""
        low = self.network.shape.width / prod(self.network.scale)
        return int(4 * prod(shape[1:]) * (IMAGES * shape[0] + MAPS * low))

    def trunk(self, x: Tensor) -> Tensor:
        """Return the features (N, width, *low) of x (N, C, *high), `high` a multiple.

        Raises:
            DataError: a size that `refuse_size` refuses.
        """
        self.refuse_size(x.shape[2:])
        x = unit(x)
        return self.network.trunk(x, corners_of(x, self.network, self.config))

    def crops(self, x: Tensor, crop: Three) -> Tensor:
        """Return the crops (N * K, C, *crop) that the rule of guidance takes of x (N, C, Z, Y, X).

        Args:
            x: the images, on the planned grid, not yet scaled; no axis shorter than the crop's.
            crop: (Z, Y, X) voxels.
        """
        x = unit(x)
        corners = corners_of(x, self.network, self.config, crop=crop)
        return cut(x, central(x.shape[2:], crop, len(x)) if corners is None else corners, crop)

    @property
    def tail(self) -> Tail:
        """The last layers, from low to high resolution."""
        return self.network.segment.tail

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, Z, Y, X) of x (N, C, Z, Y, X), any size."""
        padded, undo = pad_to_multiple(x, self.network.multiple)
        return self.tail(self.trunk(padded))[undo]  # type: ignore[no-any-return]
