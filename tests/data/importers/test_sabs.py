"""SABS: images and labels paired by number, the published grid and values, the other package refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.data import check, fingerprint, phantom, planner
from seguro.data.formats import read_image, read_label
from seguro.data.importers import importer, sabs
from seguro.data.patch import PlanOptions
from seguro.data.plan import Intensity
from seguro.data.preprocess import scale

SHAPE = (2, 512, 512)
VALUES = tuple(range(14))


def write(root, n=2, *, values=VALUES, shape=SHAPE):
    rng = np.random.default_rng(0)
    for k in range(n):
        coarse = rng.normal(40, 250 + 50 * k, (shape[0], 16, 16)).astype(np.float32)
        image = np.kron(coarse, np.ones((1, shape[1] // 16, shape[2] // 16), np.float32))
        label = np.kron(rng.choice(values, (shape[0], 16, 16)), np.ones((1, shape[1] // 16, shape[2] // 16)))
        spacing = (3.0 + k, 0.7, 0.7)
        name = f"{3 * k + 1:04d}.nii.gz"
        phantom.write_nifti(root / "img" / f"img{name}", image, spacing=spacing, codes="LAS")
        phantom.write_nifti(
            root / "label" / f"label{name}", label.astype(np.uint8), spacing=spacing, codes="LAS"
        )
    return root


def test_as_published(tmp_path, capsys):
    write(tmp_path / "in")
    out = tmp_path / "out"
    assert main(["import", "sabs", str(tmp_path / "in"), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_cases"] == 2 and any("2 scans, the challenge has 30" in w for w in said["warnings"])
    pooled = []
    for k in range(2):
        image = read_image([out / "imagesTr" / f"sabs_{k:02d}.nii.gz"])
        label = read_label(out / "labelsTr" / f"sabs_{k:02d}.nii.gz", like=image.grid)
        assert image.grid.shape == (2, 256, 256)
        assert image.grid.spacing == pytest.approx((3.0 + k, 1.225, 1.225), abs=1e-5)
        assert (image.array.min(), image.array.max()) == (0.0, pytest.approx(255.0))
        assert set(np.unique(label.array)) == set(VALUES)
        pooled.append(image.array.ravel())
    report = check.check(out, tmp_path / "w", jobs=1)
    assert not report.errors and report.manifest.classes.names == tuple(sabs.LABELS.values())
    measured = [fingerprint.measure(case, report.manifest) for case in report.manifest.of("train")]
    plan = planner.make(report.manifest, measured, PlanOptions(dims=2), step_bytes=lambda *sizes: 1)
    (channel,) = plan.channels
    every = np.concatenate(pooled).astype(np.float64)
    assert channel.scheme == "ct" and channel.low is None
    assert channel.mean == pytest.approx(every.mean(), rel=1e-6)
    assert channel.sd == pytest.approx(every.std(), rel=1e-6)


def test_nothing_is_clipped_by_pooled_scaling():
    x = np.array([[[-1e4, 0.0, 3.0, 1e4]]], np.float32)
    got = scale(x, Intensity(name="pooled", scheme="ct", mean=1.0, sd=2.0))
    assert got.tolist() == [[[-5000.5, -0.5, 1.0, 4999.5]]]


def test_as_scanned_keeps_hounsfield_units_and_grid(tmp_path):
    write(tmp_path / "in", n=1)
    found = importer("sabs")(tmp_path / "in", tmp_path / "out", as_scanned=True)
    before = read_image([tmp_path / "in" / "img" / "img0001.nii.gz"])
    after = read_image([found.folder / "imagesTr" / "sabs_00.nii.gz"])
    assert np.array_equal(before.array, after.array)
    assert np.abs(before.grid.affine - after.grid.affine).max() < 1e-5
    assert json.loads((found.folder / "dataset.json").read_text())["modality"] == {"0": "CT"}


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 1, 6), "no scan has a right kidney or a left kidney"), ((0, 2, 3, 14), "expected 0 to 13")],
    ids=["other package", "other labels"],
)
def test_other_packages_are_refused(tmp_path, values, message):
    write(tmp_path / "in", n=2, values=values)
    with pytest.raises(DataError, match=message):
        importer("sabs")(tmp_path / "in", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_halves_of_pairs_and_other_sizes_are_named(tmp_path):
    root = write(tmp_path / "in", n=2)
    (root / "label" / "label0004.nii.gz").unlink()
    with pytest.raises(DataError, match="1 numbers have an image or a label alone: 0004"):
        importer("sabs")(root, tmp_path / "out")
    small = write(tmp_path / "small", n=1, shape=(2, 64, 64))
    with pytest.raises(DataError, match=r"slices of 64 x 64.*--as-scanned"):
        importer("sabs")(small, tmp_path / "out")
    assert importer("sabs")(small, tmp_path / "out", as_scanned=True).n_cases == 1
