"""Surface metrics of a large organ, beside MONAI's and a distance transform."""

from __future__ import annotations

import numpy as np

from timed import Pair

SPACING = (2.5, 0.8, 0.8)


def organ(seed: int) -> np.ndarray:
    """A wavy ellipsoid of 1.7 million voxels in 200 x 512 x 512; another seed segments it plausibly."""
    z, y, x = np.ogrid[:200, :512, :512]
    center = (100 + 2 * seed, 250 + 4 * seed, 200 + 5 * seed)
    distance = sum(((v - c) / r) ** 2 for v, c, r in zip((z, y, x), center, (40, 90, 110), strict=True))
    return distance + 0.15 * np.sin(z / 5 + seed) * np.cos(y / 9) * np.sin(x / 11) < 1


def ours_surface(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, ...]:
    from seguro.evaluation.surface import surface_distances

    distances = surface_distances(truth, prediction, SPACING)
    return distances.hd, distances.hd95, distances.assd, distances.nsd(2.0)


def surface_hd95() -> Pair:
    """All four of our surface metrics against MONAI's HD95 alone: the hardest comparison."""
    import monai.metrics
    import torch

    torch.set_num_threads(1)
    truth, prediction = organ(0), organ(1)
    tensors = [torch.from_numpy(m[None, None]) for m in (prediction, truth)]

    def peer() -> float:
        return monai.metrics.compute_hausdorff_distance(
            *tensors, include_background=True, percentile=95, spacing=SPACING
        ).item()

    _same(ours_surface(truth, prediction)[1:2], (peer(),))
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "MONAI HD95", peer)


def surface_all() -> Pair:
    """HD, HD95, ASSD and NSD against MONAI's four functions."""
    import monai.metrics as m
    import torch

    torch.set_num_threads(1)
    truth, prediction = organ(0), organ(1)
    tensors = [torch.from_numpy(a[None, None]) for a in (prediction, truth)]
    options = {"include_background": True, "spacing": SPACING}

    def peer() -> tuple[float, ...]:
        return (
            m.compute_hausdorff_distance(*tensors, **options).item(),
            m.compute_hausdorff_distance(*tensors, percentile=95, **options).item(),
            m.compute_average_surface_distance(*tensors, symmetric=True, **options).item(),
            m.compute_surface_dice(*tensors, [2.0], **options).item(),
        )

    _same(ours_surface(truth, prediction), peer())
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "MONAI, 4 metrics", peer)


def surface_transform() -> Pair:
    """Our k-d tree against scipy's distance transform of the cropped box, both for all four metrics."""
    truth, prediction = organ(0), organ(1)

    def peer() -> tuple[float, ...]:
        from scipy.ndimage import distance_transform_edt

        from seguro.evaluation.surface import SurfaceDistances, border, joint_box

        box = joint_box(truth, prediction)
        a, b = border(truth[box]), border(prediction[box])
        distances = SurfaceDistances(
            distance_transform_edt(~b, sampling=SPACING)[a], distance_transform_edt(~a, sampling=SPACING)[b]
        )
        return distances.hd, distances.hd95, distances.assd, distances.nsd(2.0)

    _same(ours_surface(truth, prediction), peer(), tolerance=1e-6)
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "scipy EDT, cropped", peer)


def _same(ours: tuple[float, ...], theirs: tuple[float, ...], tolerance: float = 1e-3) -> None:
    """Stop when the two sides do not do the same work (MONAI returns float32)."""
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
