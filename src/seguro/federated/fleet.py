"""The sites as the server sees them: nodes that are asked and answer, or do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from seguro.federated.message import Action


@dataclass(frozen=True)
class Answer:
    """What came back from one node: bytes, or why there are none."""

    node: int
    data: bytes = b""
    missing: str = ""


class Fleet(Protocol):
    """Whatever carries bytes to the sites and back; the server knows nothing else of the transport."""

    def nodes(self) -> list[int]:
        """Return who is reachable now."""

    def ask(
        self, tasks: Mapping[int, bytes], *, action: Action, round: int, timeout_s: float
    ) -> Iterable[Answer]:
        """Send each node its task and return one answer per node, in the order of `tasks`."""

    def late(self) -> list[Answer]:
        """Return answers to earlier questions that came after their time; each once."""
