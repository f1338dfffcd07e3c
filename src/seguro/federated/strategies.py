"""What a federation is: method, rounds, and how sites are chosen, averaged, protected and judged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from seguro.core.types import Record
from seguro.federated.accountant import Accountant
from seguro.federated.privacy import PrivacyOptions

TRIM = 0.2
LEAST_TRIMMED = 3
"""Updates of which one can be dropped at either end."""


class Strategy(Record):
    """How updates become new weights. The defaults are FedAvg (McMahan et al. 2017, algorithm 1)."""

    aggregate: Literal["weighted", "uniform", "trimmed"] = "weighted"
    """Mean weighted by each site's training cases; plain mean; or, per number, the mean of what is left when
    the share `trim` of the sites is dropped at either end (Yin et al. 2018, definition 2)."""
    trim: float = Field(TRIM, ge=0, lt=0.5)
    server_average: float | None = Field(None, ge=0, lt=1)
    """Decay per round of averaged weights that the server forms of the rounds' own, and deploys where a
    method deploys averages; of round n it is 1 - 1/n at most, so that they begin as the first round's. Null:
    the mean of the averages that the sites formed."""
    norm_bound: float | None = Field(None, gt=0)
    """A change longer than so many times the median change of the round is shortened to it."""
    prox: float = Field(0.0, ge=0)
    """mu of FedProx (Li et al. 2020, eq. 2): pull of the local weights towards the round's first ones."""
    personal: Literal["none", "norm"] = "none"
    """norm: a site keeps its own normalization layers (FedBN, Li et al. 2021). They still travel, so that the
    server's model has their mean and works at a hospital that took no part. A site's own model lies in its
    workspace, in federated/<run>/model."""
    optimiser: Literal["keep", "reset"] = "keep"
    """Whether a site's optimiser, and what else the method keeps, goes on where it was in its last round."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Part of the sites that are asked in a round, drawn anew in each."""
    quorum: int = Field(1, ge=1)
    """Sites whose updates a round needs; a trimmed mean needs three, see `needed`."""
    timeout_s: float = Field(3600.0, gt=0)
    """How long a round waits; so long too for joining, which measures and prepares each site's cases."""
    retries: int = Field(2, ge=0)
    """How often a round without quorum is asked again before the run stops."""
    best: Literal["mean", "worst", "last"] = "mean"
    """Which round's weights are deployed: highest Dice over all sites' own validation cases, highest Dice of
    the worst site, or the last."""
    evaluate_every: int = Field(1, ge=1)
    """Rounds from one evaluation at the sites to the next."""
    coding: Literal["none", "fp16", "int8"] = "none"
    """How updates travel."""
    down: Literal["none", "fp16", "int8"] = "none"
    """How new weights travel to the sites: as they are, or their coded change to a site that has the weights
    of the round before, and as they are to any other. What rounding takes away is kept at the server and
    added to the next change, so the weights of a round are what all sites have, to the bit."""
    privacy: PrivacyOptions | None = None
    """Client-level differential privacy; then every site counts the same."""

    @property
    def needed(self) -> int:
        """Sites whose updates a round needs: of two none can be trimmed, and a mean would take its place."""
        return max(self.quorum, LEAST_TRIMMED if self.trims else 1)

    @property
    def trims(self) -> bool:
        """Whether the ends are dropped."""
        return self.aggregate == "trimmed" and self.trim > 0

    def drawn(self, n: int) -> int:
        """Return how many of `n` sites are asked in a round."""
        return min(n, max(self.needed, round(self.fraction * n)))

    @model_validator(mode="after")
    def _fits(self) -> Strategy:
        if self.privacy is not None and self.aggregate != "uniform":
            raise ValueError("with privacy every site must count the same: set aggregate to uniform")
        if self.privacy is not None and self.norm_bound is not None:
            raise ValueError("privacy bounds every change by its clip already: leave norm_bound out")
        if self.trim != TRIM and self.aggregate != "trimmed":
            raise ValueError(f"trim is {self.trim:g}, and aggregate {self.aggregate}: only trimmed trims")
        if self.privacy is not None and not Accountant().allows(self.privacy, 1.0):
            raise ValueError(
                f"privacy.budget {self.privacy.budget:g} is spent before the first round ends with noise "
                f"{self.privacy.noise:g}: more noise, or a larger budget"
            )
        return self


class Federation(Record):
    """One federated run, every choice settled; the server's file, and what `federation.json` records."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    method: str
    preset: str
    config: dict[str, Any]
    """The method's resolved config."""
    rounds: int = Field(ge=1)
    updates: int = Field(ge=1)
    """Local updates of a site in a round."""
    batch: int | None = Field(None, ge=1)
    """The plan's by default."""
    seed: int = 0
    noise_seed: int | None = None
    """Of the privacy noise; None draws it from the system, as any real run must."""
    sites: tuple[str, ...] = Field(min_length=1)
    """Names of those who may take part; all of them join before round 1."""
    plan: dict[str, Any] = Field(default_factory=dict)
    """Fields of the plan's options that are not left to the data."""
    strategy: Strategy = Strategy()

    @model_validator(mode="after")
    def _fits(self) -> Federation:
        twice = sorted({s for s in self.sites if self.sites.count(s) > 1})
        if twice:
            raise ValueError(f"two sites are called {', '.join(twice)}")
        if self.strategy.quorum > len(self.sites):
            raise ValueError(f"a quorum of {self.strategy.quorum} of {len(self.sites)} sites")
        if self.strategy.needed > len(self.sites):
            raise ValueError(
                f"a trimmed mean takes {LEAST_TRIMMED} sites or more, here are {len(self.sites)}"
            )
        return self
