"""One phantom run per method, from its tiny preset, ends where it ended before; commits explain changes.

The stored scores are written by `python tests/contract/test_golden.py METHOD`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from seguro import api
from seguro.core.files import read_json, write_json
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.methods import TABLE, get

GOLDEN = Path(__file__).parent / "golden"
UPDATES = 300
TOLERANCE = 0.03
"""In Dice: other processors round otherwise, and 300 updates carry that on."""


def scores(method: str, folder: Path) -> dict[str, float]:
    """Train `method` on phantoms and return its best validation scores."""
    data = phantom.write_msd(folder / "data", n_labelled=6, n_unlabelled=4, n_test=0, seed=7)
    options = api.TrainOptions(
        method=method, preset="tiny", updates=UPDATES, batch=2, validations=3, threads=1
    )
    run = api.train(data, options, out=folder / "w", plan_options=PlanOptions(memory_gib=0.02))
    return {"best": read_json(run / "stage.json")["recorded"]["best"]}


@pytest.mark.slow
@pytest.mark.parametrize("method", [n for n in TABLE if get(n).needs.monitor and 3 in get(n).needs.dims])
def test_it_ends_where_it_ended_before(method, tmp_path):
    assert scores(method, tmp_path) == pytest.approx(read_json(GOLDEN / f"{method}.json"), abs=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_json(GOLDEN / f"{sys.argv[1]}.json", scores(sys.argv[1], Path(folder)))
