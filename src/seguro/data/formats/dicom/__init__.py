"""DICOM series: split, put in order along the slice normal, and read as one volume in mm.

Nothing that may name a patient leaves this package but the patient's id inside `Series`, which is for
grouping alone and is never written or shown.
"""

from seguro.data.formats.dicom.reading import holds_dicom, looks_like_dicom
from seguro.data.formats.dicom.scan import Scan, Series, list_series
from seguro.data.formats.dicom.stack import Stack, stacked
from seguro.data.formats.dicom.volume import read_series, read_stack

__all__ = [
    "Scan",
    "Series",
    "Stack",
    "holds_dicom",
    "list_series",
    "looks_like_dicom",
    "read_series",
    "read_stack",
    "stacked",
]
