"""Whole volumes from file to file: back on the own grid, however small, refused where detail is missing."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from seguro.core.errors import DataError
from seguro.core.types import Classes, Three
from seguro.data import phantom
from seguro.data.formats import read_image, write_label
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.model import Model, save_model
from seguro.evaluation.surface import surface_distances
from seguro.inference.ensemble import Ensemble
from seguro.inference.predict import predict
from seguro.inference.tiling import planned_slabs
from seguro.methods.contract import Whole, Windows
from seguro.methods.pfseg.config import PRESETS, PfsegConfig
from seguro.methods.pfseg.method import Pfseg
from seguro.networks import build
from seguro.networks.resunet import ResUNet

CLASSES = Classes(names=("background", "organ"), values=((0,), (1,)))


def plan_of(shape: Three = (32, 48, 48), *, channels: int = 1) -> Plan:
    """A plan of 1.5 mm voxels whose training cases were as fine, intensities as stored."""
    fine = Spread(low=1.5, median=1.5, high=1.5)
    return Plan(
        name="toy", dims=3, spacing=(1.5, 1.5, 1.5), unit="mm",
        channels=tuple(Intensity(name=f"c{i}", scheme="none") for i in range(channels)),
        classes=CLASSES, patch=shape, strides=((2, 2, 2),) * 2, kernels=((3, 3, 3),) * 3, batch=1,
        fingerprint=Fingerprint(
            n_cases=1, n_labelled=1, shape=shape, spacing=(fine,) * 3,
            extent=tuple(Spread(low=1.5 * n, median=1.5 * n, high=1.5 * n) for n in shape),
            intensity=({},) * channels, volume_ml={"organ": Spread(low=1, median=1, high=1)},
            present={"organ": 1},
        ),
        folds=(),
    )  # fmt: skip


def model_of(predictor, plan: Plan) -> Model:
    return Model(predictor.eval().requires_grad_(False), plan, "pfseg", {}, "sha", Path("model"))


@pytest.fixture(scope="module")
def tiny() -> Model:
    """PFSeg, untrained."""
    plan = plan_of()
    torch.manual_seed(0)
    method = Pfseg(PfsegConfig(**(PRESETS["tiny"] | {"size": (32, 48, 48)})), plan, build)
    return model_of(method.predictor(method.modules), plan)


def ball(shape: Three, spacing: tuple[float, float, float]) -> np.ndarray:
    at = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*at, indexing="ij")
    return (z**2 / 20**2 + y**2 / 24**2 + x**2 / 16**2 < 1).astype(np.float32)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_a_perfect_network_gives_the_label_back_on_the_files_own_grid(fake, tmp_path, codes):
    shape, spacing = (23, 71, 66), (2.5, 0.9, 1.1)
    truth = ball(shape, spacing)
    path = phantom.write_nifti(tmp_path / "i.nii.gz", truth, spacing=spacing, codes=codes)
    perfect = fake(Whole((16, 16, 16)), lambda x: torch.cat([0.5 - x, x - 0.5], dim=1) * 20, CLASSES)
    volume = read_image([path])
    label = Ensemble([model_of(perfect, plan_of())]).label(volume)
    write_label(tmp_path / "o.nii.gz", label, volume.source)
    given, found = nib.load(path), nib.load(tmp_path / "o.nii.gz")
    assert found.shape == given.shape and np.array_equal(found.affine, given.affine)
    a, b = given.get_fdata() > 0.5, found.get_fdata() > 0.5
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.97
    assert perfect.seen and all(n % 16 == 0 for n in perfect.seen[0][2:])


@pytest.mark.parametrize("shape", [(1, 3, 17), (7, 90, 5), (33, 49, 47)], ids=str)
def test_any_size_above_one_cell_is_segmented(tiny, tmp_path, shape):
    """Also where an axis is shorter than a cell of the bottleneck: it is padded, and cut back exactly."""
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    path = phantom.write_nifti(tmp_path / "i.nii.gz", image, spacing=(1.5, 1.5, 1.5))
    assert Ensemble([tiny]).label(read_image([path])).shape == shape


def files(folder: Path, shapes: dict[str, Three], spacing=(1.5, 1.5, 1.5)) -> Path:
    """Noise of each shape, as image files."""
    folder.mkdir()
    for name, shape in shapes.items():
        image = np.random.default_rng(0).random(shape).astype(np.float32)
        phantom.write_nifti(folder / f"{name}.nii.gz", image, spacing=spacing)
    return folder


def predicted(folder: Path, source: Path, **config):
    """Predict the files with an untrained model in `folder`."""
    resolved = PfsegConfig(**(PRESETS["tiny"] | {"size": (32, 48, 48)} | config))
    torch.manual_seed(0)
    method = Pfseg(resolved, plan_of(), build)
    save_model(
        folder / "model", method="pfseg", config=resolved.model_dump(mode="json"), plan=plan_of(),
        predictor=method.predictor(method.modules),
    )  # fmt: skip
    return predict([folder / "model"], source, folder / "out")


@pytest.mark.parametrize("shape", [(1, 3, 2), (16, 16, 16)], ids=str)
def test_a_volume_of_one_cell_is_refused_by_name_and_the_others_are_segmented(tiny, tmp_path, shape):
    """Its bottleneck would be normalized to nothing."""
    assert tiny.predictor.network.multiple == (16, 16, 16)
    source = files(tmp_path / "in", {"large": (20, 30, 40), "tiny": shape})
    report = predicted(tmp_path, source)
    assert [c.id for c in report.cases] == ["large"] and list(report.failed) == ["tiny"]
    assert "one cell of the bottleneck" in report.failed["tiny"] and "tiny.nii.gz" in report.failed["tiny"]


def test_a_case_that_a_fixed_crop_does_not_go_with_fails_alone(tmp_path):
    """Joined cell by cell, a crop of fixed size goes with volumes of one padded size only."""
    source = files(tmp_path / "in", {"other": (40, 48, 48), "same": (30, 47, 48)})
    report = predicted(tmp_path, source, inject="concat", crop=(8, 12, 12))
    assert [c.id for c in report.cases] == ["same"]
    assert "(48, 48, 48) needs" in report.failed["other"] and "inject=scatter" in report.failed["other"]


def test_slices_far_thicker_than_in_training_are_flagged(tmp_path):
    """Thick slices alone are not refused: 9 x 1 x 1 mm, trained at 1.5 mm."""
    source = files(tmp_path / "in", {"thick": (12, 60, 60)}, spacing=(9.0, 1.0, 1.0))
    [case] = predicted(tmp_path, source).cases
    assert "spacing along z: 9 mm, 1.5 mm in the training cases" in case.flags


def test_an_image_of_low_resolution_is_refused_by_name(tiny, tmp_path):
    image = np.random.default_rng(0).random((16, 24, 24)).astype(np.float32)
    path = phantom.write_nifti(tmp_path / "i.nii.gz", image, spacing=(3.0, 3.0, 3.0))
    with pytest.raises(DataError, match="full-resolution image is required"):
        Ensemble([tiny]).label(read_image([path]))


def test_other_channels_are_refused(tiny, tmp_path):
    image = np.zeros((8, 8, 8), np.float32)
    paths = [phantom.write_nifti(tmp_path / f"{i}.nii.gz", image, spacing=(1.5,) * 3) for i in "ab"]
    with pytest.raises(DataError, match="2 channel"):
        Ensemble([tiny]).label(read_image(paths))


def test_windows_see_no_further_than_a_window_and_pfseg_sees_everything(tiny, fake):
    torch.manual_seed(0)
    network = ResUNet(in_channels=1, classes=2, strides=[(2, 2, 2)] * 2, width=2).requires_grad_(False)
    reach = []
    for predictor in (fake(Windows((16, 16, 16)), network, CLASSES), tiny.predictor):
        x = torch.rand(1, 32, 48, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        corner = next(iter(planned_slabs(predictor, x)))[2][1, 0, 0, 0]
        corner.backward()
        reach.append(float(x.grad[0, -8:, -8:, -8:].abs().max()))
    assert reach[0] == 0 and reach[1] > 0


def test_distances_are_in_millimetres():
    """Two cubes three slices apart with slices of 2 mm: 6 mm."""
    a, b = np.zeros((20, 12, 12), bool), np.zeros((20, 12, 12), bool)
    a[3:9, 3:9, 3:9] = b[6:12, 3:9, 3:9] = True
    assert surface_distances(a, b, (2.0, 1.0, 1.0)).hd95 == pytest.approx(6.0)
