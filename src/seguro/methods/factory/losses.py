"""The four losses of StyleGAN2 (Karras et al., CVPR 2020): non-saturating, R1 and path length."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STEEP = 1e-5
"""How near to 1 a cosine is taken; the slope of its angle has no bound there."""
Gradient = Callable[[Tensor, Tensor], Tensor]
"""(y, x) -> d y.sum() / d x, which can be differentiated again."""


def tell_apart(real: Tensor, made: Tensor) -> Tensor:
    """Return the discriminator's loss, softplus(-D(x)) + softplus(D(G)), of scores (N,) each."""
    return F.softplus(-real).mean() + F.softplus(made).mean()


def deceive(made: Tensor) -> Tensor:
    """Return the generator's loss, softplus(-D(G)), of scores (N,)."""
    return F.softplus(-made).mean()


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared angle, in radians, between rows of unit length (N, d)."""
    cosine = (a * b).sum(1).clamp(-1 + STEEP, 1 - STEEP)
    return cosine.arccos().square().mean()


def r1(scores: Tensor, images: Tensor, gradient: Gradient) -> Tensor:
    """Return half the mean squared norm of the scores' gradient at real images (Mescheder et al. 2018).

    Args:
        scores: (N,) of `images`.
        images: (N, C, Y, X), with requires_grad.
        gradient: of the scores, see `Gradient`.
    """
    return gradient(scores, images).square().sum((1, 2, 3)).mean() / 2


def path_lengths(images: Tensor, codes: Tensor, noise: Tensor, gradient: Gradient) -> Tensor:
    """Return |J^T n| of each image (N,): how far it moves with its codes along the random direction n.

    Args:
        images: (N, C, size, size) made from `codes`.
        codes: (N, n_latent, latent), with gradient.
        noise: as images, standard normal; divided by the size here.
        gradient: of the images, see `Gradient`.
    """
    size = (images.shape[-2] * images.shape[-1]) ** 0.5
    moved = gradient((images * noise).sum() / size, codes)
    return moved.square().sum(2).mean(1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """Return the mean squared distance of path lengths (N,) from their running mean ()."""
    return (lengths - mean.detach()).square().mean()


def followed(mean: Tensor, lengths: Tensor, decay: float) -> Tensor:
    """Return the running mean moved by `decay` towards the mean of `lengths`; no gradient."""
    with torch.no_grad():
        return mean + decay * (lengths.mean() - mean)
