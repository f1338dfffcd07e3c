"""How much privacy the rounds have cost: Renyi differential privacy of the sampled Gaussian mechanism.

Mironov, Talwar and Zhang 2019, section 3.3; turned into (epsilon, delta) by proposition 12 of Canonne, Kamath
and Steinke 2020. Neighbors differ by one site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seguro.core.errors import ConfigError, DataError
from seguro.federated.privacy import PrivacyOptions

ORDERS = (*(1 + k / 20 for k in range(1, 60)), *range(4, 65), 80, 96, 128, 192, 256, 512, 1024)
MOST_ROUNDS = 1_000_000


def log_moment(order: float, noise: float, rate: float) -> float:
    """Return log E[(p/q)^order] of one round, (order - 1) times its Renyi divergence.

    Args:
        order: above 1. Between integers, where the closed form needs a series without end, the line between
            its neighbors is returned: the log moment is convex in the order, so this is an upper bound.
        noise: standard deviation of the noise in units of the clipping norm.
        rate: probability with which each site takes part, drawn independently (Poisson sampling). Where a
            fixed number of sites is drawn this is not the law: use 1.

    Raises:
        ConfigError: a rate outside (0, 1], a negative noise or an order of 1 or less.
    """
    if not (0 < rate <= 1 and noise >= 0 and order > 1):
        raise ConfigError(f"order {order}, noise {noise}, rate {rate}: expected > 1, >= 0 and in (0, 1]")
    if noise == 0:
        return math.inf
    if rate == 1:
        return order * (order - 1) / (2 * noise**2)
    low = math.floor(order)
    part = order - low
    below = _whole(low, noise, rate) if low > 1 else 0.0  # E[p/q] = 1
    return below if part == 0 else (1 - part) * below + part * _whole(low + 1, noise, rate)


def _whole(order: int, noise: float, rate: float) -> float:
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]
    top = max(terms)
    return top + math.log(sum(math.exp(t - top) for t in terms))


def epsilon_of(moments: Mapping[float, float], delta: float) -> float:
    """Return the smallest epsilon at `delta` that the log moments by order allow; 0 if nothing was spent."""
    if not any(moments.values()):
        return 0.0
    found = [
        moment / (order - 1) + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, moment in moments.items()
    ]
    return max(0.0, min(found))


class Accountant:
    """Adds up the rounds of a run; its state is JSON, for the server's checkpoint."""

    def __init__(self) -> None:
        self._spent: dict[tuple[float, float], int] = {}

    @property
    def rounds(self) -> int:
        """Rounds that were counted."""
        return sum(self._spent.values())

    def add(self, noise: float, rate: float, rounds: int = 1) -> None:
        """Count rounds with this noise and sampling rate; those that failed after the noise count too."""
        log_moment(2, noise, rate)  # refuses what cannot be
        self._spent[noise, rate] = self._spent.get((noise, rate), 0) + rounds

    def epsilon(self, delta: float) -> float:
        """Return what all rounds so far cost; infinity if one had no noise."""
        return epsilon_of(
            {a: sum(n * log_moment(a, *key) for key, n in self._spent.items()) for a in ORDERS}, delta
        )

    def allows(self, options: PrivacyOptions, rate: float) -> bool:
        """Return whether one more round stays within the budget; always, where there is none."""
        if options.budget is None:
            return True
        after = Accountant.from_state(self.state())
        after.add(options.noise, rate)
        return after.epsilon(options.delta) <= options.budget

    def state(self) -> list[list[float]]:
        """Return [noise, rate, rounds] of what was counted."""
        return [[noise, rate, n] for (noise, rate), n in sorted(self._spent.items())]

    @classmethod
    def from_state(cls, state: Any) -> Accountant:
        """Return the accountant whose `state` this is.

        Raises:
            DataError: no such state; what was spent must not be forgotten.
        """
        out = cls()
        try:
            for noise, rate, n in state:
                out.add(float(noise), float(rate), int(n))
        except (TypeError, ValueError, ConfigError) as error:
            raise DataError(
                f"damaged state of the privacy accountant ({error}); use an older checkpoint"
            ) from error
        return out


def rounds_within(options: PrivacyOptions, rate: float) -> int:
    """Return how many rounds the budget allows, before the first is run.

    Raises:
        ConfigError: the options have no budget.
    """
    if options.budget is None:
        raise ConfigError("no privacy budget is set: give one, such as privacy.budget=8")
    moments = {a: log_moment(a, options.noise, rate) for a in ORDERS}

    def fits(rounds: int) -> bool:
        cost = epsilon_of({a: rounds * m for a, m in moments.items()}, options.delta)
        return options.budget is not None and cost <= options.budget

    low, high = 0, MOST_ROUNDS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
