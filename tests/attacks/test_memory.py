"""The memory of whole-volume attacks: what a gradient pass keeps, what is refused, and measured peaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from seguro.attacks.ensemble import Effort, run_suite, suite
from seguro.attacks.memory import kept_bytes, measured, planned_shape, refuse_too_large
from seguro.attacks.subject import volume_subject
from seguro.attacks.threat import Threat, range_box
from seguro.attacks.victim import Victim
from seguro.core.errors import ConfigError
from seguro.core.memory import GIB, reset_peak
from seguro.core.memory import peak as most_bytes
from seguro.core.types import Case, Classes, FileFact
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.methods.contract import Predictor, Slices, Whole, Windows

CLASSES = Classes(names=("b", "x"), values=((0,), (1,)))
SPREAD = Spread(low=1, median=1, high=1)
PLAN = Plan(
    name="toy", dims=3, spacing=(2, 1, 1), unit="mm", channels=(Intensity(name="x", scheme="zscore"),),
    classes=CLASSES, patch=(8, 8, 8), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3)), batch=1,
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=1, shape=(1, 8, 8), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({},), volume_ml={}, present={},
    ),
    folds=(),
)  # fmt: skip


class Two(Predictor):
    """Two convolutions of this width and kernel with a smooth activation between."""

    def __init__(self, tiling, width=4, kernel=3):
        super().__init__()
        self.classes, self.tiling = CLASSES, tiling
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv3d(1, width, kernel, padding=kernel // 2),
            nn.SiLU(),
            nn.Conv3d(width, 2, kernel, padding=kernel // 2),
        )

    def forward(self, x, support=None):
        return self.net(x)


def case(name: str, shape: tuple[int, int, int]) -> Case:
    fact = FileFact(path=f"{name}.nii.gz", size=1, mtime_ns=0, sha256="0" * 64)
    return Case(id=name, patient=name, images=(fact,), shape=shape, spacing=(4.0, 1.0, 1.0))


def test_a_pass_keeps_the_input_and_both_sides_of_the_activation():
    """Convolutions keep their inputs, SiLU keeps its own; weights do not count."""
    predictor = Two(Windows((8, 8, 8)))
    assert kept_bytes(predictor, torch.zeros(1, 1, 8, 8, 8)) == 4 * 8**3 * (1 + 4 + 4)


def test_the_need_grows_with_the_volume_and_not_with_the_window_passes():
    need = measured(Two(Windows((8, 8, 8))), 1, attacks=2)
    small, large = need.volume((8, 8, 8)), need.volume((16, 16, 16))
    assert large - small == pytest.approx(need.voxel * (16**3 - 8**3), abs=1)
    wider = measured(Two(Windows((8, 8, 8)), width=8), 1, attacks=2)
    assert (wider.window, wider.voxel) == (pytest.approx(need.window * 17 / 9, rel=0.01), need.voxel)


def test_a_network_that_sees_the_whole_volume_keeps_all_its_activations():
    windows, whole = (measured(Two(t), 1, attacks=2) for t in (Windows((8, 8, 8)), Whole((4, 4, 4))))
    assert whole.activation == pytest.approx(windows.activation, rel=0.01)
    shape = (80, 80, 80)
    assert whole.volume(shape) == pytest.approx((whole.activation + whole.voxel) * prod(shape), rel=1e-6)


def test_slices_pass_several_at_once():
    need = measured(Two(Slices(0, (8, 8))), 1, attacks=2)
    assert need.window == pytest.approx(4 * need.activation * 64, rel=0.01)


def test_too_large_volumes_are_refused_with_both_figures_and_what_to_do():
    need = measured(Two(Windows((8, 8, 8))), 1, attacks=2)
    cases = [case("small", (16, 16, 16)), case("middle", (100, 512, 512)), case("large", (200, 512, 512))]
    assert planned_shape(cases[2], PLAN) == (400, 512, 512)
    refuse_too_large(cases[:1], PLAN, need, GIB)
    refuse_too_large(cases, PLAN, need, None)
    refuse_too_large(cases, PLAN, need, need.volume((400, 512, 512)))
    with pytest.raises(ConfigError) as error:
        refuse_too_large(cases, PLAN, need, GIB)
    text, most = str(error.value), need.volume((400, 512, 512)) / GIB
    assert text.startswith("large: ") and "400 x 512 x 512" in text and "2 of 3 cases" in text
    assert f"about {most:.0f} GiB" in text and "1 GiB are free on cpu" in text
    assert f"--memory {int(most) + 1}" in text and "leave --whole-volume away" in text


def growth(predictor: Predictor, size: int, name: str) -> int | None:
    """Return the bytes by which this process grows while it attacks a volume of size^3 voxels, if told."""

    def attacked(size: int) -> None:
        rng = np.random.default_rng(0)
        label = rng.integers(0, 2, size=(size,) * 3).astype(np.uint8)
        image = rng.normal(size=(1, *label.shape)).astype(np.float32)
        subject = volume_subject(predictor, image, label, np.ones(1, np.float32))
        low, high = range_box(subject.x)
        run_suite(
            suite(name, CLASSES, Effort(2, 1, 4)), Victim(subject.logits, subject.truth), subject.x,
            Threat((high - low) * 0.05, low, high), seed=0, cases=["a"],
        )  # fmt: skip

    attacked(8)  # code and constants are there
    before = reset_peak()
    attacked(size)
    return None if before is None else most_bytes() - before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quick", "apgd-ce", "fab", "blackbox"])
def test_measured_peaks_lie_below_the_estimate_and_not_far(name):
    """Windows of 24^3 at width 32 over 64^3 voxels, in a process of its own that gives back what it frees.

    Convolutions of one voxel: others take a workspace that does not grow with the volume and hides the rest.
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    told, found = map(json.loads, done.stdout.split())
    if found is None:
        pytest.skip("this system does not say how much memory a process has used at most")
    assert 0.2 * told < found < told


if __name__ == "__main__":
    torch.set_num_threads(1)
    attacked_one = Two(Windows((24, 24, 24)), width=32, kernel=1).eval().requires_grad_(False)
    bound = measured(attacked_one, 1, attacks=2).volume((64, 64, 64))
    sys.stdout.write(f"{bound} {json.dumps(growth(attacked_one, 64, sys.argv[1]))}\n")
