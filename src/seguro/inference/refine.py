"""The most uncertain blocks of a whole-volume prediction, done again at full resolution by another model.

Most of a volume is easy; a second model that sees few blocks at full resolution costs little and changes the
result only there (as the coarse-to-fine choice of No More Sliding Window, arXiv 2501.10814, and the boundary
refinement that PFSeg's authors began). With many blocks it is a two-stage cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.core.files import sha256_json
from seguro.core.types import Three
from seguro.engine.model import Model
from seguro.inference.decision import probabilities
from seguro.inference.sliding import padded, window_starts
from seguro.inference.whole import slabs
from seguro.methods.contract import Predictor, Support, Whole, Windows

BLOCKS = 8
"""How many unless told otherwise."""
OVERLAP = 0.5
"""Of neighboring candidates for a block."""
CERTAIN = 1e-3
"""Mean entropy, in bits per voxel and class, below which a block is not worth another look."""


class Refined(Predictor):
    """A coarse predictor of whole volumes whose most uncertain blocks a fine one overrules.

    Inside a block the fine logits count fully in the middle half of each axis, and less and less towards its
    faces, so that there are no seams.

    Args:
        coarse: with a Whole tiling.
        fine: with a Windows tiling, for the same classes on the same grid.
        blocks: how many blocks of the fine one's window at most.
    """

    def __init__(self, coarse: Predictor, fine: Predictor, *, blocks: int) -> None:
        super().__init__()
        if not isinstance(fine.tiling, Windows):
            raise ConfigError("blocks are refined by a model that works in windows; this one does not")
        if not isinstance(coarse.tiling, Whole):
            raise ConfigError("blocks of whole-volume predictions are refined; this model does not make such")
        self.coarse = coarse
        self.fine = fine
        self._whole = coarse.tiling
        self.blocks = blocks
        self.size = fine.tiling.size
        self.classes = coarse.classes
        self.tiling = coarse.tiling

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, Z, Y, X) of x (N, C, Z, Y, X)."""
        return torch.stack([self._refined(image, self._coarse(image)) for image in x])

    def _coarse(self, image: Tensor) -> Tensor:
        """Return the coarse logits (n, Z, Y, X) of image (C, Z, Y, X), a tail in parts where it is large."""
        if torch.is_grad_enabled():
            return self.coarse(image[None])[0]  # type: ignore[no-any-return]
        return torch.cat(
            [part for _, _, part in slabs(self.coarse, image, self._whole, device=image.device)], 1
        )

    def _refined(self, image: Tensor, logits: Tensor) -> Tensor:
        """Return the refined logits (n, Z, Y, X) of image (C, Z, Y, X)."""
        with torch.no_grad():
            doubt = entropy(probabilities(logits.float(), self.classes), regions=self.classes.regions)
            corners = most_uncertain(doubt, self.size, self.blocks)
        if not corners:
            return logits
        weight = blend(self.size).to(logits)
        total, mass = torch.zeros_like(logits), torch.zeros_like(logits[:1])
        for corner in corners:
            box = tuple(slice(c, c + n) for c, n in zip(corner, self.size, strict=True))
            block, before = padded(image[(slice(None), *box)], self.size)
            found = self.fine(block[None])[0]
            shape = logits[(slice(None), *box)].shape[1:]
            inside = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
            where = (slice(None), *box)
            total = _added(total, found[(slice(None), *inside)] * weight[inside], where)
            mass = _added(mass, weight[inside][None], where)
        share = mass.clamp(max=1.0)
        return logits * (1 - share) + total / mass.clamp(min=torch.finfo(mass.dtype).tiny) * share


def refined(coarse: Model, fine: Model, *, blocks: int) -> Model:
    """Return `coarse` as a model whose most uncertain `blocks` are done again by `fine`.

    Raises:
        ConfigError: models that do not go together.
    """
    if not isinstance(coarse.predictor.tiling, Whole):
        raise ConfigError(f"{coarse.folder}: only a model of whole volumes (such as pfseg) can be refined")
    if blocks < 1:
        raise ConfigError(f"{blocks} blocks to refine; expected 1 or more")
    if coarse.plan.preprocessing_hash != fine.plan.preprocessing_hash:
        raise ConfigError(
            f"{fine.folder} and {coarse.folder} were planned differently (spacing, intensities or classes); "
            "blocks are refined on one grid: train both in one workspace"
        )
    predictor = Refined(coarse.predictor, fine.predictor, blocks=blocks).eval()
    name = sha256_json([coarse.sha256, fine.sha256, blocks])
    return replace(coarse, predictor=predictor, sha256=name)


def blend(size: Sequence[int]) -> Tensor:
    """Return the weight of a block's voxels, of shape `size`: one in the middle, falling linearly outside."""
    out = torch.ones(())
    for n in size:
        to_face = torch.minimum(torch.arange(n), torch.arange(n - 1, -1, -1)) + 0.5
        out = out[..., None] * (to_face / (n / 4)).clamp(max=1.0)
    return out


def entropy(p: Tensor, *, regions: bool) -> Tensor:
    """Return the entropy (Z, Y, X) in bits of probabilities (n, Z, Y, X).

    Args:
        p: in [0, 1].
        regions: whether each channel is a question of its own; their mean entropy is returned.
    """
    bits = -torch.xlogy(p, p) / torch.log(torch.tensor(2.0))
    if not regions:
        return bits.sum(dim=0)
    return (bits - torch.xlogy(1 - p, 1 - p) / torch.log(torch.tensor(2.0))).mean(dim=0)


def most_uncertain(doubt: Tensor, size: Sequence[int], k: int) -> list[Three]:
    """Return the corners of at most `k` blocks that together cover most of `doubt`, the best first.

    Chosen one after the other from overlapping candidates; what a chosen block covers does not count again.

    Args:
        doubt: (Z, Y, X), not negative.
        size: (Z, Y, X) of a block, cut to the volume.
        k: how many.
    """
    left = doubt.clone()
    size = [min(n, m) for n, m in zip(size, doubt.shape, strict=True)]
    starts = [window_starts(n, p, OVERLAP) for n, p in zip(doubt.shape, size, strict=True)]
    candidates = list(product(*starts))
    enough = CERTAIN * size[0] * size[1] * size[2]
    chosen: list[Three] = []
    for _ in range(min(k, len(candidates))):
        sums = _block_sums(left, candidates, size)
        best = int(sums.argmax())
        if float(sums[best]) <= enough:
            break
        z, y, x = candidates[best]
        left[z : z + size[0], y : y + size[1], x : x + size[2]] = 0
        chosen.append((z, y, x))
    return chosen


def _block_sums(values: Tensor, corners: Sequence[tuple[int, ...]], size: Sequence[int]) -> Tensor:
    """Return the sum over each block, by an integral volume."""
    table = F.pad(values.double(), (1, 0, 1, 0, 1, 0)).cumsum(0).cumsum(1).cumsum(2)
    at = torch.tensor(corners, device=values.device)
    out = torch.zeros(len(at), dtype=table.dtype, device=values.device)
    for corner in product((0, 1), repeat=3):
        sign = (-1) ** (3 - sum(corner))
        z, y, x = (at[:, a] + corner[a] * size[a] for a in range(3))
        out += sign * table[z, y, x]
    return out


def _added(total: Tensor, part: Tensor, where: tuple[slice, ...]) -> Tensor:
    """Return the sum with a part added at a box; a copy only where gradients are recorded."""
    if total.requires_grad or part.requires_grad:
        total = total.clone()
    total[where] += part
    return total
