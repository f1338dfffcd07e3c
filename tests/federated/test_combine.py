"""The averages of a round: those that sites formed, or those of the server over the rounds."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import ConfigError
from seguro.federated import combine
from seguro.federated.combine import combined
from seguro.federated.message import AVERAGED, Update


def told(weight: float, average: float) -> dict[str, np.ndarray]:
    return {
        "w": np.full(2, weight, np.float32),
        AVERAGED + "w": np.full(2, average, np.float32),
        "one": np.array(weight, np.float32),
        AVERAGED + "one": np.array(average, np.float32),
        "n": np.array(int(weight)),
        AVERAGED + "n": np.array(int(average)),
    }


def test_the_servers_average_follows_the_rounds_and_forgets_what_the_sites_formed(federation):
    """Rounds of weights 2, 4, 8: their mean until the decay is reached, then by the decay."""
    run = federation("ab", strategy={"server_average": 0.6})
    now = told(0, 0)
    for number, (weight, average) in enumerate([(2, 2), (4, 3), (8, 0.4 * 8 + 0.6 * 3)], start=1):
        news = {s: Update("r", s, number, "train", arrays=told(weight, 99), weight=1.0) for s in "ab"}
        now = combined(run, now, news, number)
        np.testing.assert_allclose(now["w"], weight)
        np.testing.assert_allclose(now[AVERAGED + "w"], average, rtol=1e-6)
        assert now[AVERAGED + "w"].dtype == np.float32 and now[AVERAGED + "n"] == weight
        assert isinstance(now[AVERAGED + "one"], np.ndarray)  # no array is no weight on disk
        np.testing.assert_allclose(now[AVERAGED + "one"], average, rtol=1e-6)
    news = {s: Update("r", s, 4, "train", arrays=told(8, 99), weight=1.0) for s in "ab"}
    assert combined(federation("ab"), now, news, 4)[AVERAGED + "w"][0] == 99


def test_a_method_without_averages_has_none_to_form(federation):
    run = federation("ab", strategy={"server_average": 0.6})
    with pytest.raises(ConfigError, match="leave server_average out"):
        combine.check(run, {"w": np.zeros(1)})
    combine.check(run, {AVERAGED + "w": np.zeros(1)})
    combine.check(federation("ab"), {"w": np.zeros(1)})
