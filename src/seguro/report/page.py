"""The page: what it shows, as frozen values, and `render`, a pure function from these to one HTML file."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from seguro.report import figures, robustness
from seguro.report.federation import MARKS, Federated, megabytes
from seguro.report.figures import Dot, Series
from seguro.report.made import Made
from seguro.report.overlay import AXIS_NAMES, View
from seguro.report.robustness import Attacked, Picture

METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd": "Hausdorff distance",
    "hd95": "Hausdorff distance, 95 %",
    "assd": "Mean surface distance",
    "nsd": "Surface Dice (NSD)",
    "volume_error_ml": "Volume error (ml)",
    "volume_error_rel": "Relative volume error",
    "ece": "Calibration error (ECE)",
}
"""Names for people; a metric that is not listed is shown under its own name."""
DISTANCES = ("hd", "hd95", "assd")
SHARES = ("dice", "iou", "precision", "recall", "nsd", "ece")
BESIDE = ("dice", "hd95", "assd", "ece")
"""Metrics by which scored sets are shown side by side."""
FIRST = ("dice", "hd95", "assd", "nsd", "volume_error_ml", "ece")
"""Metrics that stand in the table at once; the others open on a click."""


@dataclass(frozen=True)
class Score:
    """One line of the score table: a class (or site) by one metric; None is "not defined here"."""

    cls: str
    metric: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    median: float | None = None
    n_cases: int = 0
    n_patients: int = 0
    failures: int = 0
    both_empty: int = 0
    not_annotated: int = 0
    site: str = "all"


@dataclass(frozen=True)
class ScoredSet:
    """One of several scored sets of a run, for the table that shows them side by side."""

    name: str
    """With the data set's name where it is not the one that was trained on."""
    unit: str
    scores: tuple[Score, ...]
    """Over all sites."""


@dataclass(frozen=True)
class Distribution:
    """All case values of one metric, by class."""

    metric: str
    groups: tuple[tuple[str, tuple[Dot, ...]], ...]


@dataclass(frozen=True)
class ClassResult:
    """What one shown case scored in one class.

    Volumes in millilitres, None where there is nothing to measure.
    """

    cls: str
    dice: float | None
    truth_ml: float | None = None
    prediction_ml: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """One case with its pictures."""

    case: str
    rank: str
    """"worst", "median" or "best"."""
    mean: float | None
    results: tuple[ClassResult, ...]
    views: tuple[View, ...] = ()
    site: str = ""
    missing: str = ""
    """Why there is no picture, or no prediction in it."""
    oriented: bool = True


@dataclass(frozen=True)
class StageFact:
    """One finished stage of the arrow."""

    name: str
    key: str
    outputs: str
    seconds: float | None = None
    version: str = ""
    machine: str = ""
    seed: str = ""


@dataclass(frozen=True)
class Reason:
    """A case or file and what is to be said of it."""

    name: str
    text: str


@dataclass(frozen=True)
class Headline:
    """The first lines of the page."""

    dataset: str
    method: str
    network: str
    split: str
    n_cases: int = 0
    n_patients: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    summary: str = ""
    """One plain sentence."""


@dataclass(frozen=True)
class ReportContent:
    """Everything the page shows; an empty part is said to be missing."""

    headline: Headline
    unit: str = "mm"
    """"mm", "nominal mm" or "px"; stands in every distance column."""
    caveats: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    site_scores: tuple[Score, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    shown: tuple[Shown, ...] = ()
    loss: tuple[Series, ...] = ()
    rate: tuple[Series, ...] = ()
    validation: tuple[Series, ...] = ()
    stages: tuple[StageFact, ...] = ()
    config: str = ""
    reasons: tuple[str, ...] = ()
    excluded: tuple[Reason, ...] = ()
    flags: tuple[Reason, ...] = ()
    failed: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What the training log noted, in order."""
    tolerance_mm: float | None = None
    """Of the surface Dice."""
    commands: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Parts of the arrow that have not run or left no file."""
    others: tuple[str, ...] = ()
    """Other scored sets of the same run."""
    sets: tuple[ScoredSet, ...] = ()
    """All scored sets, the one of the page first; empty where it is the only one."""
    attacks: tuple[Attacked, ...] = ()
    """Attacks on the model and corruptions of its images, where there are any."""
    federation: Federated | None = None
    """Of a federated run."""
    made: Made | None = None
    """Of a run that makes images."""
    only_makes: bool = False
    """Whether the run segments nothing, and can have no scores."""
    facts: tuple[tuple[str, str], ...] = field(default=())
    """Further name and value pairs of the headline (patch, spacing, updates, ...)."""


def render(content: ReportContent) -> str:
    """Return the whole page as one HTML text that loads nothing: inline style, SVG and data URIs only.

    The same content gives the same text. A Content-Security-Policy in the page allows the page's own style
    (by its hash) and images that it carries, and refuses everything else, scripts included.
    """
    css = _source("style.css").strip()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template("report.html.j2")
    return page.render(
        c=content,
        css=Markup(css),
        policy=policy,
        tables=_tables(content),
        sites=_site_tables(content),
        sets=_set_tables(content),
    )


@dataclass(frozen=True)
class MetricTable:
    """The lines of one metric with what their columns need."""

    metric: str
    title: str
    lines: tuple[Score, ...]
    limits: tuple[float, float]
    first: bool


def _tables(content: ReportContent) -> list[MetricTable]:
    names = list(dict.fromkeys(s.metric for s in content.scores))
    names.sort(key=lambda m: FIRST.index(base(m)) if base(m) in FIRST else len(FIRST))
    tables = []
    for name in names:
        lines = tuple(s for s in content.scores if s.metric == name)
        ends = [v for s in lines for v in (s.mean, s.low, s.high) if v is not None]
        limits = (0.0, 1.0) if base(name) in SHARES else (min([0.0, *ends]), max([1e-9, *ends]))
        tables.append(MetricTable(name, title(name, content.unit), lines, limits, base(name) in FIRST))
    return tables


@dataclass(frozen=True)
class SiteTable:
    """One metric by site (rows) and class (columns)."""

    title: str
    metric: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Score | None, ...]], ...]


def _site_tables(content: ReportContent) -> list[SiteTable]:
    sites = list(dict.fromkeys(s.site for s in content.site_scores))
    if len(sites) < 2:
        return []
    out = []
    for metric in dict.fromkeys(s.metric for s in content.site_scores):
        if base(metric) not in ("dice", "hd95"):
            continue
        found = {(s.site, s.cls): s for s in content.site_scores if s.metric == metric}
        classes = tuple(dict.fromkeys(c for _, c in found))
        rows = tuple((site, tuple(found.get((site, c)) for c in classes)) for site in sites)
        out.append(SiteTable(title(metric, content.unit), metric, classes, rows))
    return out


def _set_tables(content: ReportContent) -> list[SiteTable]:
    """Return one table per metric with a row for each scored set: the model at home and elsewhere."""
    out = []
    units = {s.unit for s in content.sets}
    unit = units.pop() if len(units) == 1 else "each in its unit"
    for metric in dict.fromkeys(s.metric for one in content.sets for s in one.scores):
        if base(metric) not in BESIDE:
            continue
        found = {(one.name, s.cls): s for one in content.sets for s in one.scores if s.metric == metric}
        classes = tuple(dict.fromkeys(c for _, c in found))
        rows = tuple((one.name, tuple(found.get((one.name, c)) for c in classes)) for one in content.sets)
        out.append(SiteTable(title(metric, unit), metric, classes, rows))
    return out


def base(metric: str) -> str:
    """Return the metric's name without what follows an `@` or a blank (a tolerance): "nsd@2mm" is "nsd"."""
    return metric.lower().split("@")[0].split(" ")[0]


def title(metric: str, unit: str) -> str:
    """Return the metric's name for people, with its unit."""
    kind = base(metric)
    name = METRICS.get(kind, metric)
    rest = metric[len(kind) :].lstrip("@ ")
    if rest:
        name += f" at {rest}"
    if kind in DISTANCES:
        return f"{name} ({unit})"
    return name


def value(number: float | None, metric: str = "dice") -> str:
    """Return a score as text: three decimals for shares, two for others, a dash where there is none."""
    if number is None:
        return "\N{EN DASH}"
    return f"{number:.3f}" if base(metric) in SHARES else f"{number:.2f}".replace("-", "\N{MINUS SIGN}")


def millilitres(number: float | None) -> str:
    """Return a volume as text with three significant figures, without an exponent."""
    if number is None:
        return "\N{EN DASH}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def duration(seconds: float | None) -> str:
    """Return a duration as text: "8 s", "3 min 20 s", "1 h 05 min"."""
    if seconds is None:
        return "\N{EN DASH}"
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def strip_figure(distribution: Distribution, unit: str) -> Markup:
    """Return the dots of one metric by class; shares always span 0 to 1."""
    limits = (0.0, 1.0) if base(distribution.metric) in SHARES else None
    return figures.strip(distribution.groups, axis=title(distribution.metric, unit), limits=limits)


def data_uri(view: View | Picture) -> str:
    """Return the picture as a data URI."""
    return f"data:{view.mime};base64,{base64.b64encode(view.data).decode()}"


def _view_name(view: View, oriented: bool) -> str:
    if not oriented:
        return "image" if view.n == 1 else f"slice {view.index + 1} of {view.n}"
    return f"{AXIS_NAMES[view.axis]} {view.index + 1} of {view.n}"


def _source(name: str) -> str:
    return resources.files("seguro.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        value=value,
        ml=millilitres,
        duration=duration,
        megabytes=megabytes,
        data_uri=data_uri,
        metric_title=title,
        view_name=_view_name,
        attack_name=robustness.attack_name,
        class_name=robustness.class_name,
    )
    environment.globals.update(
        strip=strip_figure,
        lines=figures.lines,
        interval=figures.interval,
        from_zero=figures.from_zero,
        by_attack=robustness.by_attack,
        by_class=robustness.by_class,
        distribution=robustness.distribution,
        heat=robustness.heat,
        marks=MARKS,
        heat_steps=robustness.HEAT,
        heat_step=robustness.HEAT_STEP,
    )
    return environment
