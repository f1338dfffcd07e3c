"""NIfTI-1 and NIfTI-2 single files: header and voxels checked, geometry written back exactly."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from seguro.core.errors import DataError, GeometryError
from seguro.core.files import MAX_FILE_BYTES, atomic, read_checked
from seguro.core.types import Grid, Source, ThreeF, Volume
from seguro.data import geometry
from seguro.data.formats.facts import Facts, identify, peek, whole_numbers

SUFFIXES = (".nii.gz", ".nii")
FORMS_MM = 0.1
"""Distance between sform and qform beyond which both are shown."""
_PEEK = 4096
_SLACK = 64 << 20  # bytes after the voxels that are tolerated; a gzip bomb has more
_UNITS = {1: 1000.0, 3: 0.001}  # metres and micrometres, in mm
_READABLE = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}
_REFUSED = {
    1: "1-bit",
    32: "complex",
    1792: "complex",
    2048: "complex",
    128: "RGB",
    2304: "RGBA",
    1536: "128-bit float",
}


@dataclass(frozen=True)
class Header:
    """A parsed and accepted NIfTI header."""

    nifti: Any
    """nibabel header in the file's own byte order."""
    raw: bytes
    """The binary header, 348 or 540 bytes."""
    shape: tuple[int, int, int]
    """(x, y, z)."""
    frames: int
    dtype: np.dtype[Any]
    offset: int
    affine: NDArray[np.float64]
    """Usable: finite, right angles, in mm."""
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the voxels."""
        return int(np.prod([*self.shape, self.frames], dtype=object)) * self.dtype.itemsize


def read_facts(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Facts:
    """Return what the header of `path` says, without reading the voxels; raises as `read` does."""
    header = read_header(path, spacing=spacing, limit=limit)
    return Facts(grid_of(header), header.frames, header.dtype.name, header.n_bytes, header.notes)


def read_image(
    path: Path, *, channels: int | None = None, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES
) -> Volume:
    """Return the image in `path` as float32 (C, Z, Y, X), slope and intercept applied.

    Args:
        path: a .nii or .nii.gz file.
        channels: size of the fourth axis if that axis holds channels.
        spacing: (z, y, x) in mm, used only where the file itself states no voxel size.
        limit: largest decompressed size in bytes.

    Raises:
        DataError: unreadable, damaged, of another type, or 4-D where `channels` does not say so.
        GeometryError: the affine is unusable.
    """
    header = read_header(path, spacing=spacing, limit=limit)
    expected = channels or 1
    if header.frames != expected:
        raise DataError(_frames_message(path, header, expected))
    stored, sha256 = _voxels(path, header, limit)
    stored = stored.reshape((*header.shape, header.frames), order="F")
    array, grid, axes, flips = geometry.to_canonical(stored, header.affine)
    return Volume(
        _scaled(array, header, np.float32), grid, _source(path, header, axes, flips), (sha256,), header.notes
    )


def read_label(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Volume:
    """Return the label map in `path` as integers (Z, Y, X); arguments and errors as for `read_image`.

    Raises:
        DataError: besides, values that are not whole numbers within 0.001 after slope and intercept.
    """
    header = read_header(path, spacing=spacing, limit=limit)
    if header.frames != 1:
        raise DataError(
            f"{path}: label with {header.frames} frames on a fourth axis; a label is one 3-D map, "
            "or one mask file per class"
        )
    stored, sha256 = _voxels(path, header, limit)
    array, grid, axes, flips = geometry.to_canonical(stored.reshape(header.shape, order="F"), header.affine)
    if header.dtype.kind != "f" and _scaling(header) is None:
        values = whole_numbers(array, str(path))
    else:
        values = whole_numbers(_scaled(array, header, np.float64), str(path))
    return Volume(
        np.ascontiguousarray(values), grid, _source(path, header, axes, flips), (sha256,), header.notes
    )


def _frames_message(path: Path, header: Header, expected: int) -> str:
    found = f"{path}: {header.frames} frame{'s' if header.frames > 1 else ''} on the fourth axis"
    return (
        f"{found} (shape {(*header.shape, header.frames)}) where {expected} "
        f"channel{'s are' if expected > 1 else ' is'} expected; if the frames are modalities, name them "
        "under 'modality' in dataset.json or with --channels; if they are time points, save each "
        "as its own file"
    )


def read_header(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Header:
    """Return the accepted header of `path`, read from its first bytes alone.

    Raises:
        DataError: not a NIfTI file (it says what it is), impossible sizes, or an unsupported voxel type.
        GeometryError: no usable affine.
    """
    head = peek(path, _PEEK)
    nifti, size = _parse(path, head)
    notes: list[str] = []
    shape, frames = _shape(path, nifti, notes)
    code = int(nifti["datatype"])
    if code not in _READABLE:
        name = _REFUSED.get(code, f"code {code}")
        raise DataError(f"{path}: voxel type {name} is not supported; save it as integers or floats")
    dtype = nifti.get_data_dtype()
    offset = float(nifti["vox_offset"])
    if not np.isfinite(offset) or not (offset == 0 or size <= offset <= MAX_FILE_BYTES):
        raise DataError(
            f"{path}: the header puts the voxels at byte {offset}, inside itself or nowhere; it is damaged"
        )
    affine, more = _affine(path, nifti, shape, spacing)
    header = Header(
        nifti, head[:size], shape, frames, dtype, int(offset) or size + 4, affine, (*notes, *more)
    )
    if header.offset + header.n_bytes > limit:
        raise DataError(
            f"{path}: the header claims {(*shape, frames)} voxels of {dtype.itemsize} bytes = "
            f"{header.n_bytes} bytes, more than the limit of {limit}; the header is damaged, or "
            "the file is too large"
        )
    return header


def _parse(path: Path, head: bytes) -> tuple[Any, int]:
    """Return the nibabel header and its size."""
    sizes = {int.from_bytes(head[:4], "little"): "<", int.from_bytes(head[:4], "big"): ">"}
    for size, magic_at, magic, kind in (
        (348, 344, b"n+1\x00", nib.Nifti1Header),
        (540, 4, b"n+2\x00", nib.Nifti2Header),
    ):
        if size in sizes and head[magic_at : magic_at + 4] == magic:
            if len(head) < size:
                raise DataError(
                    f"{path}: ends at byte {len(head)}, inside its header of {size} bytes; copy it again"
                )
            return kind(head[:size], endianness=sizes[size], check=False), size
    if len(head) < 348 and 348 in sizes:
        raise DataError(f"{path}: ends at byte {len(head)}, inside its header of 348 bytes; copy it again")
    raise DataError(f"{path}: not a NIfTI file but {identify(head)}; give a .nii or .nii.gz file")


def _shape(path: Path, nifti: Any, notes: list[str]) -> tuple[tuple[int, int, int], int]:
    """Return the spatial shape and the number of frames."""
    dim = [int(d) for d in nifti["dim"]]
    n = dim[0]
    if not 2 <= n <= 7 or any(d < 1 for d in dim[1 : n + 1]):
        raise DataError(f"{path}: impossible sizes in the header (dim = {dim}); the header is damaged")
    sizes = dim[1 : n + 1] + [1] * (7 - n)
    extra = [d for d in sizes[3:] if d > 1]
    if len(extra) > 1:
        raise DataError(f"{path}: {n}-D file of shape {tuple(dim[1 : n + 1])}; at most four axes can be read")
    frames = extra[0] if extra else 1
    if n > 3 and frames == 1:
        notes.append("4-D with one frame, squeezed")
    return (sizes[0], sizes[1], sizes[2]), frames


def _affine(
    path: Path, nifti: Any, shape: tuple[int, int, int], spacing: ThreeF | None
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine in mm that the file means, and notes on what had to be settled."""
    notes: list[str] = []
    sform = _sform(nifti)
    qform = _qform(nifti, shape)
    if sform is not None and qform is not None:
        apart = geometry.displacement(sform, qform, shape)
        if apart > FORMS_MM:
            notes.append(
                f"sform and qform differ by {apart:.2f} mm; sform used\nsform:\n{geometry.text(sform)}\n"
                f"qform:\n{geometry.text(qform)}"
            )
    affine = sform if sform is not None else qform
    if affine is None:
        affine = _from_pixdim(path, nifti, shape, spacing, notes)
    factor = _UNITS.get(int(nifti["xyzt_units"]) & 7, 1.0)
    if factor != 1.0:
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
        notes.append(f"header unit is not mm, multiplied by {factor:g}")
    affine, straightened = geometry.rigid(affine, str(path))
    return affine, notes + ([straightened] if straightened else [])


def _sform(nifti: Any) -> NDArray[np.float64] | None:
    """Return the sform if it is set and names three directions."""
    if int(nifti["sform_code"]) <= 0:
        return None
    affine: NDArray[np.float64] = np.asarray(nifti.get_sform(), float)
    if not np.isfinite(affine).all():
        return None
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        lengths[2] == 0 and lengths[:2].all() and int(nifti["dim"][3]) <= 1
    ):  # one slice: its direction is the normal
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / (lengths[0] * lengths[1])
    return affine if np.linalg.norm(affine[:3, :3], axis=0).all() else None


def _qform(nifti: Any, shape: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """Return the qform if it is set and usable."""
    if int(nifti["qform_code"]) <= 0:
        return None
    x, y, z = _pixdim(nifti, shape)
    b, c, d = (float(nifti[f"quatern_{k}"]) for k in "bcd")
    offset = [float(nifti[f"qoffset_{k}"]) for k in "xyz"]
    if not np.isfinite([x, y, z, b, c, d, *offset]).all() or min(x, y, z) <= 0:
        return None
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -1e-3:
        return None
    norm = np.sqrt(b * b + c * c + d * d)
    if rest < 1e-7:  # as the standard's reference code: a half turn
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = np.sqrt(rest)
    rotation = quat2mat([a, b, c, d])
    sign = -1.0 if float(nifti["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * [x, y, sign * z]
    affine[:3, 3] = offset
    return affine


def _pixdim(nifti: Any, shape: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = (abs(float(v)) for v in nifti["pixdim"][1:4])
    if not z > 0 and shape[2] == 1:
        z = 1.0  # a single slice needs no thickness
    return x, y, z


def _from_pixdim(
    path: Path, nifti: Any, shape: tuple[int, int, int], spacing: ThreeF | None, notes: list[str]
) -> NDArray[np.float64]:
    size = _pixdim(nifti, shape)
    if not np.isfinite(size).all() or min(size) <= 0:
        if spacing is None:
            raise GeometryError(
                f"{path}: no usable voxel size (pixdim = {[float(v) for v in nifti['pixdim'][1:4]]}, "
                "no usable sform or qform); give it with --spacing Z,Y,X in mm"
            )
        size = (spacing[2], spacing[1], spacing[0])
        notes.append(f"no voxel size in the file, {spacing} (z, y, x) taken from the option")
    notes.append("no orientation in the file, axes taken as x, y, z")
    return np.diag([*size, 1.0])


def _voxels(path: Path, header: Header, limit: int) -> tuple[NDArray[Any], str]:
    """Return all voxels as stored, flat, and the file's hash; the stream is read and checked to its end."""
    end = header.offset + header.n_bytes
    checked = read_checked(path, limit=min(limit, end + _SLACK))
    if len(checked.data) < end:
        raise DataError(
            f"{path}: truncated, ends at byte {len(checked.data)} where the header promises {end} "
            "(decompressed); copy it again from its source"
        )
    count = header.n_bytes // header.dtype.itemsize
    return np.frombuffer(checked.data, header.dtype, count, header.offset), checked.sha256


def _scaling(header: Header) -> tuple[float, float] | None:
    """Return slope and intercept, or None where the header means none (slope 0 or not finite)."""
    slope, intercept = float(header.nifti["scl_slope"]), float(header.nifti["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return None
    intercept = intercept if np.isfinite(intercept) else 0.0
    return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


def _scaled(array: NDArray[Any], header: Header, dtype: Any) -> NDArray[Any]:
    """Return a contiguous copy as `dtype`, scaled; values beyond its range become infinite."""
    scaling = _scaling(header)
    with np.errstate(over="ignore", invalid="ignore"):
        if scaling is None:
            return np.ascontiguousarray(array, dtype)
        wide = array.astype(np.float64 if header.dtype.itemsize > 2 else dtype)
        wide *= scaling[0]
        wide += scaling[1]
        return np.ascontiguousarray(wide, dtype)


def _source(path: Path, header: Header, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Source:
    suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    return Source("nifti", suffix, header.shape, axes, flips, header.raw, header.affine)


def _own_header(raw: bytes) -> Any:
    """Return the nibabel header of an accepted binary header."""
    kind = nib.Nifti1Header if len(raw) == 348 else nib.Nifti2Header
    big = int.from_bytes(raw[:4], "big") == len(raw)
    return kind(raw, endianness=">" if big else "<", check=False)


def write(path: Path, array: NDArray[Any], source: Source) -> Path:
    """Write an array with the geometry of `source`, byte for byte, and return the path.

    Codes and values of sform and qform and the units are those of the source; slope and intercept are reset,
    and free text is cleared, since it may name a patient. The same content gives the same bytes.

    Args:
        path: ends in .nii or .nii.gz, which decides on compression.
        array: canonical (Z, Y, X), or (C, Z, Y, X) for a fourth axis.
        source: of the image.
    """
    stored = geometry.to_file(array, source)
    header = _own_header(source.header)
    size = len(source.header)
    if int(header["dim"][0]) == 2 and stored.ndim == 3:
        stored = stored[..., 0]  # a 2-D file stays one
    dim = list(stored.shape) + [1] * (7 - stored.ndim)
    header["dim"] = [stored.ndim, *dim]
    header.set_data_dtype(stored.dtype)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["cal_min"] = header["cal_max"] = 0
    header["vox_offset"] = size + 4
    header["magic"] = b"n+1" if size == 348 else b"n+2"
    header["intent_code"] = 0
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in header.keys():  # noqa: SIM118 - a header is no dict, it iterates over its values
            header[name] = b""
    payload = stored.astype(stored.dtype.newbyteorder(header.endianness)).tobytes(order="F")
    content = header.binaryblock + b"\x00" * 4 + payload
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=3, mtime=0)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


def grid_of(header: Header) -> Grid:
    """Return the canonical grid that a header describes."""
    return geometry.to_canonical(np.broadcast_to(np.uint8(0), header.shape), header.affine)[1]


def source_of(grid: Grid) -> Source:
    """Return what is needed to write NIfTI files on a canonical grid that comes from no NIfTI file."""
    affine = np.asarray(grid.affine, float)
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape[::-1])
    header.set_zooms([float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)])
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    return Source("nifti", ".nii.gz", grid.shape[::-1], header=header.binaryblock, affine=affine)
