"""New weights on their way to the sites: whole, or as the coded change to those of the round before.

The same for every site, so that all begin a round with the same weights: the mean of their updates, and what
rounding took away before, is rounded as a change, and the rounded weights are the server's own from then on
(error feedback at both ends: Tang et al. 2019, algorithm 1). A site that answered in the round before gets
the change; one that missed it gets them whole, and so do all after a server was started again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from seguro.federated import aggregate, compression, exchange, message
from seguro.federated.message import Arrays, Refusal, Task

LEFT = "downlink.left."
"""Before the names of what rounding took away, in the server's checkpoint."""


class Held:
    """A site's end: the weights of its last task, to which the next one may be a change.

    Args:
        coding: of the changes; with "none" nothing is kept.
    """

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.arrays: Arrays = {}

    def whole(self, task: Task) -> Task:
        """Return the task with weights in place of a change, and keep them.

        Raises:
            Refusal: the change is to weights that are not here; the server then sends them whole.
            DataError: what came does not decode to a change of them.
        """
        if self.coding == "none":
            return task
        if "base" in task.config:
            if not self.arrays or exchange.digest(self.arrays) != task.config["base"]:
                raise Refusal("a change to weights that are not here; they are needed whole")
            change = compression.decode(task.arrays, self.coding, self.arrays)
            task = replace(task, arrays=aggregate.moved(self.arrays, change))
        self.arrays = task.arrays
        return task


class Downlink:
    """The server's end: turns the weights of a round into tasks.

    Args:
        coding: of the changes; "none" sends weights as they are.
    """

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.left: Arrays = {}
        """What rounding took away from the last change."""
        self._change: Arrays = {}
        self._base = self._now = ""
        """Hashes of the weights that it is to, and of those that come out of it."""
        self._has: dict[str, str] = {}
        """By site, the hash of the weights that it has."""

    def rounded(self, old: Arrays, new: Arrays) -> Arrays:
        """Return the next round's weights: `new`, as they come out of the coded change to `old`."""
        if self.coding == "none":
            return new
        coded = compression.encode(aggregate.change(new, old), self.coding, self.left)
        out = aggregate.moved(old, compression.decode(coded.arrays, self.coding, old))
        self._change, self.left = coded.arrays, coded.residual
        self._base, self._now = exchange.digest(old), exchange.digest(out)
        return out

    def answered(self, site: str) -> None:
        """Note that a site has the weights that this round began with."""
        self._has[site] = self._now

    def tasks(self, whole: Task, sites: Collection[str]) -> dict[str, bytes]:
        """Return a task for each site as bytes; a site has its weights when it has `answered`.

        Args:
            whole: the task with the weights of the round as they are.
            sites: names of those that get it.
        """
        out: dict[str, bytes] = {}
        if self.coding != "none" and not self._now:  # of the first round, or after a resume
            self._now = exchange.digest(whole.arrays)
        able = {s for s in sites if self._has.pop(s, "") == self._base and self._change}
        if able:
            told = replace(whole, arrays=self._change, config={**whole.config, "base": self._base})
            out |= dict.fromkeys(sorted(able), message.to_bytes(told))
        if rest := sorted(set(sites) - able):
            out |= dict.fromkeys(rest, message.to_bytes(whole))
        return out

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint must have, by names that begin with LEFT."""
        return {LEFT + name: array for name, array in self.left.items()}

    def resume(self, tensors: Arrays) -> Arrays:
        """Take up what `saved` gave, out of the arrays of a checkpoint; returns the others, the weights."""
        self.left = {k.removeprefix(LEFT): v for k, v in tensors.items() if k.startswith(LEFT)}
        return {k: v for k, v in tensors.items() if not k.startswith(LEFT)}
