"""How good made images are, without any network: distance to real ones, domains, learning by heart.

Images are summed up in 32 hand-made numbers: how often each intensity and each edge strength occurs, and the
spread and edge strength at four scales. It stands for no Inception distance and is comparable only
with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError

INTENSITIES = 16
"""Bins of the histogram of intensities, over [-1, 1]."""
EDGES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, np.inf])
"""Borders of the bins of gradient magnitudes, in intensity per pixel."""
SCALES = 4
"""Halvings of the image at which spread and edge strength are taken."""
SHRINK = 0.1
"""Part of a covariance that is replaced by its mean variance: there are few images per number."""
AUDIT_RATIO = 0.9
"""Smallest ratio of nearest-neighbor distances at which made images count as not learned by heart."""
BLOCK = 256

Images = NDArray[np.float32]
"""(N, C, Y, X) in [-1, 1]."""


def descriptors(images: Images) -> NDArray[np.float64]:
    """Return (N, 32) numbers per image, the mean over its channels."""
    n, c = images.shape[:2]
    planes = np.asarray(images, np.float64).reshape(n * c, *images.shape[2:])
    rows = np.stack([_descriptor(plane) for plane in planes]) if len(planes) else np.zeros((0, 32))
    out: NDArray[np.float64] = rows.reshape(n, c, -1).mean(1)
    return out


def _descriptor(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    levels = np.histogram(plane, INTENSITIES, (-1, 1))[0] / plane.size
    strength = _gradient(plane)
    edges = np.histogram(strength, EDGES)[0] / strength.size
    coarse = []
    for _ in range(SCALES):
        coarse += [plane.std(), _gradient(plane).mean()]
        plane = _halved(plane)
    return np.concatenate([levels, edges, coarse])


def _gradient(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    dy, dx = np.diff(plane, axis=0)[:, :-1], np.diff(plane, axis=1)[:-1]
    return np.hypot(dy, dx) if dy.size else np.zeros((1, 1))


def _halved(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    if min(plane.shape) < 4:
        return plane
    height, width = (n // 2 * 2 for n in plane.shape)
    out: NDArray[np.float64] = plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return out


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the Frechet distance of Gaussians fitted to rows a (N, d) and b (M, d).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with the full covariances (Heusel et al. 2017, eq. 6).

    Raises:
        DataError: fewer than two rows in one of them.
    """
    if len(a) < 2 or len(b) < 2:
        raise DataError(f"a distance of {len(a)} and {len(b)} images: at least two of each are needed")
    root = _root(np.cov(a, rowvar=False))
    cross = _root(root @ np.cov(b, rowvar=False) @ root)
    spread = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * cross)
    return max(float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread), 0.0)


def _root(s: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(np.atleast_2d(s))
    out: NDArray[np.float64] = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return out


def _shrunk(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    d = len(covariance)
    even = np.eye(d) * (np.trace(covariance) / d + 1e-6)
    out: NDArray[np.float64] = (1 - SHRINK) * covariance + SHRINK * even
    return out


@dataclass(frozen=True)
class Recognizer:
    """Tells domains apart by descriptors: linear discriminants with one shrunk covariance."""

    scale: NDArray[np.float64]
    """(d,) standard deviation of each number over all real images."""
    weight: NDArray[np.float64]
    """(domains, d)."""
    bias: NDArray[np.float64]
    """(domains,)."""

    @classmethod
    def fitted(cls, real: list[NDArray[np.float64]]) -> Recognizer:
        """Return the classifier learned from descriptors (n, d) of the real images of each domain.

        Raises:
            DataError: fewer than two images of a domain.
        """
        few = [i for i, rows in enumerate(real) if len(rows) < 2]
        if few:
            raise DataError(f"domains number {few} have fewer than two images: too few to tell them apart")
        scale = np.concatenate(real).std(0)
        scale = np.where(scale > 0, scale, 1.0)
        means = np.stack([rows.mean(0) for rows in real]) / scale
        within = np.concatenate([rows / scale - m for rows, m in zip(real, means, strict=True)])
        weight = np.linalg.solve(_shrunk(within.T @ within / len(within)), means.T).T.astype(np.float64)
        return cls(scale, weight, -0.5 * (weight * means).sum(1))

    def domains(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number of the likeliest domain of each row (N, d)."""
        scores = rows / self.scale @ self.weight.T + self.bias
        found: NDArray[np.int64] = scores.argmax(1)
        return found


def singled_out(
    real: NDArray[np.float64], made: NDArray[np.float64], others: Sequence[NDArray[np.float64]]
) -> float:
    """Return how often, of one made image of each domain, that of `made` looks most like the real ones.

    Like is near in the Mahalanobis distance of `real` with a shrunk covariance; ties count half. Chance is
    one over the number of domains. No real image of another domain is needed: a site can say it alone.

    Args:
        real: (n, d) descriptors of the real images of the domain.
        made: (m, d) of images made of it.
        others: (m_i, d) of images made of each other domain, each at least one.

    Raises:
        DataError: fewer than two real images.
    """
    if len(real) < 2:
        raise DataError(f"{len(real)} real images: at least two are needed to say what looks like them")
    scale = np.concatenate([real, made, *others]).std(0)
    scale = np.where(scale > 0, scale, 1.0)
    center, inverse = real.mean(0), np.linalg.inv(_shrunk(np.cov(real / scale, rowvar=False)))

    def far(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        d = (rows - center) / scale
        out: NDArray[np.float64] = np.einsum("ni,ij,nj->n", d, inverse, d)
        return out

    own, part = far(made)[:, None], np.ones(len(made))
    for rows in others:
        other = far(rows)[None]
        part = part * ((own < other) + (own == other) / 2).mean(1)
    return float(part.mean())


@dataclass(frozen=True)
class Audit:
    """How near made images come to the training images, against how near unseen real ones do."""

    made: float
    """Median over made images of the root mean square difference to the nearest training image."""
    held_out: float
    """The same of real images that were not trained on."""
    n_made: int
    n_held_out: int
    n_train: int

    @property
    def ratio(self) -> float:
        """Made over held-out distance; 0 where held-out images repeat training ones, and nothing is known."""
        return self.made / self.held_out if self.held_out > 0 else 0.0

    @property
    def passed(self) -> bool:
        """Whether made images are no nearer to the training images than new patients nearly are."""
        return self.ratio >= AUDIT_RATIO


def audit(made: Images, train: Images, held_out: Images) -> Audit:
    """Return the memorization audit of made images.

    Raises:
        DataError: one of the three is empty.
    """
    counts = {"made": len(made), "training": len(train), "held-out": len(held_out)}
    empty = [name for name, n in counts.items() if n == 0]
    if empty:
        raise DataError(f"an audit needs made, training and held-out images; none are {', '.join(empty)}")
    of_made, of_held_out = (float(np.median(nearest(images, train))) for images in (made, held_out))
    return Audit(of_made, of_held_out, len(made), len(held_out), len(train))


def nearest(images: Images, among: Images) -> NDArray[np.float64]:
    """Return for each image (N,) the root mean square difference to the nearest one in `among`.

    In double precision, block by block: thousands of large slices do not lie in memory twice.
    """
    least, which = np.full(len(images), np.inf), np.zeros(len(images), int)
    for first in range(0, len(among), BLOCK):
        others = _flat(among[first : first + BLOCK])
        norms = (others**2).sum(1)
        for start in range(0, len(images), BLOCK):
            rows, part = _flat(images[start : start + BLOCK]), slice(start, start + BLOCK)
            squares = (rows**2).sum(1, keepdims=True) + norms - 2 * rows @ others.T
            nearer = squares.min(1) < least[part]
            which[part] = np.where(nearer, first + squares.argmin(1), which[part])
            least[part] = np.minimum(least[part], squares.min(1))
    pairs = zip(images, (among[i] for i in which), strict=True)  # differences: a copy is at 0 exactly
    return np.array([np.sqrt(((_flat(a[None]) - _flat(b[None])) ** 2).mean()) for a, b in pairs])


def _flat(images: Images) -> NDArray[np.float64]:
    return np.asarray(images, np.float64).reshape(len(images), -1)
