"""Folds, references, thirds, exclusion and baselines of the published few-shot protocol."""

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError
from seguro.evaluation import protocol

CHAOS = [str(i) for i in (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)]


def ball(first: int, last: int, n: int = 20) -> np.ndarray:
    mask = np.zeros((n, 6, 6), bool)
    mask[first : last + 1, 2:4, 2:4] = True
    return mask


@pytest.mark.parametrize(
    ("n", "bounds"), [(20, [0, 4, 8, 12, 16, 20]), (30, [0, 6, 12, 18, 24, 30])], ids=["mr", "ct"]
)
def test_folds_are_those_of_the_paper(n, bounds):
    ids = [str(i) for i in range(n)]
    for k, split in enumerate(protocol.splits(ids)):
        assert split.queries == tuple(ids[bounds[k] : bounds[k + 1]])
        assert split.support == ids[bounds[k + 1] % n]
        assert len(split.train) == n - len(split.queries) - 1
        assert not {split.support, *split.queries} & set(split.train)


def test_chaos_fold_four_is_supported_by_the_first_scan():
    last = protocol.splits(CHAOS)[4]
    assert (last.queries, last.support) == (("36", "37", "38", "39"), "1")


@pytest.mark.parametrize(("ids", "n"), [(["a", "a", "b"], 2), (["a", "b"], 2), (["a", "b", "c"], 1)])
def test_impossible_folds_are_refused(ids, n):
    with pytest.raises(ConfigError, match="folds"):
        protocol.splits(ids, n)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (0, 0, 0)), (3, (0, 1, 2)), (6, (1, 3, 5)), (12, (2, 6, 10)), (13, (2, 6, 10))]
)
def test_references_lie_at_a_sixth_a_half_and_five_sixths(n, expected):
    assert protocol.references([z + 7 for z in range(n)]) == tuple(z + 7 for z in expected)


def test_no_organ_has_no_references():
    with pytest.raises(DataError, match="does not show"):
        protocol.references([])


@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 12), (10, 42), (5, 7)])
def test_thirds_begin_at_the_first_and_end_at_the_last_slice(first, last):
    expected = [
        int(np.clip(np.floor((z - first) / ((last - first) / 3) + 1e-9), 0, 2))
        for z in range(first, last + 1)
    ]
    found = [protocol.part(z, first, last) for z in range(first, last + 1)]
    assert found == expected
    assert (found[0], found[-1]) == (0, 2)
    assert (protocol.part(first - 9, first, last), protocol.part(last + 9, first, last)) == (0, 2)


def test_one_slice_is_of_the_first_part():
    assert protocol.part(4, 4, 4) == 0


def test_ep1_asks_for_the_truth_range_only_each_third_from_its_reference():
    support, truth = ball(2, 7), ball(9, 17)
    asked = []

    def segment(slices, given):
        asked.append((list(slices), list(given)))
        return truth[list(slices)]

    assert protocol.ep1(segment, support, truth).dice == 1.0
    assert asked == [([9, 10, 11], [3]), ([12, 13, 14], [5]), ([15, 16, 17], [7])]


def test_ep1_may_ask_for_the_nearest_of_all_slices_that_show_the_organ():
    support, truth = ball(2, 6), ball(9, 17)  # shares 0, 1/4 ... 1 of the one, 0, 1/8 ... 1 of the other
    support[3] = False
    asked = []

    def segment(slices, given):
        asked.append((list(slices), list(given)))
        return truth[list(slices)]

    assert protocol.ep1(segment, support, truth, nearest=2).dice == 1.0
    assert asked == [([9, 10, 11, 12], [2, 4]), ([13, 14, 15], [4, 5]), ([16, 17], [5, 6])]
    asked.clear()
    protocol.ep1(segment, support, truth, nearest=9)
    assert asked == [(list(range(9, 18)), [2, 4, 5, 6])]
    assert protocol.ep1(segment, ball(3, 3), ball(10, 10), nearest=3).dice == 1.0


def test_ep1_does_not_see_what_ep2_punishes():
    truth = ball(9, 14)
    full = np.zeros_like(truth)
    full[:, 2:4, 2:4] = True
    assert protocol.within(full, truth).dice == 1.0
    assert protocol.ep2(full, truth).dice == pytest.approx(2 * 6 / (6 + 20))


def test_ep1_counts_over_slices_before_it_divides():
    support, truth = ball(0, 5), ball(0, 2)
    truth[2] = False
    truth[2, 0, 0] = True

    def segment(slices, given):
        out = truth[list(slices)].copy()
        out[np.array(slices) == 2] = False
        return out

    assert protocol.ep1(segment, support, truth).dice == pytest.approx(2 * 8 / (9 + 8))


def test_an_organ_that_is_not_there_is_named():
    for empty in (
        lambda t: protocol.ep1(protocol.copied(t), t, ~t & False),
        lambda t: protocol.within(t, ~t & t),
    ):
        with pytest.raises(DataError, match="not in the query"):
            empty(ball(2, 5))


def test_copied_masks_are_the_support_slices():
    support = ball(2, 7)
    support[2] = False
    support[2, 0, 0] = True
    found = protocol.copied(support)([4, 5], [2])
    np.testing.assert_array_equal(found, support[[2, 2]])
    np.testing.assert_array_equal(protocol.copied_volume(support, 20), support)
    np.testing.assert_array_equal(protocol.copied_volume(support, 40), np.repeat(support, 2, axis=0))


def test_everywhere_takes_the_thirds_of_the_scan():
    support = ball(6, 11)
    found = protocol.everywhere(protocol.copied(support), support, 9)
    np.testing.assert_array_equal(found, support[[7] * 3 + [9] * 3 + [11] * 3])


def test_setting_two_excludes_by_or():
    label = np.zeros((4, 3, 3), int)
    label[0, 0, 0] = 1
    label[1, 0, 0] = 2
    label[2, 0, :2] = 1, 2
    assert protocol.excluded(label, [1, 2]) == [0, 1, 2]
    assert protocol.excluded(label, [2]) == [1, 2]
    assert protocol.excluded(label, [5]) == []
