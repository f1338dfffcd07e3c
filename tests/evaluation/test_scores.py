import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE, Classes, ScoreRow
from seguro.evaluation import METRICS
from seguro.evaluation.scores import read_csv, score_case, to_stored, write_csv

CLASSES = Classes(names=("background", "liver", "tumor"), values=((0,), (1,), (2,)))
SPACING = (2.0, 1.0, 1.0)
DIAGONAL = np.sqrt((4 * 2) ** 2 + 4**2 + 4**2)  # largest distance between voxel centers of 5 x 5 x 5


def score(truth, prediction, classes=CLASSES, annotated=("liver", "tumor"), **options):
    rows = score_case(truth, prediction, classes=classes, annotated=annotated, spacing=SPACING, case="c1",
                      patient="p1", site="s1", **options)  # fmt: skip
    return {(r.cls, r.metric): r for r in rows}


def volume(**boxes):
    label = np.zeros((5, 5, 5), np.uint8)
    for value, box in boxes.items():
        label[box] = int(value[1:])
    return label


BOX = np.s_[1:3, 1:4, 1:4]


def test_missed_organ_is_a_failure_with_the_diagonal_as_distance():
    rows = score(volume(v1=BOX), volume())
    values = {m: rows["liver", m].value for m in METRICS if m != "ece"}
    assert values == {
        "dice": 0, "iou": 0, "precision": None, "recall": 0, "nsd": 0, "volume_error_rel": -1,
        "hd": pytest.approx(DIAGONAL), "hd95": pytest.approx(DIAGONAL), "assd": pytest.approx(DIAGONAL),
        "volume_error_ml": pytest.approx(-18 * 2 / 1000),
    }  # fmt: skip
    assert {rows["liver", m].note for m in values} == {"missed"}


def test_false_alarm_is_a_failure_and_both_empty_has_no_value():
    rows = score(volume(), volume(v1=BOX))
    assert rows["liver", "dice"].value == 0 and rows["liver", "precision"].value == 0
    assert rows["liver", "recall"].value is None and rows["liver", "volume_error_rel"].value is None
    assert rows["liver", "hd95"].value == pytest.approx(DIAGONAL) and rows["liver", "nsd"].value == 0
    assert rows["liver", "dice"].note == "false alarm"
    assert all(
        rows["tumor", m].value is None and rows["tumor", m].note == "both empty"
        for m in ("dice", "hd", "nsd")
    )


def test_not_annotated_is_neither_right_nor_wrong():
    rows = score(volume(v1=BOX), volume(v2=BOX), annotated=("liver",))
    assert rows["tumor", "dice"] == ScoreRow("c1", "p1", "s1", "tumor", "dice", None, "not annotated")
    assert rows["liver", "dice"].note == "missed"


def test_no_prediction_scores_like_an_empty_one_and_says_so():
    none, empty = score(volume(v1=BOX), None), score(volume(v1=BOX), volume())
    assert {k: r.value for k, r in none.items()} == {k: r.value for k, r in empty.items()}
    assert {r.note for r in none.values()} == {"no prediction"}


def test_ignored_voxels_count_in_neither_mask():
    truth, prediction = volume(v1=BOX), volume(v1=np.s_[1:5, 1:4, 1:4])
    truth[3:] = IGNORE  # where the prediction is too long
    row = score(truth, prediction)
    assert row["liver", "dice"].value == 1 and row["liver", "hd"].value == 0
    prediction[1:3] = IGNORE  # a prediction cannot excuse itself
    assert score(truth, prediction)["liver", "recall"].value == 0


def test_regions_overlap():
    regions = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
    truth, prediction = volume(v1=BOX, v2=np.s_[1:3, 2, 2]), volume(v1=BOX)
    rows = score(truth, prediction, classes=regions, annotated=("whole", "core"))
    assert rows["whole", "dice"].value == 1
    assert rows["core", "dice"].note == "missed"


def test_calibration_needs_probabilities_and_uses_the_class_channel():
    truth = volume(v1=BOX)
    p = np.stack([truth == 0, truth == 1, truth == 2]).astype(np.float32)
    assert ("liver", "ece") not in score(truth, truth)
    rows = score(truth, truth, probabilities=p)
    assert rows["liver", "ece"].value == 0 and rows["tumor", "ece"].value is None
    assert score(truth, truth, probabilities=1 - p)["liver", "ece"].value == pytest.approx(1)


def test_chosen_metrics_only_and_unknown_ones_refused():
    assert set(score(volume(v1=BOX), volume(), metrics=("dice",))) == {("liver", "dice"), ("tumor", "dice")}
    with pytest.raises(ConfigError, match=r"dise.*dice, iou"):
        score(volume(), volume(), metrics=("dise",))


def test_other_shape_is_refused_with_both():
    with pytest.raises(DataError, match=r"c1.*\(5, 5, 4\).*\(5, 5, 5\)"):
        score(volume(), volume()[..., :4])


def test_stored_labels_and_unknown_values():
    classes = Classes(names=("background", "organ"), values=((0,), (255,)), ignore=7)
    assert to_stored(np.array([0, 255, 7]), classes, what="a").tolist() == [0, 1, IGNORE]
    with pytest.raises(DataError, match=r"scan\.nii: label values 3 \(2 voxels\).*\[0, 7, 255\]"):
        to_stored(np.array([0, 3, 3]), classes, what="scan.nii")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)
ROWS = st.builds(
    ScoreRow, TEXT, TEXT, TEXT, TEXT, st.sampled_from(sorted(METRICS)),
    st.none() | st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["", "missed", "=1+1"]),
)  # fmt: skip


@given(st.lists(ROWS, max_size=4, unique_by=lambda r: (r.case, r.cls, r.metric)))
def test_written_rows_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    write_csv(path, rows)
    assert sorted(read_csv(path), key=str) == sorted(rows, key=str)


def test_formulas_are_quoted_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "scores.csv"
    write_csv(path, [ScoreRow("=cmd()", "-1", "+a", "@b", "volume_error_ml", -0.25, "")])
    assert path.read_text().splitlines()[1] == "'=cmd(),'-1,'+a,'@b,volume_error_ml,-0.25,"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n", "columns are a, b"),
        ("case,patient,site,class,metric,value,note\nc,p,s,k,dice,high,\n", "line 2.*'high'"),
        ("case,patient,site,class,metric,value,note\nc,p,s,k,dice,nan,\n", "line 2.*finite"),
        ("case,patient,site,class,metric,value,note\nc,p\n", "line 2 has 2 cells"),
    ],
)
def test_malformed_files_are_refused_with_the_line(tmp_path, text, reason):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_csv(path)
