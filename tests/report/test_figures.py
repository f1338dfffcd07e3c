"""Figures: round ticks, dots at the right places, text that is escaped."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seguro.report.figures import (
    WIDTH,
    Dot,
    Series,
    from_zero,
    interval,
    lines,
    number,
    quartiles,
    strip,
    swarm,
    thin,
    ticks,
)


def test_ticks_closed_form():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 12) == [0, 5, 10]
    assert ticks(-3, 3, 6) == [-3, -2, -1, 0, 1, 2, 3]
    assert ticks(5, 5) == [5]
    assert ticks(float("nan"), 1) != ticks(0, 1)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_rise_and_stay_inside(low, span):
    found = ticks(low, low + span)
    slack = 1e-6 * max(span, abs(low))  # decimal rounding of the step
    assert all(low - slack <= t <= low + span + slack for t in found)
    assert found == sorted(found)
    assert len(found) <= 7


def test_numbers_as_a_reader_writes_them():
    written = [number(v) for v in (0, 0.2, 1.0, 0.0005, 2e-5, 12500, 3e6, -0.5)]
    assert written == ["0", "0.2", "1", "0.0005", "2e\N{MINUS SIGN}5", "12.5k", "3M", "\N{MINUS SIGN}0.5"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_quartiles_as_numpy(values):
    # linear interpolation in float64: a few units in the last place
    assert quartiles(values) == pytest.approx(tuple(np.percentile(values, (25, 50, 75))), abs=1e-12)


def test_swarm_keeps_dots_apart_while_there_is_room():
    spots = [10.0, 10.0, 10.0, 11.0, 30.0]
    offsets = swarm(spots, 6.0, 30.0)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    apart = [np.hypot(spots[i] - spots[j], offsets[i] - offsets[j]) for i, j in pairs]
    assert min(apart) >= 0.95 * 6.0 - 1e-9  # the overlap the function allows
    assert offsets[4] == 0.0  # alone: on the axis
    assert max(map(abs, swarm([5.0] * 200, 6.0, 20.0))) <= 20.0  # crowded: never out of its row


def test_strip_places_values_on_the_axis():
    svg = strip([("left", [Dot("a", 0.0), Dot("b", 1.0)])], axis="Dice", limits=(0, 1))
    first, last = (float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', svg))
    grid = sorted({float(x) for x in re.findall(r'class="grid" x1="([\d.]+)"', svg)})
    assert (first, last) == (grid[0], grid[-1])
    assert "<title>b: 1</title>" in svg


def test_failure_is_a_cross_and_said():
    svg = strip([("k", [Dot("a", 0.0, failed=True)])], axis="Dice", limits=(0, 1))
    assert 'class="cross"' in svg and "a: 0 (failure)" in svg and 'class="dot"' not in svg


def test_everything_written_is_escaped():
    evil = "<script>alert(1)</script>"
    svg = strip([(evil, [Dot(evil, 0.5)])], axis=evil)
    svg += lines([Series(evil, ((0, 1), (1, 2))), Series("b", ((0, 1),))], x_axis=evil, y_axis=evil)
    assert "<script" not in svg
    assert svg.count("&lt;script&gt;") >= 5
    assert " style=" not in svg  # the page's policy would refuse it


def test_lines_runs_from_axis_to_axis_and_up():
    svg = lines([Series("loss", ((0, 0.0), (10, 1.0)))], x_axis="update", y_axis="loss", limits=(0, 1))
    (x0, y0), (x1, y1) = [
        map(float, p.split()) for p in re.search(r'class="line" d="M(.*?)"', svg)[1].split("L")
    ]
    assert x0 == 46 and x1 == WIDTH - 14  # the frame's own ends
    assert y0 > y1  # screen rows fall as values rise


def test_lines_leaves_out_what_is_not_finite():
    nothing = lines([Series("loss", ((0, float("nan")),))], x_axis="update", y_axis="loss")
    assert "Nothing was logged" in nothing
    assert from_zero([Series("a", ((0, float("inf")), (1, 2.0)))]) == (0.0, 2.1)
    assert from_zero([Series("a", ((0, -1.0),))]) is None


def test_log_axis_puts_equal_ratios_at_equal_distances():
    svg = lines([Series("a", ((0, 1), (1, 10), (2, 100)))], x_axis="x", y_axis="y", log=True)
    heights = [float(p.split()[1]) for p in re.search(r'class="line" d="M(.*?)"', svg)[1].split("L")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.02)  # two decimals in SVG


def test_thin_keeps_the_mean_and_the_count():
    points = [(float(i), float(i % 7)) for i in range(1200)]
    thinned = thin(points, 300)
    assert len(thinned) == 300
    assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in points]), abs=1e-9)
    assert thin(points[:5], 300) == tuple(points[:5])


def test_interval_orders_its_marks():
    svg = interval(0.5, 0.25, 0.75, limits=(0, 1))
    low, high = map(float, re.search(r'whisker" x1="([\d.]+)" x2="([\d.]+)"', svg).groups())
    middle = float(re.search(r'cx="([\d.]+)"', svg)[1])
    assert low < middle < high and middle == 60 == (low + high) / 2  # half of 120
    assert interval(None, None, None, limits=(0, 1)) == ""


def test_there_is_no_half_round():
    two = [Series("a", ((0.0, 1.0), (2.0, 2.0)))]
    plain, whole = (
        str(lines(two, x_axis="Round", y_axis="Dice", limits=(0.0, 1.0), whole=w)) for w in (False, True)
    )
    assert ">1.5<" in plain and ">1.5<" not in whole
    assert all(f">{n}<" in whole for n in (0, 1, 2))
