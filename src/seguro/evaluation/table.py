"""Tables of ours as CSV files that no spreadsheet runs and that read back as they were written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seguro.core.errors import DataError
from seguro.core.files import read_checked, write_text

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> None:
    """Write rows under a header: RFC 4180, UTF-8, None as an empty cell.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. Numbers are written so that
    reading them returns the same float.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")  # as RFC 4180; it makes "\r" in a name quoted too
    writer.writerow(columns)
    writer.writerows([_text(cell) for cell in row] for row in rows)
    write_text(path, stream.getvalue())


def read_table(path: Path, columns: Sequence[str], *, maker: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the cells of each row of a file written by `write_table`.

    Args:
        path: the file.
        columns: its header.
        maker: what writes such a file, for the message, e.g. "scores.csv written by seguro evaluate".

    Raises:
        DataError: missing, not text, other columns, or a row with another number of cells.
    """
    try:
        text = read_checked(path).data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; expected a {maker}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if tuple(header) != tuple(columns):
        raise DataError(f"{path}: columns are {', '.join(header)[:200]}, expected {', '.join(columns)}")
    rows = []
    for cells in reader:
        if cells and len(cells) != len(columns):
            raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells, expected {len(columns)}")
        if cells:
            rows.append((reader.line_num, [c[1:] if c.startswith("'") else c for c in cells]))
    return rows


def number(path: Path, line: int, name: str, text: str) -> float | None:
    """Return a cell's finite number, None where it is empty.

    Raises:
        DataError: something else; the message names the line.
    """
    try:
        value = float(text) if text else None
    except ValueError as error:
        raise DataError(f"{path}: line {line}: {name} {text[:40]!r} is not a number") from error
    if value is not None and not np.isfinite(value):
        raise DataError(f"{path}: line {line}: {name} {text} is not finite")
    return value


def _text(cell: str | float | None) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return repr(float(cell))
    return "'" + cell if cell.startswith(_FORMULA) else cell
