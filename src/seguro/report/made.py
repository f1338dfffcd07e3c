"""What the page shows of a run that makes images, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from seguro.report.figures import Series
from seguro.report.robustness import Picture


@dataclass(frozen=True)
class Audited:
    """How near the slices that were made of a domain come to its training slices."""

    domain: str
    ratio: float | None
    """Of the distance to the nearest training slice over that of held-out slices; None without any."""
    n_made: int
    n_held_out: int
    n_train: int
    verdict: str
    """"passed", "not passed", or why there is none."""


@dataclass(frozen=True)
class MadeSet:
    """A set of labelled volumes that `seguro generate` made with the run's model."""

    name: str
    """Of its folder."""
    domain: str
    volumes: int
    beside: int
    """Real cases that were copied in."""
    releasable: bool
    audit: str
    """Its verdict, in words."""


@dataclass(frozen=True)
class Made:
    """Made slices and volumes, and what is known of them."""

    pictures: tuple[Picture, ...] = ()
    """The last one of each domain."""
    sets: tuple[MadeSet, ...] = ()
    audit: tuple[Audited, ...] = ()
    needed: float | None = None
    """Smallest ratio that passes."""
    releasable: bool | None = None
    """None where there is no audit."""
    distance: tuple[Series, ...] = ()
    """Of the made slices of each domain to the real ones, by update or round."""
    recognized: tuple[Series, ...] = ()
    """Part of the made slices that is taken for the domain asked for, by update or round."""
    axis: str = "update"
