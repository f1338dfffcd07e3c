"""What a run leaves in its folder: a line per round, that it is finished, and the settings that it has.

`rounds.jsonl` is cut back to the checkpoint on resume.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seguro.core.errors import ConfigError
from seguro.core.files import read_json, write_text
from seguro.federated.message import Update
from seguro.federated.strategies import Federation

FILE = "rounds.jsonl"
FINISHED = "finished.json"


@dataclass
class Round:
    """What happened in one round."""

    number: int
    action: str
    of_round: int
    """The round whose weights the scores are of: the one before."""
    started: float = field(default_factory=time.monotonic)
    updates: dict[str, Update] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    """Length of each site's change."""
    agreement: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each site's change: cosine to the median of the others', and its length over theirs."""
    suspects: dict[str, str] = field(default_factory=dict)
    """Sites that people should look at, and why."""
    score: float | None = None
    """By which the best round is chosen."""
    worst: str | None = None

    @property
    def trained(self) -> dict[str, Update]:
        """The accepted updates with new weights, by site."""
        return {s: u for s, u in sorted(self.updates.items()) if u.action == "train"}

    def why(self) -> str:
        """Return who is not in the round, and why."""
        lines = {**self.missing, **self.rejected}
        return "; ".join(f"{site}: {reason}" for site, reason in sorted(lines.items())) or "nobody is here"

    def line(self, **more: Any) -> dict[str, Any]:
        """Return the line as JSON values."""
        return {
            "round": self.number,
            "action": self.action,
            "of_round": self.of_round,
            "seconds": round(time.monotonic() - self.started, 3),
            "took_part": list(self.trained),
            "missing": self.missing,
            "rejected": self.rejected,
            "late": self.late,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "metrics": {s: dict(u.metrics) for s, u in sorted(self.updates.items())},
            "norms": self.norms,
            "agreement": self.agreement,
            "suspects": self.suspects,
            "score": self.score,
            "worst": self.worst,
            **more,
        }


def append(folder: Path, line: dict[str, Any]) -> None:
    """Append one line to the file of the run in `folder`."""
    with (folder / FILE).open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return all complete lines."""
    path = folder / FILE
    out = []
    for raw in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            out.append(json.loads(raw))
        except ValueError:
            continue  # only a line that a kill cut short
    return out


def cut(folder: Path, last: int) -> None:
    """Drop every line of a round later than `last`, and what a kill left of one."""
    kept = [line for line in lines(folder) if line["round"] <= last]
    write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in kept))


def same_or_refuse(folder: Path, federation: Federation) -> None:
    """Refuse to go on in the folder of a run that was begun with other settings, and name them.

    Raises:
        ConfigError: it was.
    """
    path = folder / "federation.json"
    if not path.exists():
        return
    now, told = federation.model_dump(mode="json"), read_json(path)
    before = Federation.model_validate({k: v for k, v in told.items() if k in now}).model_dump(mode="json")
    changed = [f"{k}: was {before.get(k)!r}, is {v!r}" for k, v in now.items() if before.get(k) != v]
    if changed:
        text = "\n  ".join(changed)
        raise ConfigError(f"{folder} was made with other settings:\n  {text}\nuse another folder")
