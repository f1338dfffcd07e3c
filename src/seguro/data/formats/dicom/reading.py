"""How DICOM files are opened: with every error of the reader told as one of ours, and no patient in it."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError, ExtraMissing
from seguro.core.files import MAX_FILE_BYTES, read_checked
from seguro.data.formats.facts import DICOM_AT, DICOM_SUFFIXES, identify, peek

_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on damaged files, beside exceptions of its own."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
LOOKED_AT = 200
"""Files that are opened to find out whether a folder holds DICOM."""
_HEAD = 1024
_GROUPS = (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02")
"""First bytes of a file without preamble: its group, in either byte order."""


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its signature, its suffix, or the group it begins with; never raises.

    Files without preamble count when they begin with a group that opens DICOM files and hold an image UID.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        head = peek(path, _HEAD)
    except DataError:
        return False
    return head[DICOM_AT : DICOM_AT + 4] == b"DICM" or (head[:2] in _GROUPS and b"1.2.840.10008." in head)


def holds_dicom(folder: Path) -> bool:
    """Return whether one of the first files anywhere in `folder` is DICOM."""
    paths = (Path(place) / name for place, _, names in os.walk(folder) for name in sorted(names))
    return any(looks_like_dicom(path) for path in islice(paths, LOOKED_AT))


def import_pydicom() -> Any:
    """Return the package.

    Raises:
        ExtraMissing: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ExtraMissing("pydicom", "dicom", "reading DICOM") from error
    return pydicom


def broken() -> tuple[type[Exception], ...]:
    """Return all that pydicom and its decoders raise on damaged files."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*_BROKEN, BytesLengthException, InvalidDicomError)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning about values, which may be those of a patient."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def open_header(path: Path, tags: list[str], *, limit: int = MAX_FILE_BYTES) -> Any:
    """Return the data set of `path` with these elements alone, without pixels.

    Raises:
        DataError: missing, empty, damaged, deflated as a whole, too large, or not DICOM; it says what it is.
    """
    pydicom = import_pydicom()
    _refuse(path, peek(path, _HEAD), limit)
    with quiet():
        try:
            found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            if not any(name in found for name in tags):
                raise DataError(f"{path}: no DICOM elements in it; the file is {_what(path)}")
        except broken() as error:
            raise DataError(
                f"{path}: the DICOM header is damaged ({type(error).__name__}); copy it again from its source"
            ) from error
    return found


def _what(path: Path) -> str:
    what = identify(peek(path, _HEAD))
    return "a DICOM file with a damaged header" if what == "a DICOM file" else what


def open_whole(path: Path, *, limit: int = MAX_FILE_BYTES) -> tuple[Any, str]:
    """Return the data set of `path` with its pixels, undecoded, and the file's hash; raises as above."""
    pydicom = import_pydicom()
    _refuse(path, peek(path, _HEAD), limit)
    content = read_checked(path, limit=limit)
    with quiet():
        try:
            found = pydicom.dcmread(io.BytesIO(content.data), force=True)
        except broken() as error:
            raise DataError(
                f"{path}: damaged DICOM file of {len(content.data)} bytes ({type(error).__name__}); "
                "copy it again from its source"
            ) from error
    return found, content.sha256


def _refuse(path: Path, head: bytes, limit: int) -> None:
    """Refuse what must not be opened at all."""
    if path.stat().st_size > limit:
        raise DataError(f"{path}: {path.stat().st_size} bytes, more than the limit of {limit}")
    if _DEFLATED in head:
        raise DataError(
            f"{path}: deflated as a whole (transfer syntax 1.2.840.10008.1.2.1.99), which can unpack to any "
            "size; convert it first, for example with dcmconv"
        )


def transfer_syntax(found: Any) -> Any:
    """Return the transfer syntax of a data set; a file without one is read as it was parsed."""
    from pydicom import uid

    syntax = getattr(getattr(found, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is not None:
        return syntax
    implicit, little = found.original_encoding
    if not little:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
