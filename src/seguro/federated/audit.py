"""A site's own record of every message, one JSON line each: what came, what left, what was held back.

Lines are written before a message is acted on or leaves. Each holds the hash of the line before it, so that a
line that was changed or taken out later is found (`verify`); that the last lines are gone is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from seguro.core.errors import DataError, RunError
from seguro.federated.message import Task, Update

FIRST = "0" * 64
"""What the first line has for the hash of the line before it."""
MAX_LINE = 8 << 20


class Audit:
    """Appends to one JSON-lines file; several processes of a site may do so in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, direction: Literal["in", "out"], message: Task | Update, data: bytes, refused: str = ""
    ) -> None:
        """Append a line for a message and see it on the disk.

        Args:
            direction: in: a task from the server. out: an update to it.
            message: its arrays, numbers and facts are named, with shapes; no value is written down.
            data: the bytes that travel; their number and SHA-256 are what the server sees too.
            refused: why the policy held it back; empty where it passed.

        Raises:
            RunError: the line cannot be written; a message that is not recorded must not pass.
        """
        update = message if isinstance(message, Update) else None
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "direction": direction,
            "run": message.run,
            "round": message.round,
            "action": message.action,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "arrays": [[k, str(v.dtype), list(v.shape)] for k, v in sorted(message.arrays.items())],
            "metrics": sorted(update.metrics) if update else [],
            "facts": sorted(update.facts) if update else [],
            "refused": refused,
        }
        try:
            self._append(line)
        except OSError as error:
            raise RunError(
                f"{self.path}: the audit log cannot be written ({error.strerror}); the message does not "
                "pass: free space or mend the permissions"
            ) from error

    def _append(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            line["previous"] = _last_hash(stream)
            stream.seek(0, os.SEEK_END)
            stream.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def verify(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of an audit log in order, checking that each follows the one before it.

    Raises:
        DataError: a line that is damaged, changed or missing before the one named; or no such file.
    """
    previous = FIRST
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                line = _parsed(raw)
                if line is None or line.get("previous") != previous:
                    raise DataError(
                        f"{path}: line {number} does not follow the one before it: a line was changed, "
                        "damaged or taken out"
                    )
                previous = _hash(raw)
                yield line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a site's audit log") from error


def _last_hash(stream: Any) -> str:
    """Return the hash of the last whole line; what a kill left of a line after it is cut off.

    The message of a line that was cut short has not passed.
    """
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - MAX_LINE)
    stream.seek(start)
    tail = stream.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        stream.truncate(start + len(whole))
    lines = whole.splitlines(keepends=True)
    return _hash(lines[-1]) if lines else FIRST


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw.rstrip(b"\n")).hexdigest()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
