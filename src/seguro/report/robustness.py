"""What the page shows of an attack, as frozen values, with its figures."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from seguro.report import figures
from seguro.report.figures import Series

MEAN, WORST, NOISE = "mean", "worst", "noise"
NAMES = {WORST: "worst of all", NOISE: "noise (control)"}
_GRAY = 6
"""Palette place of the noise control: it is no attack."""
HEAT = 10
"""Steps of the heat map; a step is a Dice loss of HEAT_STEP."""
HEAT_STEP = 0.05


@dataclass(frozen=True)
class Guard:
    """One check that an attack is to be believed; `passed` None: not made."""

    name: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Point:
    """The mean Dice over cases at one epsilon."""

    eps: float
    mean: float
    low: float | None = None
    high: float | None = None
    n_cases: int = 0
    n_patients: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Curve:
    """The points of one attack in one class, epsilon rising."""

    attack: str
    cls: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Area:
    """The area under one curve."""

    attack: str
    cls: str
    mean: float
    low: float | None = None
    high: float | None = None
    n_cases: int = 0


@dataclass(frozen=True)
class Stratum:
    """The curve of the small, medium or large cases of a class under the worst attack."""

    cls: str
    name: str
    size_low: float
    size_high: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Minimum:
    """The distribution of the smallest epsilon that breaks a case; None: beyond the largest tried."""

    attack: str
    n_cases: int
    censored: int
    q1: float | None
    median: float | None
    q3: float | None
    found: tuple[float, ...] = ()


@dataclass(frozen=True)
class Weighted:
    """The score of one corruption over its severities."""

    corruption: str
    cls: str
    clean: float
    mean: float
    low: float | None
    high: float | None
    degradation: float


@dataclass(frozen=True)
class CaseLine:
    """One case's mean Dice at each epsilon under the worst attack."""

    case: str
    dice: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """One picture of an example."""

    name: str
    width: int
    height: int
    data: bytes
    mime: str


@dataclass(frozen=True)
class Example:
    """One of the cases that suffered most."""

    case: str
    attack: str
    eps: float
    dice_clean: float | None
    dice_attacked: float | None
    channel: str = ""
    pictures: tuple[Picture, ...] = ()
    missing: str = ""
    """Why there is no picture."""


@dataclass(frozen=True)
class Attacked:
    """One attack (or set of corruptions) of the run's model: a folder below attacks/."""

    name: str
    eps: tuple[float, ...]
    corrupted: bool = False
    """The attacks are corruptions and their epsilons severities."""
    eps_unit: str = "255ths of each channel's range"
    n_cases: int = 0
    unit: str = "mm"
    threshold: float | None = None
    facts: tuple[tuple[str, str], ...] = ()
    cost: tuple[tuple[str, str], ...] = ()
    native: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Channel and what each epsilon is in its own units."""
    guards: tuple[Guard, ...] = ()
    curves: tuple[Curve, ...] = ()
    areas: tuple[Area, ...] = ()
    strata: tuple[Stratum, ...] = ()
    minimums: tuple[Minimum, ...] = ()
    cases: tuple[CaseLine, ...] = ()
    weighted: tuple[Weighted, ...] = ()
    examples: tuple[Example, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Guard, ...]:
        """Guards that did not pass: the numbers are not to be believed."""
        return tuple(g for g in self.guards if g.passed is False)

    @property
    def strength(self) -> str:
        """What the epsilons are, for an axis or a heading."""
        return "severity" if self.corrupted else f"ε, {self.eps_unit}"

    def amount(self, eps: float) -> str:
        """One epsilon for people: "ε 8/255", "ε 20 HU", "severity 3"."""
        if self.corrupted:
            return f"severity {eps:g}"
        return f"ε {eps:g}/255" if self.eps_unit.startswith("255") else f"ε {eps:g} {self.eps_unit}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the curves, the mean last."""
        found = list(dict.fromkeys(c.cls for c in self.curves))
        return tuple(sorted(found, key=lambda c: c == MEAN))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Attacks of the curves in their order."""
        return tuple(dict.fromkeys(c.attack for c in self.curves))

    @property
    def headline(self) -> str:
        """The attack that counts: the worst case where there is one."""
        return WORST if WORST in self.attacks else next(iter(self.attacks), "")

    def curve(self, attack: str, cls: str) -> Curve | None:
        """The curve of an attack in a class."""
        return next((c for c in self.curves if (c.attack, c.cls) == (attack, cls)), None)

    def area(self, attack: str, cls: str) -> Area | None:
        """The area of an attack in a class."""
        return next((a for a in self.areas if (a.attack, a.cls) == (attack, cls)), None)

    def score(self, corruption: str, cls: str) -> Weighted | None:
        """The weighted score of a corruption in a class."""
        return next((w for w in self.weighted if (w.corruption, w.cls) == (corruption, cls)), None)


def attack_name(attack: str) -> str:
    """Return an attack's name for people."""
    return NAMES.get(attack, attack)


def class_name(cls: str) -> str:
    """Return a class's name for people."""
    return "all classes" if cls == MEAN else cls


def by_attack(attacked: Attacked, cls: str) -> Markup:
    """Return the curves of every attack in one class, worst first and the noise control in gray."""
    drawn = [c for c in attacked.curves if c.cls == cls]
    return _chart(
        attacked, [_series(attack_name(c.attack), c, c.attack == NOISE) for c in drawn], class_name(cls)
    )


def by_class(attacked: Attacked) -> Markup:
    """Return the curves of the headline attack in every class."""
    drawn = [c for c in (attacked.curve(attacked.headline, cls) for cls in attacked.classes) if c]
    return _chart(
        attacked,
        [_series(class_name(c.cls), c, c.cls == MEAN) for c in drawn],
        attack_name(attacked.headline),
    )


def distribution(attacked: Attacked) -> Markup:
    """Return the share of cases that are broken up to each epsilon, a line of steps per attack."""
    end = max(attacked.eps, default=0.0)
    names = dict.fromkeys([*attacked.attacks, *(m.attack for m in attacked.minimums)])
    names.pop(NOISE, None)
    places = {name: place for place, name in enumerate(names)}  # the color it has among the curves
    series = []
    for m in attacked.minimums:
        points, share = [(0.0, 0.0)], 0.0
        for k, eps in enumerate(m.found, start=1):
            points += [(eps, share), (eps, k / m.n_cases)]
            share = k / m.n_cases
        steps = (*points, (max(end, points[-1][0]), share))
        series.append(Series(attack_name(m.attack), steps, color=places.get(m.attack)))
    return figures.lines(
        series,
        x_axis=attacked.strength,
        y_axis="Share of cases broken",
        limits=(0.0, 1.0),
        at=attacked.eps,
    )


def heat(clean: float | None, value: float | None) -> int:
    """Return the step of the heat map, 0 (no loss) to HEAT, of a Dice that was `clean` before."""
    if clean is None or value is None:
        return 0
    return min(max(round((clean - value) / HEAT_STEP), 0), HEAT)


def _series(name: str, curve: Curve, gray: bool) -> Series:
    points = tuple((p.eps, p.mean) for p in curve.points)
    known = [(p.eps, p.low, p.high) for p in curve.points if p.low is not None and p.high is not None]
    band = tuple((e, low, high) for e, low, high in known if len(known) == len(points))
    return Series(name, points, band, _GRAY if gray else None)


def _chart(attacked: Attacked, series: list[Series], what: str) -> Markup:
    return figures.lines(
        series, x_axis=attacked.strength, y_axis=f"Dice, {what}", limits=(0.0, 1.0), at=attacked.eps
    )
