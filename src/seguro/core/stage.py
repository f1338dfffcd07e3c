"""A stage of the arrow: its key says whether it must run, its `stage.json` says what it read and wrote."""

from __future__ import annotations

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

    The key is a hash of what the stage reads (content hashes), its own resolved config and a schema number. Versions,
    machine, seed and duration are recorded beside it but are not part of it.

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

    def done(self, *, verify: bool = False) -> bool:
        """Whether the same key finished here and its outputs are still present (with `verify`: and unchanged)."""
        previous = self.previous()
        if previous is None or previous["key"] != self.key:
            return False
        for name, digest in previous["outputs"].items():
            path = self.folder / name
            if not path.exists() or (verify and sha256_file(path) != digest):
                return False
        return True

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

    def finish(self, outputs: Iterable[Path], **recorded: Any) -> dict[str, str]:
        """Hash `outputs` and write `stage.json`; returns the hashes by path relative to the folder.

        Args:
            outputs: files that the stage wrote, logs and everything with dates in it excepted.
            recorded: further facts that are kept but not keyed (seed, warnings, minutes, ...).
        """
        hashes = {p.relative_to(self.folder).as_posix(): sha256_file(p) for p in sorted(outputs)}
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
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second process is refused with the holder's number.

    A lock whose process is gone, or that dates from before the last boot, is stale and taken over.

    Raises:
        RunError: another live process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    boot = _boot_id()
    mine = json.dumps({"pid": os.getpid(), "boot": boot})
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            holder = _holder(path)
            if holder is None:
                path.unlink(missing_ok=True)
            elif holder.get("boot") == boot and _alive(int(holder.get("pid", 0))):
                raise RunError(
                    f"{folder}: process {holder['pid']} is working here; wait for it or stop it, then run again"
                ) from None
            else:
                path.unlink(missing_ok=True)
            continue
        with os.fdopen(handle, "w") as stream:
            stream.write(mine)
        break
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
