"""What is known not to fit is refused before training, by the name of the case."""

from __future__ import annotations

import pytest

from seguro import api
from seguro.core.errors import DataError
from seguro.data import phantom
from seguro.data.planner import PlanOptions


def test_a_validation_case_that_the_crop_does_not_go_with_stops_nothing_midway(tmp_path):
    """Cut to the size of training they would do; whole, as validation sees them, they do not."""
    data = phantom.write_msd(
        tmp_path / "d", n_labelled=2, n_test=0, shape=(16, 32, 32), seed=2, spacing=(1, 1, 1)
    )
    settings = {"size": (16, 16, 32), "crop": (4, 4, 8), "inject": "concat"}
    options = api.TrainOptions(
        method="pfseg", preset="tiny", settings=settings, updates=2, batch=2, validations=1, threads=1
    )
    planned = PlanOptions(memory_gib=0.02, folds=2)
    with pytest.raises(DataError, match=r"validation case \w+: guidance crop \(4, 4, 8\).*inject=scatter"):
        api.train(data, options, out=tmp_path / "w", plan_options=planned)
    assert not list((tmp_path / "w" / "runs").rglob("config.yaml"))
