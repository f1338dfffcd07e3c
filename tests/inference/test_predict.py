"""Files in, files out: geometry, ensembles, resuming, options, and what is written beside the labels."""

import csv
import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Warnings
from seguro.data import phantom
from seguro.data.formats import read_image, read_label
from seguro.data.preprocess import to_planned
from seguro.engine.model import load_model
from seguro.inference.ensemble import Ensemble
from seguro.inference.predict import predict


@pytest.fixture
def images(phantom_folder):
    return phantom_folder / "imagesTs"


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def hashes(folder):
    return json.loads((folder / "stage.json").read_text())["outputs"]


def test_a_folder_of_images_with_nothing_but_the_model_folder(model, images, tmp_path):
    alone = shutil.copytree(model / "model", tmp_path / "elsewhere")
    before = contents(images)
    report = predict([alone], images, tmp_path / "out")
    assert report.exit_code == 0
    assert [c.id for c in report.cases] == ["case_006", "case_007"]
    assert contents(images) == before
    listing = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for case in report.cases:
        image = nib.load(images / f"{case.id}.nii.gz")
        label = nib.load(tmp_path / "out" / listing["cases"][case.id]["file"])
        assert np.array_equal(label.affine, image.affine)
        assert label.shape == image.shape[:3]
        assert set(np.unique(label.dataobj)) <= {0, 1, 2}
    assert listing["models"] == [load_model(alone).sha256]
    assert listing["failed"] == {}
    assert set(hashes(tmp_path / "out")) == {"case_006.nii.gz", "case_007.nii.gz", "volumes.csv"}


def test_volumes_are_counts_times_voxel_size(model, images, tmp_path):
    predict([model], images, tmp_path)
    with (tmp_path / "volumes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["case"], r["class"]) for r in rows] == [
        (c, k) for c in ("case_006", "case_007") for k in ("organ1", "organ2")
    ]
    for row in rows:
        volume = read_label(tmp_path / f"{row['case']}.nii.gz")
        count = int((volume.array == int(row["class"][-1])).sum())
        assert int(row["voxels"]) == count
        assert float(row["ml"]) == pytest.approx(
            count * volume.grid.voxel_ml, rel=1e-5
        )  # six digits are written


@pytest.mark.parametrize("codes", ["LPS", "PSR", "IRA"])
def test_the_axis_order_of_the_file_changes_nothing(model, tmp_path, codes):
    rng = np.random.default_rng(0)
    image, _ = phantom.volume(rng, (13, 21, 23), 2)
    straight = phantom.write_nifti(tmp_path / "a" / "case.nii.gz", image, spacing=(1.1, 0.9, 1.0))
    turned = phantom.write_nifti(tmp_path / "b" / "case.nii.gz", image, spacing=(1.1, 0.9, 1.0), codes=codes)
    labels = []
    for path in (straight, turned):
        predict([model], path, tmp_path / "out" / path.parent.name)
        labels.append(read_label(tmp_path / "out" / path.parent.name / "case.nii.gz"))
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "b" / "case.nii.gz").affine) == tuple(codes)
    assert np.array_equal(labels[0].array, labels[1].array)


@pytest.mark.parametrize("spacing", [(3.0, 0.7, 1.3), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("shape", [(5, 31, 17), (1, 9, 40)])
def test_anisotropic_spacing_and_odd_sizes_equal_the_full_buffer(model, second, tmp_path, spacing, shape):
    image = phantom.write_nifti(
        tmp_path / "in.nii.gz",
        np.random.default_rng(1).normal(size=shape).astype(np.float32),
        spacing=spacing,
    )
    predict([model, second], image, tmp_path / "out", probabilities=True)
    volume = read_image([image])
    total = 0
    for path in (model, second):
        loaded = load_model(path)
        planned, grid = to_planned(volume, loaded.plan)
        from seguro.inference.tiling import planned_slabs

        with torch.inference_mode():
            logits = torch.cat([v for _, _, v in planned_slabs(loaded.predictor, planned, axis=1)], dim=2)
            p = torch.nn.functional.interpolate(
                logits.softmax(0)[None], size=volume.grid.shape, mode="trilinear"
            )
        assert logits.shape[1:] == grid.shape
        total = total + p[0] / 2
    written = read_image([tmp_path / "out" / "probabilities" / "in.nii.gz"], channels=3).array
    assert np.allclose(
        written, total.numpy(), rtol=0, atol=1e-4
    )  # slab axes differ: blending in another order
    label = read_label(tmp_path / "out" / "in.nii.gz").array
    margin = np.sort(written, axis=0)[-1] - np.sort(written, axis=0)[-2]
    assert np.array_equal(label[margin > 1e-3], written.argmax(0)[margin > 1e-3])


def test_the_label_of_an_ensemble_is_what_predict_writes(model, second, images, tmp_path):
    path = images / "case_006.nii.gz"
    predict([model, second], path, tmp_path / "out", flips=True)
    label = Ensemble([load_model(model), load_model(second)], flips=True).label(read_image([path]))
    assert np.array_equal(read_label(tmp_path / "out" / "case_006.nii.gz").array, label)


def test_a_second_call_reuses_and_a_changed_option_does_not(model, images, tmp_path):
    first = predict([model], images, tmp_path)
    before = hashes(tmp_path)
    again = predict([model], images, tmp_path)
    assert (first.reused, again.reused) == ((), ("case_006", "case_007"))
    assert hashes(tmp_path) == before
    assert predict([model], images, tmp_path, overlap=0.25).reused == ()


def test_a_damaged_output_is_made_again(model, images, tmp_path):
    predict([model], images, tmp_path)
    before = hashes(tmp_path)
    (tmp_path / "case_006.nii.gz").write_bytes(b"")
    assert predict([model], images, tmp_path).reused == ("case_007",)
    assert hashes(tmp_path) == before


def test_a_stopped_command_goes_on_and_ends_the_same(model, images, tmp_path):
    predict([model], images, tmp_path / "whole")

    def stop(progress):
        if progress.case == "case_007" and progress.fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict([model], images, tmp_path / "parts", progress=stop)
    assert not (tmp_path / "parts" / "stage.json").exists()
    assert predict([model], images, tmp_path / "parts").reused == ("case_006",)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


def test_a_new_image_under_an_old_name_is_predicted_anew(model, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "in")
    predict([model], own, tmp_path / "out")
    shutil.copy(own / "case_007.nii.gz", own / "case_006.nii.gz")
    assert predict([model], own, tmp_path / "out").reused == ("case_007",)
    out = hashes(tmp_path / "out")
    assert out["case_006.nii.gz"] == out["case_007.nii.gz"]


def test_cases_of_the_manifest_are_read_as_in_training(model, workspace, images, tmp_path):
    from seguro.data import manifest
    from seguro.inference.inputs import from_manifest

    found = manifest.load(workspace / "check" / "manifest.json")
    predict([model], from_manifest(found, found.of("test")), tmp_path / "a")
    predict([model], images, tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_pictures_keep_their_type_and_have_no_millilitres(make_model, flat_folder, tmp_path):
    model = make_model(tmp_path / "model", flat_folder, tmp_path / "flat.seguro")
    report = predict([model], flat_folder / "images", tmp_path / "out")
    assert {c.ml for c in report.cases} == {None}
    assert all((tmp_path / "out" / f"{c.id}.png").exists() for c in report.cases)
    with (tmp_path / "out" / "volumes.csv").open() as stream:
        assert {r["ml"] for r in csv.DictReader(stream)} == {""}


def test_probabilities_of_pictures_are_written_for_evaluate(make_model, flat_folder, tmp_path):
    model = make_model(tmp_path / "model", flat_folder, tmp_path / "flat.seguro")
    picture = sorted((flat_folder / "images").iterdir())[0]
    predict([model], picture, tmp_path / "out", probabilities=True)
    p = np.load(tmp_path / "out" / "probabilities" / f"{picture.stem}.npy")
    assert np.allclose(p.sum(axis=-1), 1, atol=1e-5)  # classes last, as in the files of NIfTI


@pytest.mark.parametrize("where", [".", "sub"])
def test_nothing_is_written_into_an_input_folder(model, images, where):
    with pytest.raises(ConfigError, match="never written to"):
        predict([model], images, images / where)
    assert sorted(p.name for p in images.iterdir()) == ["case_006.nii.gz", "case_007.nii.gz"]


def test_nor_over_a_single_input(model, images):
    with pytest.raises(ConfigError, match="never written to"):
        predict([model], images / "case_006.nii.gz", images)


def test_models_of_other_classes_do_not_mix(make_model, model, images, tmp_path):
    other = phantom.write_msd(tmp_path / "three", n_labelled=3, n_test=0, n_classes=3, seed=1)
    third = make_model(tmp_path / "model", other, tmp_path / "three.seguro")
    with pytest.raises(ConfigError, match="classes"):
        predict([model, third], images, tmp_path / "out")


def test_channels_as_files_and_as_fourth_axis(make_model, tmp_path):
    data = phantom.write_nnunet(tmp_path / "two", n_labelled=3, n_test=1, channels=2, seed=2)
    model = make_model(tmp_path / "model", data, tmp_path / "two.seguro")
    report = predict([model], data / "imagesTs", tmp_path / "out")
    (case,) = report.cases
    assert len(case.inputs) == 2
    (data / "imagesTs" / f"{case.id}_0001.nii.gz").unlink()
    broken = predict([model], data / "imagesTs", tmp_path / "out")
    assert broken.exit_code == 2
    assert "channels 0000 where the model expects 0000, 0001" in broken.failed[case.id]
    assert not (tmp_path / "out" / f"{case.id}.nii.gz").exists()


def test_a_wrong_number_of_channels_is_said(model, tmp_path):
    phantom.write_nifti(tmp_path / "in" / "case.nii.gz", np.ones((2, 4, 5, 6), np.float32))
    report = predict([model], tmp_path / "in", tmp_path / "out")
    assert report.exit_code == 2
    assert "case.nii.gz" in report.failed["case"]


def test_an_empty_folder_and_a_pickled_model_are_refused(model, images, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no image"):
        predict([model], tmp_path / "in", tmp_path / "out")
    (tmp_path / "net.pth").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="pickled"):
        predict([tmp_path / "net.pth"], images, tmp_path / "out")


def test_other_files_in_a_folder_are_passed_over_and_counted(model, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "in")
    for name in ("a.txt", "b.txt", "._case.nii.gz"):
        (own / name).write_text("no image")
    warnings = Warnings()
    report = predict([model], own, tmp_path / "out", warnings=warnings)
    assert len(report.cases) == 2
    assert any("passed over" in w and "x2" in w for w in warnings.lines())


def test_probabilities_of_an_earlier_call_do_not_stay(model, images, tmp_path):
    predict([model], images, tmp_path, probabilities=True)
    listing = json.loads((tmp_path / "predictions.json").read_text())["cases"]
    assert {c["probabilities"] for c in listing.values()} == {
        "probabilities/case_006.nii.gz",
        "probabilities/case_007.nii.gz",
    }
    predict([model], images, tmp_path, overlap=0.25)
    listing = json.loads((tmp_path / "predictions.json").read_text())["cases"]
    assert {c["probabilities"] for c in listing.values()} == {None}
    assert not list((tmp_path / "probabilities").iterdir())


def test_an_input_out_of_reach_keeps_its_prediction_and_is_listed(model, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "in")
    paths = sorted(own.iterdir())
    predict([model], paths, tmp_path / "out")
    before = hashes(tmp_path / "out")
    paths[0].rename(tmp_path / "away.nii.gz")
    report = predict([model], paths, tmp_path / "out")
    assert list(report.failed) == ["case_006"]
    assert (tmp_path / "out" / "case_006.nii.gz").exists()
    (tmp_path / "away.nii.gz").rename(paths[0])
    assert predict([model], paths, tmp_path / "out").reused == ("case_006", "case_007")
    assert hashes(tmp_path / "out") == before


def test_flips_without_effect_are_said(make_model, images, tmp_path):
    data = phantom.write_msd(tmp_path / "left", n_labelled=2, n_test=0, seed=5)
    text = (data / "dataset.json").read_text()
    assert "organ1" in text
    (data / "dataset.json").write_text(text.replace("organ1", "left kidney"))  # no right one: no mirroring
    straight = make_model(tmp_path / "model", data, tmp_path / "left.seguro")
    said = predict([straight], images, tmp_path / "a", flips=True).warnings
    assert any("mirrors no axis" in line for line in said)
    both = phantom.write_msd(tmp_path / "both", n_labelled=2, n_test=0, seed=5)  # too few to tell a side
    mirrored = make_model(tmp_path / "other", both, tmp_path / "both.seguro")
    assert load_model(mirrored).plan.mirror
    said = predict([mirrored], images, tmp_path / "b", flips=True).warnings
    assert not any("mirrors no axis" in line for line in said)
