"""What the page shows of a federated run, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from seguro.report.figures import Series

MARKS = {"trained": "●", "scored": "○", "refused": "✗", "late": "◷", "absent": "\N{EN DASH}", "unasked": " "}
"""Signs of the map, each with a word beside it in the key."""


@dataclass(frozen=True)
class SiteLine:
    """One site over the whole run."""

    name: str
    dice: float | None
    """On its own held-out cases, with the weights of the chosen round."""
    trained: int
    """Rounds that its update went into."""
    n_cases: int | None
    n_labelled: int | None
    n_validation: int | None
    sent: int
    """Bytes."""
    received: int
    seconds: float
    """Of local training and scoring."""


@dataclass(frozen=True)
class Attendance:
    """One row of the map: a key of MARKS for every round shown."""

    site: str
    states: tuple[str, ...]


@dataclass(frozen=True)
class Federated:
    """A federated run."""

    name: str
    facts: tuple[tuple[str, str], ...]
    sites: tuple[SiteLine, ...]
    """Lowest Dice first."""
    rounds: tuple[int, ...]
    """Numbers of the columns of the map."""
    attendance: tuple[Attendance, ...]
    dice: tuple[Series, ...]
    loss: tuple[Series, ...]
    traffic: tuple[Series, ...]
    epsilon: tuple[Series, ...]
    distance: tuple[Series, ...] = ()
    """Of made slices to each site's own, by round."""
    recognized: tuple[Series, ...] = ()
    """How often each site finds what is made of it most like its own, by round."""
    agreement: tuple[Series, ...] = ()
    """Cosine of each site's change to the median of the others'."""
    events: tuple[str, ...] = ()
    """Updates that were not used, and why."""
    caveats: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """Dice of the best site minus that of the worst, None with fewer than two."""
        found = [s.dice for s in self.sites if s.dice is not None]
        return max(found) - min(found) if len(found) > 1 else None


def megabytes(n: int) -> str:
    """Return bytes as text in 10^6 bytes."""
    return f"{n / 1e6:.0f} MB" if n >= 1e8 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
