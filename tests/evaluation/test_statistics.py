import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seguro.core.errors import DataError
from seguro.core.types import ScoreRow
from seguro.evaluation.statistics import cluster_interval, holm, paired, sign_flip, summarize


def rng():
    return np.random.default_rng(5)


def rows(values, *, cls="liver", metric="dice", patient=None, site="s1", note=""):
    return [
        ScoreRow(f"c{i}", patient[i] if patient else f"p{i}", site, cls, metric, v, note if v is None else "")
        for i, v in enumerate(values)
    ]


def only(result, **fields):
    found = [r for r in result if all(getattr(r, k) == v for k, v in fields.items())]
    assert len(found) == 1
    return found[0]


def test_mean_median_and_counts():
    scores = [
        *rows([0.0, 0.5, 1.0, None], note="both empty"),
        *rows([0.2, None, 0.4, None], cls="spleen", note="not annotated"),
    ]
    scores[0] = scores[0]._replace(note="missed")
    result = summarize(scores)
    liver = only(result, cls="liver", site="all")
    assert (liver.mean, liver.median, liver.sd) == (0.5, 0.5, 0.5)
    assert (liver.n_cases, liver.n_patients, liver.failures, liver.both_empty, liver.not_annotated) == (
        3,
        3,
        1,
        1,
        0,
    )
    assert only(result, cls="spleen", site="all").not_annotated == 2
    mean = only(result, cls="mean", site="all")  # of the per-case means 0.1, 0.5, 0.7; c3 has no value
    assert mean.mean == pytest.approx((0.1 + 0.5 + 0.7) / 3, abs=1e-12)
    assert (mean.n_cases, mean.failures, mean.both_empty, mean.not_annotated) == (3, 1, 1, 2)


def test_sites_are_summarized_apart():
    first, second = rows([0.2, 0.4]), [r._replace(case="x" + r.case, site="s2") for r in rows([0.8, 1.0])]
    result = summarize(first + second)
    assert [only(result, cls="liver", site=s).mean for s in ("all", "s1", "s2")] == pytest.approx(
        [0.6, 0.3, 0.9]
    )


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_result_does_not_depend_on_the_order_of_rows(random):
    generator = np.random.default_rng(1)
    values = generator.random(12).tolist()
    scores = rows(values, patient=[f"p{i // 2}" for i in range(12)]) + rows(values[::-1], cls="spleen")
    scores = [r._replace(patient=f"p{int(r.case[1:]) // 2}") for r in scores]
    better = [r._replace(value=r.value + 0.01 * i) for i, r in enumerate(scores)]
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert summarize(shuffled) == summarize(scores)
    assert paired(shuffled, better) == paired(scores, better)


def test_interval_of_many_patients_is_the_normal_one():
    values = rng().normal(0.8, 0.1, 400)
    low, high = cluster_interval(values, [str(i) for i in range(400)], rng=rng())
    half = 1.96 * values.std() / 20
    # 2000 draws give each end to about 5 % of the half width
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_interval_agrees_with_scipy_bca_on_skewed_values():
    values = rng().exponential(1.0, 40)
    low, high = cluster_interval(values, [str(i) for i in range(40)], rng=rng(), n=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=3).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)  # Monte Carlo error of both


def test_repeated_cases_of_a_patient_do_not_narrow_the_interval():
    values = rng().random(10)
    single = cluster_interval(values, [f"p{i}" for i in range(10)], rng=rng())
    tenfold = cluster_interval(
        np.repeat(values, 10), [f"p{i}" for i in range(10) for _ in range(10)], rng=rng()
    )
    assert tenfold == pytest.approx(single, abs=1e-9)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(200):
        shift = generator.normal(size=15).repeat(3)  # three cases per patient, alike
        low, high = cluster_interval(
            shift + 0.2 * generator.normal(size=45), [str(i // 3) for i in range(45)], rng=generator, n=500
        )
        hits += low <= 0 <= high
    assert (
        0.86 <= hits / 200 <= 0.99
    )  # nominal .95, bootstrap of 15 patients a little below; 4 binomial errors


def test_one_patient_has_no_interval_and_equal_values_a_point():
    assert cluster_interval(np.array([0.1, 0.9]), ["p", "p"], rng=rng()) is None
    assert cluster_interval(np.full(5, 0.7), list("abcde"), rng=rng()) == pytest.approx((0.7, 0.7))
    assert only(summarize(rows([0.5])), cls="liver", site="all").low is None


def test_sign_flip_enumerates_few_patients_exactly():
    # all four differences positive: only the observed assignment and its mirror are as extreme, 2 of 16
    assert sign_flip(np.array([1.0, 2.0, 3.0, 4.0]), list("abcd"), rng=rng()) == 2 / 16
    assert sign_flip(np.array([1.0, 2.0, 3.0, 4.0]), list("aabb"), rng=rng()) == 2 / 4
    assert sign_flip(np.zeros(20), [str(i) for i in range(20)], rng=rng()) == 1


def test_sign_flip_of_many_patients_is_near_the_t_test_and_never_zero():
    values = rng().normal(0.3, 1.0, 60)
    p = sign_flip(values, [str(i) for i in range(60)], rng=rng())
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip(np.ones(60), [str(i) for i in range(60)], rng=rng()) == 1 / 10_001


def test_holm_steps_down_and_never_decreases():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_paired_difference_is_b_minus_a_with_its_tests():
    a, b = [0.5, 0.6, 0.7, 0.8, 0.9], [0.6, 0.7, 0.8, 0.9, 1.0]
    result = only(paired(rows(a), rows(b)), cls="liver")
    assert result.difference == pytest.approx(0.1) and (result.n_cases, result.n_patients) == (5, 5)
    assert result.p_permutation == 2 / 32 and result.p_wilcoxon == 2 / 32
    mirrored = only(paired(rows(b), rows(a)), cls="liver")
    assert mirrored.difference == pytest.approx(-result.difference)
    assert mirrored.p_permutation == result.p_permutation
    same = only(paired(rows(a), rows(a)), cls="liver")
    assert (same.difference, same.p_permutation, same.p_wilcoxon) == (0, 1, 1)


def test_holm_is_over_classes_and_mean_stands_alone():
    a = rows([0.5] * 5) + rows([0.5] * 5, cls="spleen")
    b = rows([0.6] * 5) + rows([0.5, 0.6, 0.4, 0.5, 0.5], cls="spleen")
    result = paired(a, b)
    liver, mean = only(result, cls="liver"), only(result, cls="mean")
    assert liver.p_holm == 2 * liver.p_permutation
    assert mean.p_holm == mean.p_permutation and mean.difference == pytest.approx(0.05)


def test_correctly_empty_beats_a_false_alarm_in_a_pair():
    a = [*rows([0.9, None], note="both empty")]
    b = [*rows([0.9, 0.0])]
    b[1] = b[1]._replace(note="false alarm")
    result = only(paired(a, b), cls="liver")
    assert result.n_cases == 2 and result.difference == -0.5


def test_signed_errors_are_compared_by_magnitude():
    a, b = rows([5.0, -5.0], metric="volume_error_ml"), rows([-5.0, -4.0], metric="volume_error_ml")
    assert only(paired(a, b), cls="liver").difference == -0.5


def test_other_cases_are_refused_unless_told_to_intersect():
    a, b = rows([0.1, 0.2, 0.3]), rows([0.2, 0.3])
    with pytest.raises(DataError, match=r"case set: 1 \(c2\) only in the first, none only in the second"):
        paired(a, b)
    assert only(paired(a, b, intersect=True), cls="liver").n_cases == 2
    with pytest.raises(DataError, match="class set"):
        paired(rows([0.1]), rows([0.1], cls="spleen"))
    with pytest.raises(DataError, match="another patient"):
        paired(rows([0.1]), rows([0.1], patient=["q"]))
    with pytest.raises(DataError, match="in common"):
        paired(rows([None], note="both empty"), rows([None], note="both empty"))


def test_repeated_and_reserved_names_are_refused():
    with pytest.raises(DataError, match="scored twice"):
        summarize(rows([0.1]) * 2)
    with pytest.raises(DataError, match="reserved"):
        summarize(rows([0.1], cls="mean"))
