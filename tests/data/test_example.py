import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seguro.core.errors import DataError, ExtraMissing
from seguro.data import example

pytest.importorskip("nilearn", reason="the demo's template is in the nilearn package (extra 'demo')")

PLAIN = example.Site("plain", (6.0, 6.0, 6.0), "RAS", 0.0, gamma=1.0, noise=0.0, scale=1000.0)


@pytest.fixture(scope="module")
def template() -> example.Template:
    return example.load_template()


def still(site: example.Site) -> example.Disguise:
    """Return the disguise that changes nothing."""
    zero = np.zeros(example.NODES)
    return example.Disguise(np.eye(3), np.zeros(3), np.zeros((3, *example.NODES)), zero, 0, site)


def test_no_disguise_is_the_template_itself(template: example.Template) -> None:
    image, label = example.apply(template, still(PLAIN))
    # a voxel lies at the middle of the brain + 6 mm x its distance from the middle of the grid
    for index in ((13, 16, 13), (10, 20, 9), (17, 12, 18)):
        at = [
            c + (i + 0.5) * 6 - n * 3 for c, i, n in zip(example.CENTRE_MM, index, image.shape, strict=True)
        ]
        low = [int(np.floor(a)) for a in at]
        corners = template.t1[tuple(slice(a, a + 2) for a in low)]
        weight = [np.array([1 - (a - b), a - b]) for a, b in zip(at, low, strict=True)]
        expected = np.einsum("ijk,i,j,k", corners, *weight)
        assert image[index] == pytest.approx(1000 * expected, abs=0.51)  # rounded to an integer
    assert set(np.unique(label)) == {0, 1, 2}


def test_brain_volume_of_the_still_subject_is_that_of_the_maps(template: example.Template) -> None:
    label = example.apply(template, still(dataclasses.replace(PLAIN, spacing=(3.0, 3.0, 3.0))))[1]
    grey_ml, white_ml = ((label == k).sum() * 27 / 1000 for k in (1, 2))
    inside = (template.grey + template.white) > 0.5
    grey = (inside & (template.grey >= template.white)).sum() / 1000
    white = (inside & (template.grey < template.white)).sum() / 1000
    assert grey_ml == pytest.approx(grey, rel=0.06)  # thin cortex at 3 mm, field of view a little smaller
    assert white_ml == pytest.approx(white, rel=0.06)


def test_bias_contrast_and_noise_leave_the_label_alone(template: example.Template) -> None:
    rng = np.random.default_rng(0)
    disguise = example.draw(rng, PLAIN)
    louder = dataclasses.replace(PLAIN, gamma=0.6, noise=0.1, scale=50.0)
    other = dataclasses.replace(disguise, site=louder, bias=disguise.bias + 0.3, noise_seed=9)
    (image_a, label_a), (image_b, label_b) = example.apply(template, disguise), example.apply(template, other)
    np.testing.assert_array_equal(label_a, label_b)
    assert image_a.mean() > 10 * image_b.mean()


def test_a_shift_moves_image_and_label_together(template: example.Template) -> None:
    disguise = still(PLAIN)
    moved = dataclasses.replace(
        disguise, shift_mm=np.array([0.0, 12.0, -6.0])
    )  # two voxels along y, one against x
    for before, after in zip(example.apply(template, disguise), example.apply(template, moved), strict=True):
        np.testing.assert_array_equal(before[:, 2:, :-1], after[:, :-2, 1:])


def test_the_warp_does_not_fold(template: example.Template) -> None:
    """The map from subject to template keeps the orientation of (nearly) every voxel."""
    disguise = example.draw(np.random.default_rng(1), PLAIN)
    shape = (27, 33, 27)
    field = np.stack([example._smooth(n, shape) for n in disguise.displacement_mm])
    gradient = np.stack([np.stack(np.gradient(f, 6.0)) for f in field])  # (component, axis, Z, Y, X)
    jacobian = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + disguise.matrix)
    assert (jacobian > 0).mean() > 0.999


def test_folder_is_complete_and_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    one = example.write_subjects(tmp_path / "one", n_train=2, n_test=1, seed=3)
    two = example.write_subjects(tmp_path / "two", n_train=2, n_test=1, seed=3)
    facts = json.loads((one / "dataset.json").read_text())
    assert (len(facts["training"]), facts["test"]) == (2, ["./imagesTs/brain_03.nii.gz"])
    names = sorted(p.relative_to(one).as_posix() for p in one.rglob("*.nii.gz"))
    assert names == sorted(p.relative_to(two).as_posix() for p in two.rglob("*.nii.gz"))
    assert "labelsTs/brain_03.nii.gz" in names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    image, label = (nib.load(one / k / "brain_02.nii.gz") for k in ("imagesTr", "labelsTr"))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(image.affine, label.affine)
    assert (one / "patients.csv").read_text().splitlines()[2] == "brain_02,subject_02,east"


def test_without_nilearn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"seguro\[demo\]"):
        example.load_template()


def test_a_damaged_template_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = example.template_path("gm").read_bytes()
    cut = tmp_path / "gm.nii.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(example, "template_path", lambda name: cut)
    with pytest.raises(DataError, match="truncated"):
        example.load_template()
