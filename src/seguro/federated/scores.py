"""Which round is best, by what sites tell of their own validation cases: no central data are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from seguro.federated.record import Round

WITHHELD = 1.0
"""Validation cases that a site counts for whose policy lets no count leave."""


class Scores:
    """The last Dice of every site, and the round whose weights did best.

    A site that is away counts with what it told last: else the round that the weakest site missed would look
    best.

    Args:
        rule: mean over all validation cases, or the worst site's; "last" takes no round for its score.
    """

    def __init__(self, rule: Literal["mean", "worst", "last"]) -> None:
        self.rule = rule
        self.told: dict[str, tuple[float, float]] = {}
        """By site: Dice, and of how many cases."""
        self.best: float | None = None
        self.best_round = 0

    def take(self, record: Round) -> None:
        """Take in the scores of the weights that the round began with; notes them in the record."""
        new = {s: u.metrics for s, u in record.updates.items() if "dice" in u.metrics}
        if not new:
            return
        self.told |= {s: (m["dice"], m.get("n_validation", WITHHELD)) for s, m in new.items()}
        record.worst = min(self.told, key=lambda s: (self.told[s][0], s))
        n = sum(cases for _, cases in self.told.values())
        mean = sum(dice * cases for dice, cases in self.told.values()) / max(n, 1.0)
        record.score = self.told[record.worst][0] if self.rule == "worst" else mean
        if self.best is None or record.score > self.best:
            self.best, self.best_round = record.score, record.of_round

    def chosen(self, last: int) -> int:
        """Return the round whose weights are deployed."""
        return self.best_round if self.rule != "last" and self.best is not None else last

    def facts(self) -> dict[str, Any]:
        """Return JSON values for the checkpoint."""
        return {"best": self.best, "best_round": self.best_round, "scores": self.told}

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` gave."""
        self.best, self.best_round = facts["best"], int(facts["best_round"])
        self.told = {s: (float(dice), float(n)) for s, (dice, n) in facts.get("scores", {}).items()}
