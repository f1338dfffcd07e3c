"""What passes between the server and a site: a task one way, an update the other, both as bytes.

These two are all that crosses. On the wire each is one byte string: a magic word, the length of a JSON head,
the head, and the arrays as safetensors; the same message always gives the same bytes, so that the hash in a
site's audit log can be compared with the server's.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError
from seguro.federated.tensors import packed, unpacked

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name: those of `Method.shared()`, and with the prefix AVERAGED their moving averages."""
Action = Literal["join", "agree", "train", "evaluate", "audit"]
"""join: the site's name and fingerprint sums. agree: take this plan, or refuse. train: a round of updates.
evaluate: scores of these weights on the site's own validation cases. audit: how near what they make comes to
the site's own images."""

UNKNOWN_RUN = "no plan was agreed on for run"
"""Begins the refusal of a site that knows nothing of a run, as after the loss of its disk."""

AVERAGED = "averaged."
MAGIC = b"SEGURO1\n"
MAX_HEAD_BYTES = 1 << 22
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Of a run: it is the name of a folder at every site, and must not lead out of another."""
METRICS = (
    "loss",
    "dice",
    "seconds",
    "n_cases",
    "n_labelled",
    "n_validation",
    "updates",
    "made.distance",
    "made.recognized",
    "audit.made",
    "audit.held_out",
    "audit.n_made",
    "audit.n_held_out",
    "audit.n_train",
)
"""Names of numbers that may leave a site; also `dice.<class>` of the agreed classes."""


class Refusal(ConfigError):
    """Why a site does not do a task, in words that the server may read: no path, no case, no patient."""


@dataclass(frozen=True)
class Task:
    """What the server asks of a site."""

    run: str
    """Name of the run; an update of another one is ignored."""
    round: int
    """1 is the first round of training; 0 is before it."""
    action: Action
    arrays: Arrays = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: method, its config, updates, batch, seed, codings, clipping norm, plan. With `base`, the
    hash of weights that the site has, the arrays are the coded change to them."""


@dataclass(frozen=True)
class Update:
    """What a site answers: of the named run and round, to a task of the same action."""

    run: str
    site: str
    round: int
    action: Action
    arrays: Arrays = field(default_factory=dict)
    """Coding "none": the site's new values. Any other coding: the coded change from the task's arrays."""
    weight: float = 0.0
    """What the site counts for in a weighted mean: its training cases that the method may use."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Only names of METRICS; values are finite."""
    coding: str = "none"
    """How `arrays` are coded: "none", or a name of `compression.CODECS`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of "join" and "agree" only: the allow-listed fingerprint sums, the hash of the plan."""
    refused: str = ""
    """Why the site does not take part; then everything else is empty."""


class Gate(Protocol):
    """What stands between a site and the network: its policy and its audit log."""

    def admit(self, task: Task, data: bytes) -> None:
        """Take note of a task that came in; Refusal where the site's policy forbids it."""

    def lets(self, update: Update) -> Update:
        """Return the update without the numbers that may not leave; the rest of it still may or may not."""

    def release(self, update: Update, data: bytes) -> None:
        """Take note of an update about to leave; Refusal where the site's policy forbids it."""


class Answering(Protocol):
    """A site, or what stands for it."""

    def answer(self, data: bytes) -> bytes:
        """Return the answer to the task in `data`."""


class Open:
    """A gate that lets everything pass and notes nothing: the simulator's, where no other is asked for."""

    def admit(self, task: Task, data: bytes) -> None:
        """Let it in."""

    def lets(self, update: Update) -> Update:
        """Return it as it is."""
        return update

    def release(self, update: Update, data: bytes) -> None:
        """Let it out."""


def to_bytes(message: Task | Update) -> bytes:
    """Return the message as bytes; the same message gives the same bytes."""
    head = {k: v for k, v in vars(message).items() if k != "arrays"}
    text = json.dumps(
        {"kind": type(message).__name__, **head}, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie where processors like them
    return b"".join([MAGIC, len(text).to_bytes(8, "little"), text, *packed(message.arrays)])


def task_from(data: bytes) -> Task:
    """Return the task in `data`; DataError where there is none."""
    head, arrays = _parsed(data, "Task")
    task: Task = _made(Task, head, arrays)
    return task


def update_from(data: bytes, *, limit: int | None = None) -> Update:
    """Return the update in `data`, nothing of it believed beyond its form.

    Args:
        data: as received.
        limit: largest number of bytes.

    Raises:
        DataError: larger than `limit`, damaged, or not an update.
    """
    if limit is not None and len(data) > limit:
        raise DataError(f"an update of {len(data)} bytes, at most {limit} were expected; refused unread")
    head, arrays = _parsed(data, "Update")
    found: Update = _made(Update, head, arrays)
    if not (_is_number(found.weight) and found.weight >= 0):
        raise DataError(f"site {found.site}: a weight that is no finite number from 0 up")
    if odd := [name for name, value in found.metrics.items() if not _is_number(value)]:
        raise DataError(f"site {found.site}: {odd[0]!r} is no finite number")
    return found


def allowed(metrics: Mapping[str, float], classes: Collection[str]) -> dict[str, float]:
    """Return the metrics that may leave: finite numbers under a name of METRICS, or `dice.<class>`."""
    names = {*METRICS, *(f"dice.{c}" for c in classes)}
    return {k: float(v) for k, v in sorted(metrics.items()) if k in names and math.isfinite(v)}


def payload_bytes(arrays: Arrays) -> int:
    """Return the bytes of the arrays alone."""
    return sum(int(a.nbytes) for a in arrays.values())


def _parsed(data: bytes, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    start = len(MAGIC) + 8
    if not data.startswith(MAGIC) or len(data) < start:
        raise DataError(f"{len(data)} bytes that are no message of seguro; both sides need the same version")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    if end - start > MAX_HEAD_BYTES or end > len(data):
        raise DataError(f"a message with a head of {end - start} bytes, at most {MAX_HEAD_BYTES}; refused")
    try:
        head = json.loads(data[start:end])
        arrays = unpacked(memoryview(data)[end:])
    except (ValueError, RecursionError) as error:
        raise DataError(f"a damaged message of {len(data)} bytes ({error}); refused") from error
    if not isinstance(head, dict) or head.pop("kind", None) != kind:
        raise DataError(f"a message that is no {kind}; refused")
    if head.get("action") not in get_args(Action):
        raise DataError(f"a message with action {head.get('action')!r}, known are {get_args(Action)}")
    return head, arrays


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number; an integer may have more digits than a float holds."""
    largest = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _made(kind: Any, head: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    texts = ("run", "site", "coding", "refused")
    good = (
        all(isinstance(head.get(k, ""), str) for k in texts)
        and isinstance(head.get("round"), int)
        and isinstance(head.get("weight", 0.0), int | float)
        and all(isinstance(head.get(k, {}), dict) for k in ("config", "metrics", "facts"))
    )
    try:
        message = kind(arrays=arrays, **head)
    except TypeError as error:
        raise DataError(f"a {kind.__name__} with other fields ({error}); refused") from error
    if not good:
        raise DataError(f"a {kind.__name__} with fields of other types; refused")
    if not NAME.fullmatch(head.get("run", "")):
        raise DataError(f"a {kind.__name__} of a run whose name is none; refused")
    return message
