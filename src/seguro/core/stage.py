"""A stage of the arrow: its key says whether it must run, its `stage.json` says what it read and wrote."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seguro import __version__
from seguro.core.errors import RunError
from seguro.core.files import read_json, sha256_file, sha256_json, write_json

STAGE_FILE = "stage.json"
LOCK_FILE = ".lock"


class Stage:
    """One folder of the arrow.

    The key is a hash of what the stage reads (content hashes), its own resolved config (with a seed, where it
    has one) and a schema number. Versions, machine and duration are recorded beside it but are not part of
    it.

    Args:
        folder: where the stage writes.
        name: "check", "plan", "prepare", "train", "predict", "evaluate", "report", ...
        reads: name -> content hash of everything that the result depends on.
        config: the resolved options of this stage alone, JSON values.
        schema: raised by hand whenever the stage's output would change for the same input.
    """

    def __init__(
        self, folder: Path, name: str, *, reads: Mapping[str, str], config: Mapping[str, Any], schema: int = 1
    ) -> None:
        self.folder = folder
        self.name = name
        self.reads = dict(sorted(reads.items()))
        self.config = json.loads(json.dumps(config, sort_keys=True, default=str))
        self.schema = schema
        self.key = sha256_json({"name": name, "reads": self.reads, "config": self.config, "schema": schema})
        self._start = time.monotonic()

    def previous(self) -> dict[str, Any] | None:
        """Content of the folder's `stage.json`, or None when the stage never finished here."""
        path = self.folder / STAGE_FILE
        return dict(read_json(path)) if path.exists() else None

    def done(self) -> bool:
        """Whether the same key finished here and its outputs are still present."""
        previous = self.previous()
        if previous is None or previous["key"] != self.key:
            return False
        return all((self.folder / name).exists() for name in previous["outputs"])

    def difference(self) -> list[str]:
        """Lines that say what changed since the stage last finished in this folder."""
        previous = self.previous() or {}
        lines = []
        for part, now in (("reads", self.reads), ("config", self.config)):
            before = previous.get(part, {})
            for key in sorted(set(before) | set(now)):
                if before.get(key) != now.get(key):
                    lines.append(f"{part}.{key}: was {before.get(key)!r}, is {now.get(key)!r}")
        if previous.get("schema") != self.schema:
            lines.append(f"schema: was {previous.get('schema')!r}, is {self.schema!r}")
        return lines

    def finish(
        self, outputs: Iterable[Path], *, known: Mapping[str, str] | None = None, **recorded: Any
    ) -> dict[str, str]:
        """Hash `outputs` and write `stage.json`; returns the hashes by path relative to the folder.

        Args:
            outputs: files that the stage wrote, logs and everything with dates in it excepted.
            known: hashes not to be computed again, or of the content without its dates, by relative path.
            recorded: further facts that are kept but not keyed (seed, warnings, minutes, ...).
        """
        known = known or {}
        hashes = {}
        for path in sorted(outputs):
            name = path.relative_to(self.folder).as_posix()
            hashes[name] = known.get(name) or sha256_file(path)
        write_json(
            self.folder / STAGE_FILE,
            {
                "stage": self.name,
                "key": self.key,
                "schema": self.schema,
                "reads": self.reads,
                "config": self.config,
                "outputs": hashes,
                "recorded": {
                    "seguro": __version__,
                    "machine": machine(),
                    "seconds": round(time.monotonic() - self._start, 1),
                    **recorded,
                },
            },
        )
        return hashes


def output_hash(folder: Path) -> str:
    """Return one hash over all `outputs` of the finished stage in `folder`.

    Raises:
        RunError: the stage has not finished there.
    """
    path = folder / STAGE_FILE
    if not path.exists():
        raise RunError(
            f"{folder}: no finished stage here (no {STAGE_FILE}); run the stage that writes it first"
        )
    return sha256_json(read_json(path)["outputs"])


def machine() -> dict[str, str | int]:
    """Return what is worth knowing of this machine: no host name, no user, no paths."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
    }


@contextmanager
def locked(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `folder` for this process; a second process is refused, and told who holds it.

    The system's own file lock (flock) is used, so that the lock of a process that was killed is gone with it.

    Args:
        folder: created if missing.
        wait_s: how long to wait for the other process before refusing.

    Raises:
        RunError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as stream:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    stream.seek(0)
                    holder = stream.read(100).strip() or "another process"
                    raise RunError(
                        f"{folder}: {holder} is working here; wait for it or stop it, then run again"
                    ) from None
                time.sleep(0.2)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node() or 'this machine'}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)
