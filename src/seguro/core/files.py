"""Reading foreign files safely and writing our own atomically."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError, RunError

GIB = 1 << 30
MAX_FILE_BYTES = 8 * GIB
"""Largest decompressed size that a foreign file may have unless a caller says otherwise."""
MAX_JSON_BYTES = 64 << 20
MAX_NAME_BYTES = 180
"""A longer file name gives a hashed temporary name; a system's limit is 255 with what is added."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checked:
    """A foreign file read to its end: its decompressed bytes, and the SHA-256 of the file on disk."""

    data: bytes
    sha256: str


def read_checked(path: Path, *, limit: int = MAX_FILE_BYTES) -> Checked:
    """Return the whole content of `path`, gunzipped if it is gzip, every checksum of the stream verified.

    The gzip stream is read to its end, so that a flipped bit or a cut is found here and not by a network.

    Args:
        path: the file to read.
        limit: largest decompressed size in bytes; checked while reading, never by trusting a header.

    Raises:
        DataError: missing, unreadable, empty, truncated, corrupt or too large; the message names the byte
            position.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            head = stream.peek(2)[:2]
            if head == b"\x1f\x8b":
                data = _gunzip(path, stream, digest, limit)
            else:
                size = os.fstat(stream.fileno()).st_size
                if size > limit:
                    raise DataError(
                        f"{path}: {size} bytes, more than the limit of {limit}; "
                        "raise the limit if this is right"
                    )
                data = stream.read()
                digest.update(data)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({_reason(error)}); check the path and its permissions"
        ) from error
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes); copy it again from its source")
    return Checked(data, digest.hexdigest())


def _gunzip(path: Path, stream: BufferedReader, digest: Any, limit: int) -> bytes:
    """Return the decompressed bytes of each gzip member in `stream`; zlib verifies its CRC and length."""
    inflate = zlib.decompressobj(wbits=31)
    parts: list[bytes] = []
    total = read = 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        read += len(chunk)
        while chunk:
            try:
                parts.append(inflate.decompress(chunk, max(limit - total + 1, 1)))
            except zlib.error as error:
                raise DataError(
                    f"{path}: corrupt gzip stream before byte {read} ({_gzip_reason(error)}); "
                    "the file was damaged after it was written: copy it again from its source"
                ) from error
            total += len(parts[-1])
            if total > limit:
                raise DataError(f"{path}: decompresses to more than {limit} bytes; refused before reading on")
            chunk = inflate.unconsumed_tail
            if inflate.eof:
                chunk = inflate.unused_data.lstrip(b"\x00")  # zero padding after the last member is legal
                if chunk or stream.peek(1):
                    if not chunk:
                        break
                    inflate = zlib.decompressobj(wbits=31)
    if not inflate.eof:
        raise DataError(
            f"{path}: truncated gzip stream, ends at byte {read} before its checksum; "
            "copy it again from its source"
        )
    return b"".join(parts)


def _gzip_reason(error: zlib.error) -> str:
    text = str(error)
    if "incorrect data check" in text:
        return "CRC does not match"
    if "incorrect length check" in text:
        return "length does not match"
    return text.split(": ")[-1]


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes on disk, as hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no blanks)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsynced and renamed to `path`, else removed.

    What a killed process left behind is used again and so does not pile up.

    Raises:
        RunError: the disk is full; the old file is intact, and the message gives needed and free bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, handle = _claim(path)
    done = False
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        done = True
        _fsync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = temporary.stat().st_size if temporary.exists() else 0
        free = shutil.disk_usage(path.parent).free
        raise RunError(
            f"{path}: disk full after {needed} bytes ({free} bytes free); the old file is unchanged: "
            "free space and run again"
        ) from error
    finally:
        if not done:
            temporary.unlink(missing_ok=True)
        os.close(handle)


def _claim(path: Path) -> tuple[Path, int]:
    """Return an empty temporary file beside `path` and the handle whose lock keeps others off it."""
    name = path.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    for extra in ("", f".{os.getpid()}.{threading.get_ident()}"):
        temporary = path.with_name(f".{name}{extra}.part")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process writes the same file just now
            os.close(handle)
            continue
        os.ftruncate(handle, 0)
        return temporary, handle
    raise RunError(f"{path}: two threads of this process write it at the same time")


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Return the JSON value in `path`.

    Raises:
        DataError: missing, larger than `limit`, too deep, or not JSON; the message names the position.
    """
    raw = read_checked(path, limit=limit).data
    try:
        return json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise DataError(f"{path}: JSON nested too deeply to be a file of ours or of a dataset") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} when there is no such file.

    Raises:
        DataError: not JSON, or no object.
    """
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: expected a JSON object, found {type(value).__name__}; write it again with its stage"
        )
    return value
