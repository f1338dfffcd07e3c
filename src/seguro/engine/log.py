"""The run's log: one JSON object per line, cut back to the checkpoint on resume; a CSV of it at the end."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from seguro.core.files import write_bytes, write_text


class RunLog:
    """Appends to `log.jsonl`; each line has `kind` ("train", "validation", "note") and `update`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def cut(self, update: int) -> None:
        """Drop every line later than `update`, and a last line that was cut by a kill."""
        if self.path.exists():
            kept = [line for line in self.lines() if line["update"] <= update]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def lines(self) -> list[dict[str, Any]]:
        """Return all complete lines."""
        out = []
        for raw in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            try:
                out.append(json.loads(raw))
            except ValueError:
                continue  # only a line that a kill cut short
        return out

    def add(self, kind: str, update: int, **values: Any) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps({"kind": kind, "update": update, **values}) + "\n")

    def write_csv(self) -> None:
        """Write `log.csv` beside it: training and validation lines, one column per value."""
        lines = [line for line in self.lines() if line["kind"] != "note"]
        columns = list(dict.fromkeys(key for line in lines for key in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(lines)
        write_bytes(self.path.with_suffix(".csv"), text.getvalue().encode())
