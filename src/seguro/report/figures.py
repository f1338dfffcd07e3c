"""Figures as inline SVG: pure functions from numbers to markup; every text escaped, no style attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from markupsafe import Markup

_Scale = Callable[[float], float]

N_COLORS = 8
"""Colors of the palette in the style sheet (classes c0 to c7); a ninth series starts again."""
WIDTH = 460.0
_ROW = 62.0
_RADIUS = 3.1
_LONGEST_LABEL = 18


@dataclass(frozen=True)
class Dot:
    """One case in a distribution."""

    case: str
    value: float
    failed: bool = False
    """Drawn as a cross: the organ was missed, or there is no prediction."""


@dataclass(frozen=True)
class Series:
    """One line of a line chart; points in rising order of x."""

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()
    """(x, low, high) of an interval around the line; its points are then marked."""
    color: int | None = None
    """Place in the palette; default by position."""


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers that lie in [low, high], in rising order.

    The step is 1, 2 or 5 times a power of ten. An empty or reversed range gives just `low`.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(n, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Return `value` as a short tick label.

    No trailing zeros, thousands as k, tiny numbers with an exponent.
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, median and third quartile (linear interpolation).

    `values` must not be empty.
    """
    ordered = sorted(values)

    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        i = math.floor(place)
        j = min(i + 1, len(ordered) - 1)
        return ordered[i] + (place - i) * (ordered[j] - ordered[i])

    return at(0.25), median(ordered), at(0.75)


def swarm(positions: Sequence[float], diameter: float, half_height: float) -> list[float]:
    """Return an offset across the axis for each dot: dots of `diameter` do not overlap while room lasts.

    Deterministic: dots are placed in rising position, each at the free offset nearest to the axis; where a
    column is full the offset wraps round inside `half_height`.
    """
    placed: list[tuple[float, float]] = []
    offsets = [0.0] * len(positions)
    steps = [0.0]
    k = 1
    while k * diameter / 2 <= half_height:
        steps += [k * diameter / 2, -k * diameter / 2]
        k += 1
    for turn, index in enumerate(sorted(range(len(positions)), key=lambda i: (positions[i], i))):
        x = positions[index]
        near = [(px, py) for px, py in placed if x - px < diameter]
        free = (
            s
            for s in steps
            if all((x - px) ** 2 + (s - py) ** 2 >= (0.95 * diameter) ** 2 for px, py in near)
        )
        offsets[index] = next(free, steps[turn % len(steps)])
        placed.append((x, offsets[index]))
    return offsets


def strip(
    groups: Sequence[tuple[str, Sequence[Dot]]], *, axis: str, limits: tuple[float, float] | None = None
) -> Markup:
    """Return one row per class: a dot per case, with a tooltip, over a box of median and quartiles.

    Args:
        groups: class name and its dots, in drawing order; classes keep their color by position.
        axis: what the values are, with the unit.
        limits: lowest and highest value of the axis; default 0 to just above the largest value.
    """
    values = [d.value for _, dots in groups for d in dots]
    low, high = limits or (min(0.0, *values, 0.0), max([*values, 1e-9]) * 1.04)
    left = 24 + 7.2 * min(max((len(name) for name, _ in groups), default=4), _LONGEST_LABEL)
    right, top, bottom = 14.0, 6.0, 40.0
    height = top + _ROW * len(groups) + bottom
    span = WIDTH - left - right

    def across(v: float) -> float:
        return round(left + span * (min(max(v, low), high) - low) / (high - low), 2)

    parts = [_vertical_grid(ticks(low, high), across, top, height - bottom)]
    parts.append(_text(left + span / 2, height - 5, axis, "axis-name", anchor="middle"))
    for row, (name, dots) in enumerate(groups):
        middle = top + _ROW * (row + 0.5)
        parts.append(_label(left - 10, middle + 4, name))
        parts.append(_row([*dots], across, middle, row % N_COLORS))
    return _svg(WIDTH, height, f"{axis}, one dot per case, by class", parts)


def _row(dots: Sequence[Dot], across: _Scale, middle: float, color: int) -> Markup:
    if not dots:
        return Markup("")
    first, center, third = (across(q) for q in quartiles([d.value for d in dots]))
    box = Markup('<rect class="box" x="{}" y="{}" width="{}" height="{}" rx="3"/>').format(
        first, middle - 18, round(max(third - first, 0.5), 2), 36
    )
    bar = Markup('<line class="median" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
        center, middle - 18, middle + 18
    )
    xs = [across(d.value) for d in dots]
    marks = []
    for dot, x, dy in zip(dots, xs, swarm(xs, 2 * _RADIUS, _ROW / 2 - 6), strict=True):
        tip = f"{dot.case}: {number(dot.value)}" + (" (failure)" if dot.failed else "")
        y = round(middle + dy, 2)
        if dot.failed:
            path = f"M{x - 3.4:.2f} {y - 3.4:.2f}l6.8 6.8m0 -6.8l-6.8 6.8"
            marks.append(Markup('<path class="cross" d="{}"><title>{}</title></path>').format(path, tip))
        else:
            shape = '<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
            marks.append(Markup(shape).format(x, y, _RADIUS, tip))
    return Markup('<g class="c{}">{}{}{}</g>').format(color, box, Markup("").join(marks), bar)


def lines(
    series: Sequence[Series],
    *,
    x_axis: str,
    y_axis: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    width: float = WIDTH,
    at: Sequence[float] = (),
    whole: bool = False,
) -> Markup:
    """Return a line chart with axes, ticks and a direct legend below.

    Args:
        series: what to draw; empty ones are left out. Points with a value that is not finite (or, with `log`,
        not
            positive) are left out.
        x_axis: name of the horizontal axis.
        y_axis: name of the vertical axis, written above it.
        limits: lowest and highest value of the vertical axis; default spans the data.
        log: draw log10 of the values.
        width: of the picture; text keeps its size.
        at: places of the ticks of the horizontal axis; default round numbers.
        whole: ticks of the horizontal axis at whole numbers only: there is no half round.
    """
    drawn = [s for s in (_finite(s, log) for s in series) if s.points]
    if not drawn:
        return Markup('<p class="missing">Nothing was logged for: {}.</p>').format(y_axis)
    ys = [math.log10(y) if log else y for s in drawn for _, y in s.points]
    low, high = limits or _padded(min(ys), max(ys))
    x_low, x_high = min(0.0, *(s.points[0][0] for s in drawn)), max(s.points[-1][0] for s in drawn)
    left, right, top = 46.0, 14.0, 26.0
    plot_height = 168.0
    per_line = max(
        1, int((width - left) // (26 + 6.6 * min(max(len(s.name) for s in drawn), _LONGEST_LABEL)))
    )
    legend_height = 18.0 * math.ceil(len(drawn) / per_line) if len(drawn) > 1 else 0.0
    foot = top + plot_height
    height = foot + 38 + legend_height

    def across(x: float) -> float:
        return round(
            left + (width - left - right) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5), 2
        )

    def up(y: float) -> float:
        value = math.log10(y) if log else y
        return round(foot - plot_height * (min(max(value, low), high) - low) / (high - low), 2)

    parts = [_text(6, 14, y_axis, "axis-name")]
    for y in _log_ticks(low, high) if log else ticks(low, high):
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                left, width - right, up(y), up(y)
            )
        )
        parts.append(_text(left - 7, up(y) + 3.5, number(y), "tick", anchor="end"))
    for x in at or [t for t in ticks(x_low, x_high, 5) if not whole or t.is_integer()]:
        parts.append(_text(across(x), foot + 16, number(x), "tick", anchor="middle"))
    parts.append(
        Markup('<line class="frame" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            left, width - right, foot, foot
        )
    )
    parts.append(_text((left + width - right) / 2, foot + 32, x_axis, "axis-name", anchor="middle"))
    for i, s in reversed(list(enumerate(drawn))):  # the first on top
        parts.append(_line(s, across, up, _color(s, i)))
    if len(drawn) > 1:
        parts += _legend(drawn, left, foot + 50, per_line, (width - left) / per_line)
    return _svg(width, height, f"{y_axis} over {x_axis}", parts)


def from_zero(series: Sequence[Series]) -> tuple[float, float] | None:
    """Return limits from 0 to just above the largest value; None when nothing is positive."""
    top = max((y for s in series for _, y in s.points if math.isfinite(y)), default=0.0)
    return (0.0, 1.05 * top) if top > 0 else None


def _color(series: Series, place: int) -> int:
    return (place if series.color is None else series.color) % N_COLORS


def _line(series: Series, across: _Scale, up: _Scale, color: int) -> Markup:
    spots = [(across(x), up(y)) for x, y in series.points]
    edge = [(across(x), up(high)) for x, _, high in series.band]
    edge += [(across(x), up(low)) for x, low, _ in reversed(series.band)]
    band = Markup('<path class="band" d="M{}Z"/>').format(_path(edge)) if edge else Markup("")
    bounds = {x: f", interval {number(low)} to {number(high)}" for x, low, high in series.band}
    dots = []
    for (px, py), (x, y) in list(zip(spots, series.points, strict=True))[0 if bounds else -1 :]:
        tip = f"{series.name}: {number(y)} at {number(x)}{bounds.get(x, '')}"
        shape = '<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        dots.append(Markup(shape).format(px, py, _RADIUS, tip))
    return Markup('<g class="c{}">{}<path class="line" d="M{}"><title>{}</title></path>{}</g>').format(
        color, band, _path(spots), series.name, Markup("").join(dots)
    )


def _path(spots: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x} {y}" for x, y in spots)


def thin(points: Sequence[tuple[float, float]], most: int = 300) -> tuple[tuple[float, float], ...]:
    """Return at most `most` points: means over equal runs of neighbors (x and y).

    Fewer points are left as they are.
    """
    if len(points) <= most:
        return tuple(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    out = []
    for a, b in pairwise(edges):
        part = points[a:b]
        out.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return tuple(out)


def interval(
    mean: float | None, low: float | None, high: float | None, *, limits: tuple[float, float]
) -> Markup:
    """Return a small picture of a mean with its interval on a common axis, for a table cell."""
    width, height = 120.0, 14.0
    if mean is None or limits[1] <= limits[0]:
        return Markup("")

    def across(v: float) -> float:
        share = (min(max(v, limits[0]), limits[1]) - limits[0]) / (limits[1] - limits[0])
        return round(4 + (width - 8) * share, 2)

    parts = [Markup('<line class="grid" x1="4" x2="{0}" y1="7" y2="7"/>').format(width - 4)]
    if low is not None and high is not None:
        parts.append(
            Markup('<line class="whisker" x1="{}" x2="{}" y1="7" y2="7"/>').format(across(low), across(high))
        )
    parts.append(Markup('<circle class="dot" cx="{}" cy="7" r="3.6"/>').format(across(mean)))
    return _svg(
        width, height, f"mean {number(mean)}", [Markup('<g class="c0">{}</g>').format(Markup("").join(parts))]
    )


def _finite(series: Series, log: bool) -> Series:
    kept = tuple(p for p in series.points if all(map(math.isfinite, p)) and (p[1] > 0 or not log))
    return replace(series, points=kept)


def _padded(low: float, high: float) -> tuple[float, float]:
    if high <= low:
        room = abs(high) * 0.5 or 0.5
        return low - room, high + room
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for an axis of log10 values from `low` to `high`.

    Powers of ten, with 2 and 5 when these are few.
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low <= math.log10(f * 10.0**p) <= high]
        if len(found) >= 3:
            return found[:: max(1, len(found) // 6)]
    return found


def _vertical_grid(at: Sequence[float], across: _Scale, top: float, foot: float) -> Markup:
    parts = []
    for v in at:
        parts.append(
            Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(across(v), top, foot)
        )
        parts.append(_text(across(v), foot + 16, number(v), "tick", anchor="middle"))
    return Markup("").join(parts)


def _legend(drawn: Sequence[Series], left: float, top: float, per_line: int, width: float) -> list[Markup]:
    out = []
    for i, series in enumerate(drawn):
        x, y = left + (i % per_line) * width, top + 18 * (i // per_line)
        key = Markup('<g class="c{}"><line class="line" x1="{}" x2="{}" y1="{}" y2="{}"/></g>')
        out.append(key.format(_color(series, i), x, x + 16, y - 4, y - 4))
        out.append(_text(x + 21, y, _short(series.name), "legend"))
    return out


def _label(x: float, y: float, name: str) -> Markup:
    return Markup('<text class="legend" x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(
        round(x, 2), round(y, 2), _short(name), name
    )


def _text(x: float, y: float, text: str, css: str, *, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        css, round(x, 2), round(y, 2), anchor, text
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _svg(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup(
        '<svg class="figure" viewBox="0 0 {} {}" role="img" aria-label="{}" width="{}" height="{}">'
    )
    return (
        head.format(f"{width:g}", f"{height:g}", title, f"{width:g}", f"{height:g}")
        + Markup("").join(parts)
        + Markup("</svg>")
    )
