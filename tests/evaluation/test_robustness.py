"""Robustness: areas and quantiles by hand, equal populations along a curve, files that are refused."""

import json
import math

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.evaluation import robustness as rb
from seguro.evaluation.robustness import MinimumRow, RobustRow

EPS = (0, 5, 8, 16)
EXACT = 1e-12  # sums of a few float64


def rows(dice, *, attack="worst", cls="organ", eps=EPS, patients=None, sizes=None):
    """Rows of one class from {case: Dice per eps}."""
    out = []
    for case, values in dice.items():
        patient, size = (patients or {}).get(case, case), (sizes or {}).get(case, 1.0)
        for e, v in zip(eps, values, strict=True):
            note = "both empty" if v is None else "missed" if v == 0 else ""
            out.append(RobustRow(case, patient, "s", cls, attack, e, v, size, note))
    return out


def of(found, **fields):
    (row,) = [r for r in found if all(getattr(r, k) == v for k, v in fields.items())]
    return row


@pytest.mark.parametrize("constant", [0.0, 0.37, 1.0])
def test_area_of_a_constant_curve_is_the_constant(constant):  # check E3
    assert rb.auc(EPS, [constant] * 4) == pytest.approx(constant, abs=EXACT)
    area = rb.areas(rows({c: [constant] * 4 for c in "ab"}))
    assert {r.cls for r in area} == {"organ", "mean"}
    assert all(r.mean == pytest.approx(constant, abs=EXACT) and r.low == r.high == r.mean for r in area)


def test_area_by_hand_and_of_a_straight_line():
    # published curve of the paper (Fig. 4, hippocampus, clean-trained): .42 and .50 in its legend
    assert rb.auc(EPS, (0.89, 0.62, 0.32, 0.07)) == pytest.approx((3.775 + 1.41 + 1.56) / 16, abs=EXACT)
    assert round(rb.auc(EPS, (0.89, 0.62, 0.32, 0.07)), 2) == 0.42
    assert rb.auc(EPS, [1 - e / 16 for e in EPS]) == pytest.approx(0.5, abs=EXACT)
    assert rb.auc([8], [0.4]) == 0.4


@pytest.mark.parametrize(
    ("eps", "values"), [((0, 0), (1, 1)), ((5, 0), (1, 1)), ((0, 5), (1,)), ((0, 5), (1, math.nan)), ((), ())]
)
def test_area_refuses_what_is_no_curve(eps, values):
    with pytest.raises(DataError, match="area"):
        rb.auc(eps, values)


def test_curve_counts_misses_as_zero_and_bounds_by_patient():
    made = rows({"a": (1, 0.8, 0.5, 0), "b": (0.8, 0.6, 0.5, 0.2)})
    made += rows({"a": (0.6, 0.6, 0.1, 0), "b": (1, 1, 1, 1)}, cls="core")
    found = rb.curves(made)
    last = of(found, cls="organ", eps=16)
    assert (last.mean, last.failures, last.n_cases) == (pytest.approx(0.1), 1, 2)
    assert (last.low, last.high) == (0.0, 0.2)  # two patients: the bootstrap can draw only one of them
    mean = of(found, cls="mean", eps=16)
    assert (mean.mean, mean.failures) == (pytest.approx((0 + 0.6) / 2), 2)
    assert of(rb.areas(made), cls="mean").mean == pytest.approx(
        (of(rb.areas(made), cls="organ").mean + of(rb.areas(made), cls="core").mean) / 2
    )
    assert all(r.low is None for r in rb.curves([r for r in made if r.case == "a"]))  # one patient


def test_nothing_depends_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    made = rows({f"c{i}": sorted(rng.random(4))[::-1] for i in range(7)})
    mixed = [made[i] for i in rng.permutation(len(made))]
    assert rb.summary(made, (), 3) == rb.summary(mixed, (), 3)


def test_false_alarm_of_an_attack_does_not_change_which_cases_count():
    # the class is absent in b: rightly left empty at first, found falsely under attack
    made = rows({"a": (0.8,) * 4, "b": (None, None, 0.0, 0.0), "c": (None,) * 4}, sizes={"b": 0, "c": 0})
    made = [r._replace(note="false alarm") if r.case == "b" and r.dice == 0 else r for r in made]
    quiet = [r._replace(attack="noise", dice=None, note="both empty") if r.case == "b" else r for r in made]
    made += [r._replace(attack="noise") for r in quiet]
    found = rb.curves(made)
    worst = [of(found, attack="worst", cls="organ", eps=e) for e in EPS]
    assert [r.mean for r in worst] == pytest.approx([0.9, 0.9, 0.4, 0.4])
    assert [r.failures for r in worst] == [0, 0, 1, 1]
    assert [of(found, attack="noise", cls="organ", eps=e).mean for e in EPS] == pytest.approx([0.9] * 4)
    assert {r.n_cases for r in found} == {2}  # c, empty everywhere, says nothing


def test_sizes_fall_into_thirds_with_ties_together():
    sizes = {f"c{i}": float(i) for i in range(1, 7)}
    made = rows({c: (s / 10,) * 4 for c, s in sizes.items()}, sizes=sizes)
    found = rb.by_size(made)
    small, medium, large = (of(found, stratum=s, eps=5) for s in rb.STRATA)
    assert [(r.size_low, r.size_high, r.n_cases) for r in (small, medium, large)] == [
        (1, 2, 2),
        (3, 4, 2),
        (5, 6, 2),
    ]
    assert [r.mean for r in (small, medium, large)] == pytest.approx([0.15, 0.35, 0.55])
    tied = rb.by_size(rows({c: (0.5,) * 4 for c in sizes}, sizes=dict.fromkeys(sizes, 2.0)))
    assert {(r.stratum, r.n_cases) for r in tied} == {("small", 6)}
    assert rb.by_size(rows({"a": (1,) * 4, "b": (1,) * 4})) == []


def test_minimum_counts_what_never_broke_as_infinite():
    def summary(*eps):
        return rb.minimum_summary(MinimumRow(f"c{i}", "p", "s", "worst", e) for i, e in enumerate(eps))[0]

    whole = summary(4, 2, 8, 6)
    assert (whole.q1, whole.median, whole.q3, whole.censored) == (3.5, 5, 6.5, 0)
    part = summary(2, None, 4, None, 3)
    assert (part.q1, part.median, part.q3, part.censored, part.found) == (3, 4, None, 2, (2, 3, 4))
    assert summary(None, None).median is None and summary(1, None).median is None
    assert summary(0, 0, 0).median == 0


def test_paired_areas_by_hand_with_the_exact_p():
    a = rows({f"c{i}": (0.8, 0.4, 0.2, 0.1) for i in range(4)})
    b = [r._replace(dice=r.dice + 0.1) for r in a]
    for row in rb.paired_areas(a, b):
        assert row.difference == pytest.approx(0.1, abs=EXACT)
        assert row.low == pytest.approx(0.1) and row.high == pytest.approx(0.1)
        assert row.p == 2 / 2**4  # four patients, all better
        assert (row.n_cases, row.n_patients) == (4, 4)
    two = {f"c{i}": f"p{i % 2}" for i in range(4)}
    assert rb.paired_areas(*([r._replace(patient=two[r.case]) for r in x] for x in (a, b)))[0].p == 1 / 2
    assert rb.paired_areas(a, a)[0].p == 1


def test_paired_areas_correct_over_classes_and_keep_a_false_alarm():
    quiet = rows({f"c{i}": (0.5,) * 4 for i in range(3)})
    quiet += rows(
        {f"c{i}": (None,) * 4 for i in range(3)}, cls="core", sizes=dict.fromkeys(["c0", "c1", "c2"], 0)
    )
    loud = [
        r._replace(dice=0.0, note="false alarm") if r.cls == "core" and r.case == "c0" else r for r in quiet
    ]
    found = rb.paired_areas(loud, quiet)
    core = of(found, cls="core")
    assert (core.mean_a, core.mean_b, core.n_cases) == (0, 1, 1)
    assert {r.cls: r.p_holm for r in found} == {"core": 1.0, "organ": 1.0, "mean": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r._replace(eps=7) if r.eps == 8 else r, r"eps: 1 \(8\) only in the first, 1 \(7\)"),
        (
            lambda r: r._replace(case="z") if r.case == "b" else r,
            r"cases: 1 \(b\) only in the first, 1 \(z\)",
        ),
        (lambda r: r._replace(attack="square"), "attacks"),
        (lambda r: r._replace(cls="lung"), "classes"),
        (lambda r: r._replace(patient="other"), "another patient"),
    ],
)
def test_unlike_attacks_are_not_compared(change, said):
    a = rows({"a": (0.9, 0.6, 0.5, 0.1), "b": (0.9, 0.6, 0.5, 0.1), "c": (0.9,) * 4})
    with pytest.raises(DataError, match=said):
        rb.paired_areas(a, [change(r) for r in a])


def test_intersect_compares_what_is_shared():
    a = rows({"a": (0.9, 0.6, 0.5, 0.1), "b": (0.9, 0.5, 0.5, 0.1)})
    b = rows({"b": (0.9, 0.7, 0.3), "c": (0, 0, 0)}, eps=(0, 5, 20))
    (row, _) = rb.paired_areas(a, b, intersect=True)
    assert (row.n_cases, row.mean_a, row.mean_b) == (1, pytest.approx(0.7), pytest.approx(0.8))  # 0 to 5
    with pytest.raises(DataError, match="no curve"):
        rb.paired_areas(a, [r._replace(attack="fab") for r in b], intersect=True)


def test_weighted_score_by_hand():
    made = rows({"a": (1, 0.9, 0.8, 0.6, 0.4, 0.2)}, attack="blur", eps=range(6))
    made += rows({"a": (1,) * 6}, attack="gamma", eps=range(6))
    found = rb.weighted_score(made)
    w = [(2 / 3) ** s for s in range(1, 6)]
    score = sum(x * d for x, d in zip(w, (0.9, 0.8, 0.6, 0.4, 0.2), strict=True)) / sum(w)
    blur = of(found, attack="blur", cls="mean")
    assert (blur.clean, blur.mean, blur.degradation) == (1, pytest.approx(score), pytest.approx(1 - score))
    assert of(found, attack="gamma", cls="organ").degradation == pytest.approx(0, abs=EXACT)
    assert of(found, attack="all", cls="organ").mean == pytest.approx((score + 1) / 2)
    for severities in ((1, 2), (0, 1.5), (0,)):
        with pytest.raises(DataError, match="severities"):
            rb.weighted_score(rows({"a": (1,) * len(severities)}, eps=severities))


def test_pooled_is_the_mean_over_attacks_and_keeps_false_alarms():
    made = rows({"a": (0.8, 0.4), "b": (None, None)}, attack="x", eps=(0, 1))
    made += rows({"a": (0.8, 0.2), "b": (None, 0.0)}, attack="y", eps=(0, 1))
    made = [r._replace(note="false alarm") if r.case == "b" and r.dice == 0 else r for r in made]
    found = {(r.case, r.eps): (r.dice, r.note) for r in rb.pooled(made)}
    assert found["a", 1] == (pytest.approx(0.3), "") and found["b", 0] == (None, "both empty")
    assert found["b", 1] == (0.5, "false alarm")


def test_files_come_back_and_a_spreadsheet_runs_nothing(tmp_path):
    made = rows({"=HYPERLINK(1)": (0.1 + 0.2, 0.4, 0.2, 0), "ok": (None,) * 4}, cls="@class, one")
    rb.write_csv(tmp_path / "robustness.csv", made)
    assert rb.read_csv(tmp_path / "robustness.csv") == sorted(made, key=lambda r: (r.case, r.eps))
    text = (tmp_path / "robustness.csv").read_text()
    assert "'=HYPERLINK(1)" in text and "\n=" not in text
    least = [MinimumRow("a", "-p", "s", "worst", None), MinimumRow("b", "p", "s", "worst", 3.25)]
    rb.write_minimum(tmp_path / "minimum.csv", least)
    assert rb.read_minimum(tmp_path / "minimum.csv") == least
    assert "'-p" in (tmp_path / "minimum.csv").read_text()


def test_summary_file_has_every_part(tmp_path):
    made = rows({"a": (0.9, 0.6, 0.5, 0.1), "b": (0.9, 0.5, 0.5, 0.0)})
    path = rb.write_summary(tmp_path, made, [MinimumRow("a", "a", "s", "worst", 9.0)], 0)
    content = json.loads(path.read_text())
    assert path.name == "curves.json"
    assert content["curves"][0]["class"] == "organ" and content["curves"][0]["eps"] == 0
    assert content["minimum"][0]["found"] == [9.0] and content["weighted"] == [] == content["by_size"]
    assert [(c["case"], c["dice"][-1]) for c in content["cases"]] == [("b", 0.0), ("a", 0.1)]  # worst first
    assert rb.summary(rows({"a": (1, 1)}, eps=(0, 1)), corruptions=True)["weighted"][0]["degradation"] == 0


HEADER = "case,patient,site,class,attack,eps,dice,size_ml,note\n"
LINE = "a,p,s,organ,worst,{},{},1.0,{}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER.replace(",size_ml", "") + "a,p,s,organ,worst,0,1,\n", "columns are .*expected .*size_ml"),
        (HEADER, "no rows"),
        (HEADER + LINE.format(0, "nan", ""), "line 2: dice nan is not finite"),
        (HEADER + LINE.format(0, "high", ""), "line 2: dice 'high' is not a number"),
        (HEADER + LINE.format("", 1, ""), "line 2: eps is empty"),
        (HEADER + LINE.format(-5, 1, ""), "case a.*eps must be"),
        (HEADER + LINE.format(0, 1.2, ""), "case a, class organ.*dice is 1.2, expected 0 to 1"),
        (HEADER + LINE.format(0, "", ""), "case a.*no dice"),
        (HEADER + LINE.format(0, "", "missed"), "no dice, expected one unless"),
        (HEADER + LINE.format(0, 1, "both empty"), "expected none for both empty"),
        (HEADER + LINE.format(0, 1, "odd"), "note 'odd'"),
        (HEADER + LINE.format(0, 1, "") * 2, "eps 0: two rows"),
        (HEADER + LINE.format(0, 1, "") + "a,p,s,organ\n", "line 3 has 4 cells, expected 9"),
        (
            HEADER
            + LINE.format(0, 1, "")
            + LINE.format(5, 1, "")
            + LINE.format(0, 1, "").replace("a,p", "b,q"),
            "case b, class organ, worst: no row for eps 5; expected 0, 5 in every case",
        ),
        (HEADER + LINE.format(0, 1, "") + LINE.format(5, 1, "").replace(",p,", ",q,"), "patient p and q"),
        (HEADER + LINE.format(0, 1, "").replace("organ", "mean"), "reserved"),
        (HEADER + LINE.format(0, 1, "").replace("worst", "clean"), "reserved"),
        (HEADER + LINE.format(0, 1, "").replace("1.0", "-3"), "size_ml is -3"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(tmp_path, text, said):
    path = tmp_path / "robustness.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"robustness\.csv.*{said}"):
        rb.read_csv(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,patient,site,eps\n", "columns"),
        ("case,patient,site,attack,eps\na,p,s,worst,-1\n", "eps -1.0, expected 0 or more"),
        ("case,patient,site,attack,eps\na,p,s,worst,inf\n", "line 2: eps inf is not finite"),
        ("case,patient,site,attack,eps\na,p,s,worst,1\na,p,s,worst,2\n", "two rows"),
    ],
)
def test_a_bad_minimum_file_is_refused(tmp_path, text, said):
    path = tmp_path / "minimum.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"minimum\.csv.*{said}"):
        rb.read_minimum(path)
