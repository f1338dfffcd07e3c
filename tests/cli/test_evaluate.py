import json

import nibabel as nib
import numpy as np
import pytest

from seguro.cli.main import main
from seguro.cli.scoring import evaluate_folder
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import sha256_file
from seguro.core.types import Case, Classes, FileFact, Manifest
from seguro.data import manifest as manifests
from seguro.evaluation.scores import read_csv

CLASSES = Classes(names=("background", "organ"), values=((0,), (3,)))
AFFINE = np.diag([0.8, 0.8, 2.0, 1.0])
LAS = np.diag([-0.8, 0.8, 2.0, 1.0])


def write(path, start=2, *, value=3, affine=AFFINE, shape=(12, 11, 6), dtype=np.uint8):
    """A label (x, y, z) with a box of 4 x 5 x 3 voxels that begins at x = start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.zeros(shape, dtype)
    label[start : start + 4, 3:8, 1:4] = value
    nib.save(nib.Nifti1Image(label, affine), path)
    return path


def fact(root, path):
    return FileFact(
        path=path.relative_to(root).as_posix(), size=path.stat().st_size, mtime_ns=0, sha256=sha256_file(path)
    )


@pytest.fixture
def workspace(tmp_path):
    """Six labeled test cases of three patients at two sites, one unlabeled; a workspace with predictions."""
    data, space = tmp_path / "data", tmp_path / "data.seguro"
    cases = []
    for i in range(7):
        image = fact(data, write(data / "images" / f"c{i}.nii.gz", value=9))
        label = fact(data, write(data / "labels" / f"c{i}.nii.gz")) if i < 6 else None
        case = Case(
            id=f"c{i}", patient=f"p{i // 2}", site=f"s{i % 2}", split="test", images=(image,), label=label,
            annotated=("organ",) if label else (), shape=(6, 11, 12), spacing=(2.0, 0.8, 0.8),
        )  # fmt: skip
        cases.append(case)
    content = Manifest(
        name="data", root=str(data), layout="folder", channels=("MRI",), classes=CLASSES, cases=tuple(cases)
    )
    manifests.save(content, space / "check" / "manifest.json")
    predictions = space / "runs" / "one" / "predictions" / "test"
    for i in range(7):
        write(predictions / f"c{i}.nii.gz", 2 + i % 3)  # shifted by 0, 1 or 2 of 4 voxels
    list_predictions(predictions)
    return space, predictions


def list_predictions(folder):
    files = {p.name.removesuffix(".nii.gz"): p for p in sorted(folder.glob("*.nii.gz"))}
    content = {
        "cases": {k: {"file": p.name, "sha256": "", "flags": [], "seconds": 0.1} for k, p in files.items()},
        "failed": {}, "models": [], "classes": CLASSES.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "predictions.json").write_text(json.dumps(content))


def dice(result):
    return {r.case: r.value for r in result.rows if r.metric == "dice"}


def test_scores_are_those_of_the_shifts_and_are_written(workspace):
    _, predictions = workspace
    result = evaluate_folder(predictions, n_jobs=1)
    assert result.folder == predictions / "scores" and result.unit == "mm"
    assert [dice(result)[f"c{i}"] for i in range(6)] == [1, 0.75, 0.5, 1, 0.75, 0.5]
    hd = {r.case: r.value for r in result.rows if r.metric == "hd"}
    assert [hd[f"c{i}"] for i in range(3)] == pytest.approx([0, 0.8, 1.6])
    assert sorted(read_csv(result.folder / "scores.csv")) == sorted(result.rows)
    summary = json.loads((result.folder / "summary.json").read_text())
    row = next(r for r in summary["rows"] if (r["class"], r["site"], r["metric"]) == ("organ", "all", "dice"))
    assert (row["mean"], row["n_cases"], row["n_patients"]) == (0.75, 6, 3)
    assert summary["excluded"] == [{"id": "c6", "reason": "no reference label"}]
    assert set(json.loads((result.folder / "stage.json").read_text())["outputs"]) == {
        "scores.csv",
        "summary.json",
    }


def test_same_scores_are_not_made_again_and_a_changed_prediction_is(workspace):
    _, predictions = workspace
    first = evaluate_folder(predictions, n_jobs=1)
    again = evaluate_folder(predictions, n_jobs=1)
    assert not first.skipped and again.skipped and again.summary == first.summary
    write(predictions / "c1.nii.gz", 2)
    changed = evaluate_folder(predictions, n_jobs=1)
    assert not changed.skipped and dice(changed)["c1"] == 1


def test_plain_folders_with_other_orientation_and_float_labels(tmp_path):
    truth, predictions = tmp_path / "truth", tmp_path / "guess"
    write(truth / "a.nii.gz", dtype=np.float32)
    affine = LAS.copy()
    affine[0, 3] = 0.8 * 11  # the same voxels, stored from right to left
    write(predictions / "a.nii.gz", 12 - 2 - 4, affine=affine)
    result = evaluate_folder(predictions, truth=truth, out=tmp_path / "scores", n_jobs=1)
    assert {(r.case, r.cls, r.value) for r in result.rows if r.metric == "dice"} == {("a", "label 3", 1.0)}


def test_calibration_comes_with_saved_probabilities(workspace):
    _, predictions = workspace
    p = np.zeros((12, 11, 6, 2), np.float32)
    p[..., 0], p[2:6, 3:8, 1:4, 0], p[2:6, 3:8, 1:4, 1] = 1, 0, 1
    (predictions / "probabilities").mkdir()
    for case in ("c0", "c1"):
        nib.save(nib.Nifti1Image(p, AFFINE), predictions / "probabilities" / f"{case}.nii.gz")
    content = json.loads((predictions / "predictions.json").read_text())
    content["cases"]["c0"]["probabilities"] = "probabilities/c0.nii.gz"  # that of c1 is of another prediction
    (predictions / "predictions.json").write_text(json.dumps(content))
    result = evaluate_folder(predictions, n_jobs=1)
    assert [(r.case, r.value) for r in result.rows if r.metric == "ece"] == [("c0", 0.0)]


def test_command_prints_n_intervals_worst_cases_and_the_next_command(workspace, monkeypatch, capsys):
    space, predictions = workspace
    monkeypatch.chdir(space.parent)
    assert main(["evaluate", str(predictions), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "6 (3)" in out and "[0.625, 0.875]" in out and "seguro report data.seguro/runs/one" in out
    assert out.index("0.500  c2") < out.index("0.750  c1")
    assert main(["evaluate", str(space / "runs" / "one"), "--jobs", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["skipped"] and content["missing"] == []


def test_compare_finds_scores_and_tests_the_difference(workspace, capsys, tmp_path):
    space, predictions = workspace
    other = space / "runs" / "two" / "predictions" / "test"
    for i in range(6):
        write(other / f"c{i}.nii.gz", 2)
    list_predictions(other)
    for folder in (predictions, other):
        evaluate_folder(folder, n_jobs=1)
    runs = [str(space / "runs" / n) for n in ("one", "two")]
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    row = next(r for r in content["paired"][0]["rows"] if (r["class"], r["metric"]) == ("organ", "dice"))
    assert row["difference"] == pytest.approx(0.25) and (row["n_cases"], row["n_patients"]) == (6, 3)
    assert row["p_permutation"] == 2 / 2**3  # every patient better: as small as three patients can give
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["reference"] == "one"
    (other / "c5.nii.gz").unlink()
    evaluate_folder(other, metrics=("dice",), n_jobs=1)
    assert main(["compare", *runs]) == 0  # a missing prediction is a failure, so the case sets stay equal
    assert main(["compare", runs[0]]) == 1
    assert "at least two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"metrics": ("dise",)}, ConfigError, "dise"),
        ({"tolerance_mm": -1}, ConfigError, "0 or more"),
        ({"truth": "nowhere"}, DataError, "no such folder"),
    ],
)
def test_bad_options_say_what_was_expected(workspace, tmp_path, options, error, reason):
    options = {k: tmp_path / v if k == "truth" else v for k, v in options.items()}
    with pytest.raises(error, match=reason):
        evaluate_folder(workspace[1], n_jobs=1, **options)


def test_predictions_of_another_task_are_refused(workspace):
    _, predictions = workspace
    text = (predictions / "predictions.json").read_text()
    (predictions / "predictions.json").write_text(text.replace('"organ"', '"lung"'))
    with pytest.raises(DataError, match=r"lung.*organ"):
        evaluate_folder(predictions, n_jobs=1)


def test_a_truth_that_changed_after_scoring_is_noticed(workspace):
    space, predictions = workspace
    evaluate_folder(predictions, n_jobs=1)
    write(space.parent / "data" / "labels" / "c1.nii.gz", 3)
    again = evaluate_folder(predictions, n_jobs=1)
    assert not again.skipped
    assert len(again.faults) == 1 and "c1" in again.faults[0] and "changed since" in again.faults[0]


REGIONS = {"names": ["organ"], "values": [[3]], "regions": True, "paint": [3]}


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        (REGIONS, None),  # file value 3 of an exclusive class must not become region value 3 or back
        (None, REGIONS),
        (REGIONS, REGIONS | {"values": [[1, 3]]}),
    ],
)
def test_regions_are_not_mixed_with_exclusive_classes_or_other_regions(workspace, predicted, true):
    space, predictions = workspace
    for path, classes in (
        (predictions / "predictions.json", predicted),
        (space / "check/manifest.json", true),
    ):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | ({"classes": classes} if classes else {})))
    with pytest.raises(DataError, match=r"predicts .*organ \(3\), the truth has .*organ"):
        evaluate_folder(predictions, n_jobs=1)


def test_dry_run_writes_nothing_and_prints_json(workspace, capsys):
    _, predictions = workspace
    assert main(["evaluate", str(predictions), "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["cases"] == [f"c{i}" for i in range(6)] and not content["skipped"]
    assert not (predictions / "scores").exists()


def test_data_root_finds_moved_files(workspace, tmp_path):
    _, predictions = workspace
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="nothing could be scored"):
        evaluate_folder(predictions, n_jobs=1)
    code = main(["evaluate", str(predictions), "--data-root", str(tmp_path / "moved"), "--jobs", "1"])
    assert code == 0 and len(read_csv(predictions / "scores" / "scores.csv")) > 0
