"""Accuracy over cost: one dot per system, one panel per kind of cost, as a stand-alone SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seguro.report.figures import N_COLORS, number, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 460.0, 190.0, 52.0, 14.0, 26.0, 42.0
KEY = 18.0
"""Height of a line of the legend."""
COLORS = ("0072b2", "d55e00", "009e73", "b0568c", "b97f00", "2f8fc4", "6a5acd", "555555")
STYLE = (
    "svg{background:#fff}text{font-family:system-ui,sans-serif;fill:#444;font-size:11.5px}"
    ".axis-name{fill:#111;font-size:12px;font-weight:600}.grid{stroke:#ddd}.frame{stroke:#999}"
    + "".join(f".c{i} circle{{fill:#{c};stroke:#fff}}" for i, c in enumerate(COLORS))
)


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
        panels: name of the horizontal axis -> dots; a system has the color of its place among all names.
        y_axis: name of the vertical axis.
    """
    names = list(dict.fromkeys(d.name for dots in panels.values() for d in dots))
    parts = []
    for i, (title, dots) in enumerate(panels.items()):
        inner = _panel([d for d in dots if d.cost > 0], names, title, y_axis)
        parts.append(Markup('<g transform="translate(0 {})">{}</g>').format(i * HEIGHT, inner))
    foot = HEIGHT * len(panels)
    for i, name in enumerate(names):
        key = Markup('<g class="c{}"><circle cx="{}" cy="{}" r="5"/></g><text x="{}" y="{}">{}</text>')
        y = foot + KEY * (i + 0.5)
        parts.append(key.format(i % N_COLORS, LEFT, y - 4, LEFT + 12, y, name))
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
    for cost in (10**v for v in ticks(x_low, x_high, 4)):
        mark = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(mark.format(across(cost), HEIGHT - FOOT + 16, number(float(f"{cost:.2g}"))))
    frame = Markup('<line class="frame" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>')
    parts.append(frame.format(LEFT, WIDTH - RIGHT, HEIGHT - FOOT))
    for d in dots:
        spot = Markup('<g class="c{}"><circle cx="{}" cy="{}" r="5"><title>{}: {} at {}</title></circle></g>')
        place = names.index(d.name) % N_COLORS
        parts.append(spot.format(place, across(d.cost), up(d.value), d.name, number(d.value), number(d.cost)))
    return Markup("").join(parts)


def _wide(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return limits around the values with some room, at least `least` on each side."""
    room = max(0.08 * (max(values) - min(values)), least)
    return min(values) - room, max(values) + room
