"""Pictures of what the weights of a round make, in the server's run folder; they need no data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from seguro.federated import exchange
from seguro.federated.message import Arrays
from seguro.inference import previews
from seguro.methods.contract import Maker, Method

FOLDER = "previews"


def preview(folder: Path, round_: int, method: Method, averaged: nn.ModuleDict, arrays: Arrays) -> None:
    """Write a picture per domain of a method that makes images; nothing for the others.

    Args:
        folder: of the run.
        round_: names the pictures.
        method: takes the arrays up.
        averaged: moving averages of its modules, which take theirs up.
        arrays: the global weights after the round.
    """
    if isinstance(method, Maker):
        exchange.incoming(method, averaged, arrays)
        previews.write(folder / FOLDER, f"{round_:08d}", method, exchange.deployable(method, averaged))
