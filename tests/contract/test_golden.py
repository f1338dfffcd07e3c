"""One phantom run per method, from its tiny preset, ends where it ended before; commits explain changes.

The stored scores are written by `python tests/contract/test_golden.py METHOD`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import seguro
from seguro import api
from seguro.core.files import read_json, write_json
from seguro.data import phantom
from seguro.data.formats import read_label
from seguro.data.planner import PlanOptions
from seguro.methods import TABLE, get

GOLDEN = Path(__file__).parent / "golden"
UPDATES, OF_REPLAYS = 300, 100
"""Updates of a run; each of rog's is replayed five times in its second half."""
TOLERANCE = 0.03
"""In Dice: other processors round otherwise, and 300 updates carry that on."""


def scores(method: str, folder: Path) -> dict[str, float]:
    """Train `method` on phantoms and return its best validation scores."""
    data = phantom.write_msd(folder / "data", n_labelled=6, n_unlabelled=4, n_test=0, seed=7)
    options = api.TrainOptions(
        method=method,
        preset="tiny",
        updates=OF_REPLAYS if method == "rog" else UPDATES,
        batch=2,
        validations=3,
        threads=1,
    )
    needs = get(method).needs
    plan_options = PlanOptions(memory_gib=0.02, dims=None if 3 in needs.dims else 2)
    run = api.train(data, options, out=folder / "w", plan_options=plan_options)
    if needs.support:
        return {"by support": by_support(run, data)}
    return {"best": read_json(run / "stage.json")["recorded"]["best"]}


def by_support(run: Path, data: Path) -> float:
    """Mean Dice of two scans by a third as support: a method that sees no label has no validation score."""
    segmenter = seguro.load(run)
    given, *asked = [f.name for f in sorted((data / "labelsTr").iterdir())][:3]
    bank = segmenter.support((data / "imagesTr" / given, data / "labelsTr" / given))
    found = []
    for name in asked:
        label = segmenter.predict(data / "imagesTr" / name, support=bank).array
        truth = read_label(data / "labelsTr" / name).array
        for (value,) in bank.classes.values[1:]:
            a, b = label == value, truth == value
            found.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(found))


def stored(name: str) -> bool:
    """Whether a method's run ends in a score: of its own, or of what it segments by a support."""
    needs = get(name).needs
    return needs.segments and (needs.support or bool(needs.monitor and 3 in needs.dims))


@pytest.mark.slow
@pytest.mark.parametrize("method", [n for n in TABLE if stored(n)])
def test_it_ends_where_it_ended_before(method, tmp_path):
    assert scores(method, tmp_path) == pytest.approx(read_json(GOLDEN / f"{method}.json"), abs=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_json(GOLDEN / f"{sys.argv[1]}.json", scores(sys.argv[1], Path(folder)))
