"""What the server believes of an answer: only what it asked for, whole, finite and of the right size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.federated import aggregate, compression, message
from seguro.federated.fleet import Answer
from seguro.federated.message import Action, Arrays, Update

HEAD_BYTES = 1 << 16
"""That an update may have beyond its arrays."""
ENTRY_BYTES = 200
"""That the head of the arrays may have for each of them, besides its name: type, shape and place."""
COUNTS = ("n_cases", "n_labelled", "n_validation")
"""Numbers that cannot be more than the cases that a site told of."""
RECOGNIZED = "made.recognized"
"""A part of made slices."""


class NoAnswer(DataError):
    """A site is gone, silent, or refuses: nothing is wrong with what it sent."""


@dataclass(frozen=True)
class Question:
    """What a site was asked."""

    run: str
    round: int
    action: Action
    site: str | None = None
    """None where the question is who it is."""
    limit: int = HEAD_BYTES
    """Largest answer in bytes."""


def largest(arrays: Arrays, coding: str) -> int:
    """Return the bytes of the largest update that may come of these arrays; more is refused unread."""
    heads = sum(len(name.encode()) + ENTRY_BYTES for name in arrays)
    return HEAD_BYTES + heads + compression.largest_bytes(arrays, coding)


def read(answer: Answer, asked: Question) -> Update:
    """Return the update in `answer`, if it is one to the question.

    Raises:
        NoAnswer: nothing came, or the site refuses.
        DataError: too large, damaged, of another site, run or round; the site is named.
    """
    who = asked.site or f"node {answer.node}"
    if answer.missing:
        raise NoAnswer(answer.missing)
    try:
        update = message.update_from(answer.data, limit=asked.limit)
    except DataError as error:
        raise DataError(f"site {who}: {error}") from error
    expected, found = (
        (asked.run, asked.round, asked.action),
        (update.run, update.round, update.action),
    )
    if found != expected:
        raise DataError(f"site {who}: an answer to {found}, asked was {expected}; ignored")
    if asked.site is not None and update.site != asked.site:
        raise DataError(f"site {who}: answers under the name {update.site}; ignored")
    if update.refused:
        raise NoAnswer(f"refuses: {update.refused}")
    return update


def numbers(update: Update, *, classes: Sequence[str], n_cases: int) -> Update:
    """Return the update with the metrics that may travel.

    What a site says of itself decides how much it counts and which round is taken: it cannot count for more
    cases than it told of before round 1, nor be better than perfect.

    Args:
        update: as received.
        classes: foreground classes of the plan.
        n_cases: that the site told of.

    Raises:
        DataError: a count or a score that cannot be; the site is named.
    """
    if update.weight > n_cases:
        raise DataError(f"site {update.site}: a weight of {update.weight:g}, it told of {n_cases} cases")
    metrics = message.allowed(update.metrics, classes)
    for name, value in metrics.items():
        part = name.startswith("dice") or name == RECOGNIZED
        most = 1 if part else n_cases if name in COUNTS else None
        if (value < 0 and name != "loss") or (most is not None and value > most):
            raise DataError(f"site {update.site}: {name} of {value:g}, expected 0 to {most or 'any'}")
    return replace(update, metrics=metrics)


def values(update: Update, old: Arrays, *, coding: str) -> tuple[Update, float]:
    """Return the update with the site's new values in place of what travelled, and how far they moved.

    Args:
        update: as received.
        old: the weights that the round began with.
        coding: the one agreed on.

    Raises:
        DataError: another coding, other names, shapes or types, or a value that is not finite.
    """
    if update.coding != coding:
        raise DataError(f"site {update.site}: coded as {update.coding}, agreed was {coding}")
    new: dict[str, NDArray[Any]] = dict(update.arrays)
    if coding != "none":
        try:
            new = aggregate.moved(old, compression.decode(update.arrays, coding, old))
        except DataError as error:
            raise DataError(f"site {update.site}: {error}") from error
    far = aggregate.check(update.site, new, old)
    return replace(update, arrays=new), far
