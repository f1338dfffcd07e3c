"""FAULTS rows 43 and 44: missing predictions, empty classes, other grids, order and threads."""

import json

import nibabel as nib
import numpy as np
import pytest

from seguro.cli.main import main
from seguro.cli.scoring import evaluate_folder
from seguro.core.errors import DataError, GeometryError

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write(path, boxes=((2, 1),), *, affine=AFFINE, scale=1):
    """A label (x, y, z) = 10 x 10 x 5, `scale` times finer in plane, a 4 x 4 x 3 box per (start, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.zeros((10, 10, 5), np.uint8)
    for start, value in boxes:
        label[start : start + 4, 3:7, 1:4] = value
    label = label.repeat(scale, 0).repeat(scale, 1)
    affine = affine @ np.diag([1 / scale, 1 / scale, 1, 1])
    affine[:2, 3] += (1 / scale - 1) / 2  # the outer edges coincide
    nib.save(nib.Nifti1Image(label, affine), path)
    return path


@pytest.fixture
def folders(tmp_path):
    for i in range(4):
        write(tmp_path / "truth" / f"c{i}.nii.gz")
        write(tmp_path / "guess" / f"c{i}.nii.gz", ((2 + i % 2, 1),))
    return tmp_path / "guess", tmp_path / "truth", tmp_path / "scores"


def scored(folders, **options):
    guess, truth, out = folders
    result = evaluate_folder(guess, truth=truth, **({"out": out, "n_jobs": 1} | options))
    return {(r.case, r.metric): r for r in result.rows if r.cls == "label 1"}, result


def test_43_missing_prediction_is_a_failure_and_not_skipped(folders):
    (folders[0] / "c0.nii.gz").unlink()
    rows, result = scored(folders)
    assert rows["c0", "dice"].value == 0 and rows["c0", "dice"].note == "no prediction"
    assert rows["c0", "hd95"].value == pytest.approx(np.sqrt(9**2 + 9**2 + 8**2))  # the image's diagonal
    assert result.missing == ("c0",)
    mean = next(s for s in result.summary if (s.cls, s.site, s.metric) == ("label 1", "all", "dice"))
    assert (mean.n_cases, mean.failures) == (4, 1)
    assert mean.mean == pytest.approx((0 + 0.75 + 1 + 0.75) / 4)


def test_43_prediction_listed_as_failed_is_a_failure(folders):
    guess = folders[0]
    (guess / "c0.nii.gz").unlink()
    classes = {"names": ["background", "label 1"], "values": [[0], [1]]}
    cases = {f"c{i}": {"file": f"c{i}.nii.gz"} for i in range(1, 4)}
    (guess / "predictions.json").write_text(
        json.dumps({"cases": cases, "failed": {"c0": "NaN"}, "models": [], "classes": classes})
    )
    rows, result = scored(folders)
    assert rows["c0", "dice"].value == 0 and result.missing == ("c0",)


def test_43_both_empty_is_counted_apart_and_a_false_alarm_is_not_forgiven(folders):
    guess, truth, _ = folders
    for i in (0, 1):
        write(truth / f"c{i}.nii.gz", ())
    write(guess / "c0.nii.gz", ())
    rows, result = scored(folders)
    assert (rows["c0", "dice"].value, rows["c0", "dice"].note) == (None, "both empty")
    assert (rows["c1", "dice"].value, rows["c1", "dice"].note) == (0, "false alarm")
    mean = next(s for s in result.summary if (s.cls, s.site, s.metric) == ("label 1", "all", "dice"))
    assert (mean.n_cases, mean.failures, mean.both_empty) == (3, 1, 1)
    assert mean.mean == pytest.approx((0 + 1 + 0.75) / 3)


def test_43_damaged_prediction_is_a_failure_named_with_exit_2(folders, capsys):
    guess, truth, out = folders
    damaged = guess / "c1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert main(["evaluate", str(guess), "--truth", str(truth), "--out", str(out), "--jobs", "1"]) == 2
    assert "c1.nii.gz: truncated gzip" in " ".join(capsys.readouterr().out.split())


def test_43_damaged_listed_prediction_counts_as_failure(folders):
    test_43_prediction_listed_as_failed_is_a_failure(folders)
    (folders[0] / "c2.nii.gz").write_bytes(b"<html>not found</html>")
    rows, result = scored(folders)
    assert rows["c2", "dice"].note == "no prediction" and len(result.faults) == 1
    assert not (folders[2] / "stage.json").exists()  # nothing finished: the same command tries again


def test_44_other_shape_is_refused_and_resampled_only_on_request(folders):
    write(folders[0] / "c1.nii.gz", ((2, 1),), scale=2)
    with pytest.raises(GeometryError, match=r"c1.*\(5, 20, 20\).*\(5, 10, 10\).*--resample"):
        scored(folders)
    assert not folders[2].joinpath("scores.csv").exists()
    rows, _ = scored(folders, resample=True)
    assert rows["c1", "dice"].value == 1  # every coarse voxel was split into equal ones


def test_44_shifted_grid_is_refused_and_resampled_to_where_it_lies(folders):
    moved = AFFINE.copy()
    moved[0, 3] = 1.0  # one voxel to the right, voxels one to the left: the same place
    write(folders[0] / "c1.nii.gz", ((1, 1),), affine=moved)
    with pytest.raises(GeometryError, match=r"c1.*1\.00 mm apart"):
        scored(folders)
    rows, _ = scored(folders, resample=True)
    assert rows["c1", "dice"].value == 1


def test_44_scores_do_not_depend_on_threads_or_order(folders, monkeypatch):
    _, one = scored(folders, out=folders[2] / "one")
    _, two = scored(folders, out=folders[2] / "two", n_jobs=2)
    import seguro.cli.scoring as scoring

    forward = scoring.jobs_from_folder
    monkeypatch.setattr(scoring, "jobs_from_folder", lambda *a: (forward(*a)[0][::-1], *forward(*a)[1:]))
    _, turned = scored(folders, out=folders[2] / "turned")
    assert turned.rows != one.rows and sorted(turned.rows) == sorted(one.rows)
    files = [
        [(folders[2] / k / f).read_bytes() for f in ("scores.csv", "summary.json")]
        for k in ("one", "two", "turned")
    ]
    assert files[0] == files[1] == files[2]
    assert two.summary == one.summary == turned.summary


def test_damaged_truth_is_left_out_and_named(folders):
    write(folders[0] / "c9.nii.gz")  # a prediction nobody can judge
    test_43_prediction_listed_as_failed_is_a_failure(folders)
    (folders[1] / "c3.nii.gz").write_bytes(b"")
    _, result = scored(folders)
    assert [e.id for e in result.excluded] == ["c3"] and "empty (0 bytes)" in result.excluded[0].reason
    assert len(result.faults) == 1


def test_unknown_value_in_a_prediction_is_no_class(folders):
    test_43_prediction_listed_as_failed_is_a_failure(folders)
    write(folders[0] / "c1.nii.gz", ((2, 7),))
    _, result = scored(folders)
    assert result.missing == ("c0", "c1") and "label values 7 (48 voxels)" in result.faults[0]


def test_nothing_in_common_shows_both_sides(folders):
    for path in sorted(folders[0].iterdir()):
        path.rename(path.with_name("x" + path.name))
    with pytest.raises(DataError, match=r"no case in common.*xc0.*c0"):
        scored(folders)
