"""Pictures of what a generating method makes of every domain, always from the same styles."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from seguro.core.files import write_bytes
from seguro.core.seeds import derive
from seguro.methods.contract import Maker

COLUMNS = 8
"""Slices of a domain in a picture, the positions in turn."""


def made(method: Maker, modules: nn.ModuleDict, domain: int, n: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return n slices (n, C, Y, X) in [-1, 1] of a domain; the same seed gives the same styles."""
    device = next(modules.parameters()).device
    rng = torch.Generator(device=device)
    rng.manual_seed(derive(seed, "previews", domain))
    images: NDArray[np.float32] = method.made(modules, domain, n, rng).float().cpu().numpy()
    return images


def write(folder: Path, name: str, method: Maker, modules: nn.ModuleDict) -> list[Path]:
    """Write one picture per domain, `folder`/`domain`/`name`.png, and return their paths.

    Sites are named by people: what cannot be a folder of its own in a name becomes "_".
    """
    paths = []
    for number, domain in enumerate(method.domains):
        path = folder / plain(domain) / f"{name}.png"
        write_bytes(path, grid(made(method, modules, number, COLUMNS)))
        paths.append(path)
    return paths


def plain(domain: str) -> str:
    """Return a domain's name as that of a folder: letters, digits, blanks, "-", "_" and dots not in front."""
    return re.sub(r"^\.+|[^\w .-]", "_", domain)


def grid(images: NDArray[np.float32]) -> bytes:
    """Return a PNG with the images (n, C, Y, X), -1 black and 1 white: a column each, a row per channel."""
    n, c, height, width = images.shape
    sheet = images.transpose(1, 2, 0, 3).reshape(c * height, n * width)
    pixels = np.rint((np.clip(sheet, -1, 1) + 1) * 127.5).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
