"""A factory trained by the same call as any method: domains from the sites, previews, scores, audit."""

from __future__ import annotations

import shutil

import pytest

from seguro import api
from seguro.core.files import read_json
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine.log import RunLog


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factory") / "data"
    return phantom.write_msd(folder, n_labelled=6, n_test=0, sites=2, seed=7, shape=(4, 20, 24))


def run_on(data, out, **more):
    options = api.TrainOptions(
        method="factory", preset="tiny", updates=2, validations=1, batch=2, threads=1, **more
    )
    return api.train(data, options, out=out, plan_options=PlanOptions(dims=2, memory_gib=0.02))


def test_previews_scores_and_audit_of_every_site(data, tmp_path):
    run = run_on(data, tmp_path / "w")
    facts = read_json(run / "model" / "model.json")
    assert facts["config"]["domains"] == ["site1", "site2"]
    for site in facts["config"]["domains"]:
        assert sorted(p.name for p in (run / "previews" / site).iterdir()) == ["00000000.png", "00000002.png"]
    looks = [e for e in RunLog(run).lines() if e["kind"] == "validation"]
    assert [e["update"] for e in looks] == [0, 2]
    assert all({"distance.site1", "distance.site2", "recognized"} <= set(e) for e in looks)
    audit = read_json(run / "audit.json")
    assert set(audit["domains"]) == {"site1", "site2"}
    assert audit["releasable"] == all(d["passed"] for d in audit["domains"].values())


def test_no_label_is_opened(data, tmp_path):
    """The same weights with the labels replaced by others."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    names = sorted((other / "labelsTr").iterdir())
    contents = [p.read_bytes() for p in names]
    for path, content in zip(names, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    runs = [run_on(d, tmp_path / f"w{i}") for i, d in enumerate((data, other))]
    shas = [read_json(r / "model" / "model.json")["weights_sha256"] for r in runs]
    assert shas[0] == shas[1]
