"""Pictures of an attacked slice: before, after, the difference amplified, and the outlines of all three."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seguro.core.errors import DataError
from seguro.core.files import read_checked
from seguro.report.figures import number
from seguro.report.overlay import crop, draw, edge, encode, finite, resize, tint
from seguro.report.robustness import Picture

CLEAN = (0, 190, 140)
"""Green of the outline before the attack; dotted, so that it is told apart without color too."""
_LONG_SIDE = 300
_DOTS = 8
_MAX_BYTES = 256 << 20
_FLOATS, _LABELS = ("image", "adversarial", "delta"), ("truth", "clean", "attacked")


def read_example(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an example: image, adversarial, delta; truth, clean, attacked; all (H, W).

    Raises:
        DataError: damaged, too large, an array missing, of another shape, or of the wrong kind.
    """
    raw = read_checked(path, limit=_MAX_BYTES).data
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            if sum(i.file_size for i in packed.infolist()) > _MAX_BYTES:
                raise DataError(f"{path}: unpacks to more than {_MAX_BYTES} bytes")
        with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in (*_FLOATS, *_LABELS)}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: not an example of an attack ({error}); run seguro attack again") from error
    shape = arrays["image"].shape
    for name, array in arrays.items():
        kind = "fiu" if name in _FLOATS else "iu"
        if array.ndim != 2 or array.shape != shape or not array.size or array.dtype.kind not in kind:
            raise DataError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected a slice like image {shape}"
            )
    return arrays


def pictures(
    arrays: Mapping[str, NDArray[Any]], spacing: tuple[float, float], *, axis: int | None = None
) -> tuple[Picture, ...]:
    """Return four pictures in true proportions, cropped to the classes, all in the image's own gray window.

    Args:
        arrays: as from `read_example`.
        spacing: of rows and columns.
        axis: canonical axis the slice was cut across, to turn it as a radiologist sees it; None: as stored.
    """
    if axis is not None:  # as overlay.overlay does
        turn = slice(None, None, -1), slice(None, None, -1 if axis != 2 else 1)
        arrays = {name: array[turn] for name, array in arrays.items()}
    labels = [arrays[name] for name in _LABELS]
    classes = sorted({int(v) for a in labels for v in np.unique(a)} - {0, 255})
    shape: tuple[int, int] = arrays["image"].shape  # type: ignore[assignment]
    region = crop(labels, [classes], shape, spacing)
    cut = {name: array[region] for name, array in arrays.items()}
    rows, columns = (n * s for n, s in zip(cut["image"].shape, spacing, strict=True))
    scale = _LONG_SIDE / max(rows, columns)
    size = max(round(columns * scale), 1), max(round(rows * scale), 1)
    low, high = (float(v) for v in np.percentile(finite(arrays["image"]), (1, 99)))
    span = max(high - low, 1e-12)
    factor = amplification(arrays["delta"], span)
    before = _gray((cut["image"] - low) / span, size)
    after = _gray((cut["adversarial"] - low) / span, size)
    change = _gray(0.5 + factor * cut["delta"] / span, size, Image.Resampling.NEAREST)
    outlined = before
    for value in classes:
        truth, clean, attacked = (resize(cut[name] == value, size) > 0.5 for name in _LABELS)
        outlined = draw(outlined, truth, attacked)
        y, x = np.indices(clean.shape)
        outlined = tint(outlined, edge(clean) * ((x // _DOTS + y // _DOTS) % 2 == 0), CLEAN)
    title = f"perturbation \N{MULTIPLICATION SIGN} {number(factor)}" if factor else "perturbation: none"
    named = (("image", before), ("attacked image", after), (title, change), ("outlines", outlined))
    return tuple(_picture(name, canvas) for name, canvas in named)


def amplification(delta: NDArray[Any], span: float) -> float:
    """Return by how much `delta` is multiplied to fill the gray scale: 1, 2 or 5 times a power of ten.

    0 where there is no change.

    Args:
        delta: any shape.
        span: the difference between black and white.
    """
    most = float(np.abs(finite(delta)).max())
    if most <= 0:
        return 0.0
    room = 0.5 * span / most
    power = 10.0 ** np.floor(np.log10(room))
    return float(max(m * power for m in (1.0, 2.0, 5.0) if m * power <= room * (1 + 1e-9)))


def _gray(
    shades: NDArray[Any], size: tuple[int, int], how: Image.Resampling = Image.Resampling.BICUBIC
) -> NDArray[np.float32]:
    """Return (height, width, 3) of 0 to 255 for shades 0 (black) to 1 (white)."""
    known = np.clip(np.nan_to_num(shades.astype(np.float32), nan=0.0), 0, 1)
    canvas = np.asarray(resize(known * 255, size, how))
    return np.clip(canvas, 0, 255)[..., None].repeat(3, axis=2)


def _picture(name: str, canvas: NDArray[np.float32]) -> Picture:
    data, mime = encode(canvas.round().astype(np.uint8))
    return Picture(name, canvas.shape[1], canvas.shape[0], data, mime)
