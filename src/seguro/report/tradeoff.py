"""Accuracy over cost: one dot per system, one panel per kind of cost, as a stand-alone SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seguro.report.figures import N_COLORS, number, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 460.0, 190.0, 52.0, 14.0, 26.0, 42.0
MARKS = 3
"""Labels that the axis of costs has at least, where there is room."""
KEY = 18.0
"""Height of a line of the legend."""
COLORS = ("0072b2", "d55e00", "009e73", "b0568c", "b97f00", "2f8fc4", "6a5acd", "555555")
STYLE = (
    "svg{background:#fff}text{font-family:system-ui,sans-serif;fill:#444;font-size:11.5px}"
    ".axis-name{fill:#111;font-size:12px;font-weight:600}.grid{stroke:#ddd}.frame{stroke:#999}"
    + "".join(f".c{i} .mark{{fill:#{c};stroke:#fff}}" for i, c in enumerate(COLORS))
)
SQUARE, DIAMOND = ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)), ((0, -6), (6, 0), (0, 6), (-6, 0))
SHAPES = (None, SQUARE, DIAMOND)
"""Corners around the middle of what marks the first, second and third eight systems; None for a circle."""


@dataclass(frozen=True)
class Dot:
    """One system."""

    name: str
    cost: float
    """Positive; drawn on a logarithmic axis."""
    value: float


def tradeoff(panels: Mapping[str, Sequence[Dot]], *, y_axis: str) -> str:
    """Return panels of value over cost, one below the other, with one legend.

    Args:
        panels: name of the horizontal axis -> dots; a system has the color and shape of its place among all
            names, and where marks cover each other the first system is on top.
        y_axis: name of the vertical axis.
    """
    names = list(dict.fromkeys(d.name for dots in panels.values() for d in dots))
    parts = []
    for i, (title, dots) in enumerate(panels.items()):
        inner = _panel([d for d in dots if d.cost > 0], names, title, y_axis)
        parts.append(Markup('<g transform="translate(0 {})">{}</g>').format(i * HEIGHT, inner))
    foot = HEIGHT * len(panels)
    for i, name in enumerate(names):
        key = Markup('{}<text x="{}" y="{}">{}</text>')
        y = foot + KEY * (i + 0.5)
        parts.append(key.format(_mark(i, LEFT, y - 4), LEFT + 12, y, name))
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
        'aria-label="{2} over cost"><style>{3}</style>'
    ).format(WIDTH, foot + KEY * len(names) + 6, y_axis, Markup(STYLE))
    return str(head + Markup("").join(parts) + Markup("</svg>\n"))


def _panel(dots: Sequence[Dot], names: Sequence[str], title: str, y_axis: str) -> Markup:
    parts = [Markup('<text class="axis-name" x="6" y="14">{}</text>').format(y_axis)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        Markup('<text class="axis-name" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            middle, HEIGHT - 8, title
        )
    )
    if not dots:
        return Markup("").join(parts)
    x_low, x_high = _wide([math.log10(d.cost) for d in dots], 0.1)
    y_low, y_high = _wide([d.value for d in dots], 0.02)

    def across(cost: float) -> float:
        share = (math.log10(cost) - x_low) / (x_high - x_low)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 2)

    def up(value: float) -> float:
        return round(HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * (value - y_low) / (y_high - y_low), 2)

    for v in ticks(y_low, y_high):
        parts.append(
            Markup(
                '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" '
                'text-anchor="end">{5}</text>'
            ).format(LEFT, WIDTH - RIGHT, up(v), LEFT - 6, up(v) + 4, number(v))
        )
    for cost in decades(x_low, x_high):
        mark = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(mark.format(across(cost), HEIGHT - FOOT + 16, number(cost)))
    frame = Markup('<line class="frame" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>')
    parts.append(frame.format(LEFT, WIDTH - RIGHT, HEIGHT - FOOT))
    for d in reversed(dots):
        told = f"{d.name}: {number(round(d.value, 4))} at {number(round(d.cost, 4))}"
        parts.append(_mark(names.index(d.name), across(d.cost), up(d.value), told))
    return Markup("").join(parts)


def _mark(place: int, x: float, y: float, told: str = "") -> Markup:
    """Return the mark of the system at `place` among all names."""
    corners = SHAPES[place // N_COLORS % len(SHAPES)]
    title = Markup("<title>{}</title>").format(told) if told else ""
    if corners is None:
        form = Markup('<circle class="mark" cx="{}" cy="{}" r="5">{}</circle>').format(x, y, title)
    else:
        points = " ".join(f"{round(x + dx, 2)},{round(y + dy, 2)}" for dx, dy in corners)
        form = Markup('<polygon class="mark" points="{}">{}</polygon>').format(points, title)
    return Markup('<g class="c{}">{}</g>').format(place % N_COLORS, form)


def decades(low: float, high: float) -> list[float]:
    """Return round costs from 10^low to 10^high: powers of ten, or 1, 2 and 5 times them where they are few.

    Where even these are fewer than two: round numbers at equal distances.
    """
    for factors in ((1.0,), (1.0, 2.0, 5.0)):
        powers = range(math.floor(low) - 1, math.ceil(high) + 1)
        found = [round(f * 10.0**p, 12) for p in powers for f in factors]
        inside = [c for c in found if low <= math.log10(c) <= high]
        if len(inside) >= MARKS:
            return inside
    return inside if len(inside) > 1 else ticks(10**low, 10**high, MARKS)


def _wide(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return limits around the values with some room, at least `least` on each side."""
    room = max(0.08 * (max(values) - min(values)), least)
    return min(values) - room, max(values) + room
