"""One round's new weights, and their averages, as the strategy says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seguro.core.errors import ConfigError
from seguro.federated import aggregate, privacy
from seguro.federated.message import AVERAGED, Arrays, Update
from seguro.federated.strategies import Federation


def check(federation: Federation, arrays: Arrays) -> None:
    """Refuse averages at the server of a method that has none: ConfigError."""
    if federation.strategy.server_average is not None and not any(k.startswith(AVERAGED) for k in arrays):
        raise ConfigError(
            f"method {federation.method} deploys no averaged weights with these settings, so the server has "
            "none to form: leave server_average out"
        )


def combined(federation: Federation, old: Arrays, trained: Mapping[str, Update], number: int) -> Arrays:
    """Return the weights after round `number`.

    Args:
        federation: its strategy, and the seed of its noise.
        old: weights that the round began with.
        trained: checked updates with the sites' new values, by site; taken in the order of the names.
        number: of the round.
    """
    new = _of_round(federation, old, trained, number)
    decay = federation.strategy.server_average
    return new if decay is None else _averaged(old, new, min(decay, 1 - 1 / number))


def _averaged(old: Arrays, new: Arrays, decay: float) -> Arrays:
    """Return `new`, its averages in place of the sites' own; integers, which count, are the round's."""
    out = dict(new)
    for name, array in new.items():
        if name.startswith(AVERAGED):
            now = new[name.removeprefix(AVERAGED)]
            moved = decay * old[name].astype(np.float64) + (1 - decay) * now
            out[name] = np.asarray(moved, array.dtype) if array.dtype.kind == "f" else now
    return out


def _of_round(federation: Federation, old: Arrays, trained: Mapping[str, Update], number: int) -> Arrays:
    """Return the weights of the round alone."""
    s = federation.strategy
    updates = [trained[site] for site in sorted(trained)]
    news: list[Arrays] = [u.arrays for u in updates]
    if s.privacy is not None:
        # clipped again: rounding in a code, or a site that did not clip
        clipped = [privacy.clip(aggregate.change(n, old), s.privacy.clip).arrays for n in news]
        expected = s.drawn(len(federation.sites))
        rng = privacy.generator(federation.noise_seed, number)
        return privacy.released(old, privacy.summed(clipped, s.privacy), s.privacy, expected, rng)
    if s.norm_bound is not None:
        changes = aggregate.bounded([aggregate.change(n, old) for n in news], s.norm_bound)
        news = [aggregate.moved(old, c) for c in changes]
    if s.aggregate == "trimmed":
        return aggregate.trimmed(news, s.trim)
    return aggregate.mean(news, [u.weight if s.aggregate == "weighted" else 1.0 for u in updates])
