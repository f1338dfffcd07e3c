"""One round's new weights, as the strategy says."""

from __future__ import annotations

from collections.abc import Mapping

from seguro.federated import aggregate, privacy
from seguro.federated.message import Arrays, Update
from seguro.federated.strategies import Federation


def combined(federation: Federation, old: Arrays, trained: Mapping[str, Update], number: int) -> Arrays:
    """Return the weights after round `number`.

    Args:
        federation: its strategy, and the seed of its noise.
        old: weights that the round began with.
        trained: checked updates with the sites' new values, by site; taken in the order of the names.
        number: of the round.
    """
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
