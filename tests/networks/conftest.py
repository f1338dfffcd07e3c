"""A plan made by hand, for networks that read strides and channels from it."""

from __future__ import annotations

from typing import Any

import pytest

from seguro.core.types import Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread

SPREAD = Spread(low=1, median=1, high=1)
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))


def plan_of(**changes: Any) -> Plan:
    """A plan of 8 x 16 x 16 voxels with three strides."""
    usual: dict[str, Any] = {
        "name": "toy",
        "dims": 3,
        "spacing": (2.0, 1.0, 1.0),
        "unit": "mm",
        "channels": (Intensity(name="x", scheme="zscore"),),
        "classes": Classes(names=("background", "a"), values=((0,), (1,))),
        "patch": (8, 16, 16),
        "strides": STRIDES,
        "kernels": ((3, 3, 3),) * (len(STRIDES) + 1),
        "batch": 2,
        "fingerprint": Fingerprint(
            n_cases=1, n_labelled=1, shape=(8, 16, 16), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
            intensity=({},), volume_ml={}, present={},
        ),
        "folds": (),
    }  # fmt: skip
    return Plan(**(usual | changes))


@pytest.fixture(name="make_plan")
def _make_plan():
    return plan_of
