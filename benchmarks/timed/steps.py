"""Short steps that are taken often: a patch, an update, a round, a start of the command line."""

from __future__ import annotations

import atexit
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from timed import Pair

if TYPE_CHECKING:
    from deployed_round import Deployed


def patch() -> Pair:
    """Eight 96-cubed patches from the store against reading the compressed scan and cropping it each time."""
    import tempfile

    import nibabel

    from seguro.core.types import Grid
    from seguro.data.store import Stored

    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    volume = rng.normal(size=(1, 160, 256, 256)).astype(np.float32)
    np.save(folder / "case.npy", volume)
    nibabel.save(nibabel.Nifti1Image(volume[0].astype(np.int16), np.eye(4)), folder / "case.nii.gz")
    stored = np.load(folder / "case.npy", mmap_mode="r")
    nothing = np.zeros((0, 4), np.int32)
    case = Stored(
        "case", stored, None, None, np.ones(1, np.float32), nothing, Grid(volume.shape[1:], np.eye(4))
    )
    corners = iter(rng.integers(0, 64, (1000, 3)))

    def where() -> tuple[slice, slice, slice]:
        z, y, x = next(corners)
        return slice(z, z + 96), slice(y, y + 96), slice(x, x + 96)

    def peer() -> object:
        return np.asarray(nibabel.load(folder / "case.nii.gz").dataobj, dtype=np.float32)[where()]

    return Pair(
        "8 x 96^3 of 160x256x256",
        lambda: [case.patch(where()).shape for _ in range(8)],
        "nibabel .nii.gz, cropped",
        lambda: [np.asarray(peer()).shape for _ in range(8)],
    )


def lattice(tricks: frozenset[str] | None = None) -> Pair:
    """One update of the full-width lattice (forward, loss, backward) against the plain formulation."""
    import torch
    from lattice_plain import plain, without

    from seguro.networks.lattice import Lattice

    torch.set_num_threads(1)
    torch.manual_seed(0)
    strides = [(1, 1, 1), (1, 1, 1), (2, 2, 2)]
    fast = Lattice(in_channels=1, classes=3, strides=strides)
    slow = plain(fast)
    x, truth = torch.randn(1, 1, 32, 48, 32), torch.randint(0, 3, (1, 32, 48, 32))

    def step(network: Lattice) -> torch.Tensor:
        network.zero_grad()
        logits = network(x)
        torch.nn.functional.cross_entropy(logits, truth).backward()
        return logits.detach()

    np.testing.assert_allclose(step(fast), step(slow), atol=1e-4)
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, atol=1e-4)

    def ours() -> None:
        with without(tricks or frozenset()):
            step(fast)

    return Pair("1 patch 32x48x32, width 64", ours, "plain layers", lambda: step(slow).shape)


def episodes(size: int, batch: int = 4) -> Pair:
    """One update of the few-shot method as it trains, drawing its episodes included; `size` pixels."""
    import tempfile
    from itertools import count

    import torch

    from seguro import api
    from seguro.data import phantom
    from seguro.data.planner import PlanOptions
    from seguro.data.store import Cases
    from seguro.data.superpixels import compute
    from seguro.engine.limits import Limits
    from seguro.engine.loop import Loop
    from seguro.engine.runtime import Runtime
    from seguro.methods.alpnet.config import PRESETS, AlpnetConfig
    from seguro.methods.alpnet.method import Alpnet
    from seguro.networks import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    data = phantom.write_msd(
        folder / "data", n_labelled=2, n_test=0, shape=(8, 256, 256), spacing=(8.0, 1.25, 1.25)
    )
    store = api.prepare(data, out=folder / "w", options=PlanOptions(dims=2))
    _, manifest, plan = api.plan(data, out=folder / "w")
    windows = {"train_window": 2.0, "test_window": 1.0, "gate": 2.0} if size < 128 else {}
    config = AlpnetConfig.model_validate({**PRESETS["small"], "size": size, **windows})
    cases = Cases(store, manifest.of("train"), plan.classes, hide_labels=True, regions=config.superpixels)
    compute(cases, config.superpixels, axis=plan.slice_axis)
    method = Alpnet(config, plan, build)
    loop = Loop(method, cases, folder / "run", Runtime("cpu"), Limits(updates=1000), batch, 0)
    updates = count()
    return Pair(f"{batch} episodes of 256x256 at {size} px", lambda: loop.run_updates(next(updates), 1))


def federated(save_every_s: float | None = None) -> Pair:
    """One round of the simulator at four sites, all of it but the local training."""
    from federated_round import rounds

    one_round, n = rounds(save_every_s=save_every_s)
    return Pair(f"4 sites, {n / 1e6:.1f} M parameters", one_round)


def deployed() -> Pair:
    """One round of a deployment on this machine, all of it but the local training; see `deployment`."""
    running = deployment()
    return Pair(
        f"{running.n_sites} sites, {running.parameters():.1f} M parameters, loopback", running.next_round
    )


@cache
def deployment() -> Deployed:
    """Return the deployment that the jobs have in common; it ends with this process."""
    from deployed_round import Deployed

    running = Deployed()
    atexit.register(running.stop)
    return running


def startup() -> Pair:
    """The whole process of `seguro --help`."""
    import subprocess

    command = [sys.executable, "-m", "seguro", "--help"]
    return Pair("seguro --help", lambda: subprocess.run(command, check=True, capture_output=True))
