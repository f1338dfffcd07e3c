"""How much memory an attack on whole volumes takes, told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from seguro.attacks.subject import window_of
from seguro.core.errors import ConfigError
from seguro.core.memory import GIB, main_memory
from seguro.core.types import Case, Grid, Three
from seguro.data.plan import Plan
from seguro.data.preprocess import grid_of
from seguro.inference.tiling import BATCH_SLICES
from seguro.methods.contract import Predictor, Slices, Whole, Windows

IMAGES, LOGITS, OTHERS = 16, 23, 15
"""Most float32 copies that an attack held at once of an image's channel, of a class's logits, and of one
value a voxel, besides the windows: set so that they bound the peaks measured on 48^3 voxels with one and
three channels, two and six classes, over five objectives, FAB and Square (half to nine tenths of them)."""
BACKWARD = 2.0
"""Peak of a gradient pass over the activations that it keeps."""
PROBE = 64
"""Longest side, in voxels, of what is measured for networks that see the whole volume at once."""


@dataclass(frozen=True)
class Need:
    """Bytes of a whole-volume attack.

    window: of one gradient pass through a window. activation: bytes that each voxel of the window adds to it.
    voxel: bytes that an attack holds for each voxel of the volume. whole: whether the window is the volume.
    """

    window: int
    activation: float
    voxel: float
    whole: bool

    def volume(self, shape: Three) -> int:
        """Return the bytes for a volume of this planned shape (Z, Y, X)."""
        passed = ceil(self.activation * prod(shape)) if self.whole else self.window
        return passed + ceil(self.voxel * prod(shape))

    @property
    def patch(self) -> int:
        """Bytes for an attack on one window."""
        return ceil(self.window * (1 + self.voxel / self.activation))


def measured(
    predictor: Predictor, channels: int, *, attacks: int, device: torch.device | str = "cpu"
) -> Need:
    """Return what an attack on whole volumes needs; one gradient pass through one window is measured.

    Args:
        predictor: in evaluation mode, on `device`.
        channels: of the image.
        attacks: number of attacks whose results are held.
        device: where the model is.
    """
    tiling, whole = predictor.tiling, isinstance(predictor.tiling, Whole)
    size = window_of(predictor, (1, 1, 1))
    if isinstance(tiling, Whole):
        shape = [max(PROBE // m, 1) * m for m in tiling.multiple]
        size = (shape[0], shape[1], shape[2])
    if isinstance(tiling, Slices):
        size = (1, *tiling.size)
    kept = max(kept_bytes(predictor, torch.zeros(1, channels, *size, device=device)), 1)
    at_once = BATCH_SLICES if isinstance(tiling, Slices) else 1
    # each window's input is kept until the backward pass; slices are views of the image
    windows = (1 - tiling.overlap) ** -3 if isinstance(tiling, Windows) else 1.0
    floats = (IMAGES + windows + attacks) * channels + LOGITS * predictor.classes.n + OTHERS
    return Need(ceil(BACKWARD * kept) * at_once, BACKWARD * kept / prod(size), 4.0 * floats, whole)


def kept_bytes(predictor: Predictor, x: Tensor) -> int:
    """Return the bytes that a forward pass of x (N, C, Z, Y, X) keeps for the gradient, weights left out."""
    weights = {t.untyped_storage().data_ptr() for t in (*predictor.parameters(), *predictor.buffers())}
    kept: dict[int, tuple[Tensor, int]] = {}  # the tensor too, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        predictor(x.requires_grad_(True))
    return sum(n for address, (_, n) in kept.items() if address not in weights)


def free_bytes(device: torch.device | str) -> int | None:
    """Return the memory that is free on a device, None where nobody says."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = main_memory()
    return found.available if found and device.type == "cpu" else None


def planned_shape(case: Case, plan: Plan) -> Three:
    """Return the planned (Z, Y, X) of a case by its manifest entry; no file is read."""
    return grid_of(Grid(case.shape, np.diag([*case.spacing[::-1], 1.0]), case.unit), plan).shape


def refuse_too_large(
    cases: Sequence[Case], plan: Plan, need: Need, free: int | None, *, device: torch.device | str = "cpu"
) -> None:
    """Refuse cases whose whole volumes need more memory than is free; nothing happens where nobody knows.

    Args:
        cases: all of the attack's.
        plan: of the model.
        need: see `measured`.
        free: bytes that may be used, see `free_bytes`.
        device: named in the message.

    Raises:
        ConfigError: names the cases, both figures, and what to do.
    """
    if free is None:
        return
    sized = [(need.volume(planned_shape(c, plan)), c) for c in cases]
    large = sorted(((n, c) for n, c in sized if n > free), key=lambda pair: (-pair[0], pair[1].id))
    if not large:
        return
    most, case = large[0]
    more = f" ({len(large)} of {len(sized)} cases need more than that)" if len(large) > 1 else ""
    shape = " x ".join(map(str, planned_shape(case, plan)))
    raise ConfigError(
        f"{case.id}: --whole-volume needs about {_gib(most)} for {shape} voxels, and {_gib(free)} are free "
        f"on {torch.device(device)}{more}; attack one patch a case (leave --whole-volume away: about "
        f"{_gib(need.patch)}), attack where there is more memory, or, if this much may be used, add --memory "
        f"{ceil(most / GIB)}"
    )


def _gib(n: int) -> str:
    return f"{n / GIB:.2g} GiB" if n < 10 * GIB else f"{n / GIB:.0f} GiB"
