"""When the state of a run is written: after every round, or every so often where all of it is one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from seguro.engine.signals import answered

EVERY_S = 30.0
"""A simulation loses at most so many seconds of rounds when it is killed, and the round that it was in."""


class Settling(Protocol):
    """Whoever has a state of its own to write."""

    def settle(self) -> None:
        """Write what is not on disk yet."""


class Keeper:
    """Says when the server writes its state, and has the sites of this process write theirs before.

    A server that goes on from its disk asks every site for the state of that round, so the two are written
    together: the server's never without the sites'.

    Args:
        every_s: seconds from one saved state to the next; 0 saves every round.
        sites: those that keep their state in this process until they are told to write it.
        clock: in seconds.
    """

    def __init__(
        self,
        every_s: float = 0.0,
        sites: Iterable[Settling] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every_s = every_s
        self.sites = tuple(sites)
        self.clock = clock
        self.stopping = False
        """Somebody asked for an end."""
        self.behind = False
        """A round is finished that is not on disk."""
        self._saved = clock()

    def due(self) -> bool:
        """Return whether a round that has just ended is to be written now; notes it where not."""
        due = self.stopping or self.clock() - self._saved >= self.every_s
        self.behind = not due
        return due

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Have the sites write their state; the server writes its own within the block."""
        for site in self.sites:
            site.settle()
        yield
        self.behind, self._saved = False, self.clock()

    @contextmanager
    def stoppable(self, say: Callable[[str], None]) -> Iterator[None]:
        """End at SIGTERM and Ctrl-C: at once where every finished round is on disk, else after this round.

        The second of them ends at once. No effect off the main thread.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stopping or not self.behind:
                raise KeyboardInterrupt
            self.stopping = True
            say("stops after this round; once more stops now, and rounds that are not saved are done again")

        with answered(ask):
            yield
