"""Sites on one machine: dealt out by patient, or as the cases name them; options that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seguro import api as stages
from seguro.api import federation as api
from seguro.core.errors import ConfigError, DataError
from seguro.data import phantom

OPTIONS = api.FederateOptions(preset="tiny", rounds=1, updates=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scans of each of four patients, at two sites."""
    root = tmp_path_factory.mktemp("dealt")
    data = phantom.write_msd(root / "data", n_labelled=8, n_test=0, scans_per_patient=2, sites=2)
    stages.manifest_of(data, root / "w")
    return root / "w"


def cases(found) -> dict[str, set[str]]:
    return {name: {c.id for c in site.manifest().cases} for name, site in found.items()}


def test_a_patient_is_dealt_to_one_site_and_every_case_to_one(folder, tmp_path):
    found = api.sites_of([folder], tmp_path / "runs" / "r", OPTIONS, sites="3")
    assert sorted(found) == ["site1", "site2", "site3"]
    patients = [{c.patient for c in site.manifest().cases} for site in found.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 4
    assert sum(map(len, cases(found).values())) == 8
    again = api.sites_of([folder], tmp_path / "again" / "r", OPTIONS, sites="3")
    other = api.sites_of([folder], tmp_path / "other" / "r", replace(OPTIONS, seed=1), sites="3")
    assert cases(again) == cases(found) != cases(other)


@pytest.mark.parametrize(("sites", "error"), [("1", ConfigError), ("many", ConfigError), ("5", DataError)])
def test_a_number_that_cannot_be_is_refused(sites, error, folder, tmp_path):
    with pytest.raises(error, match=r"--sites|4 patients cannot be dealt to 5"):
        api.sites_of([folder], tmp_path / "runs" / "r", OPTIONS, sites=sites)


def test_two_folders_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="one name"):
        api.sites_of([tmp_path / "x" / "data", tmp_path / "y" / "data"], tmp_path / "run", OPTIONS)


def test_a_folder_that_is_not_there_ends_a_simulation_at_once(folder, tmp_path):
    """Over a network the others would wait for its site, for an hour."""
    with pytest.raises(DataError, match="gone: does not exist"):
        api.simulate([folder, tmp_path / "gone"], OPTIONS, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"strategy": {"trim": 0.7}}, "trim"),
        ({"strategy": {"aggregation": "mean"}}, "aggregation"),
        ({"strategy": {"quorum": 3}}, "quorum of 3 of 2"),
        ({"strategy": {"privacy": {"clip": 1.0}}}, "must count the same"),
        ({"strategy": {"aggregate": "trimmed"}}, "3 sites or more, here are 2"),
        ({"strategy": {"trim": 0.3}}, "only trimmed trims"),
        ({"strategy": {"aggregate": "uniform", "privacy": {"clip": 1, "noise": 0, "budget": 8}}}, "noise"),
        (
            {"strategy": {"aggregate": "uniform", "privacy": {"clip": 1, "budget": 0.1}}},
            "before the first round",
        ),
        ({"rounds": 0}, "rounds"),
        ({"name": "a/b"}, "--name"),
        ({"settings": {"no_such": 1}}, "no_such"),
    ],
    ids=[
        "trim",
        "unknown",
        "quorum",
        "weighted-privacy",
        "too-few-to-trim",
        "trim-of-a-mean",
        "budget-without-noise",
        "budget-of-no-round",
        "no-round",
        "name",
        "setting",
    ],
)
def test_options_that_cannot_be_are_refused_and_named(change, word):
    with pytest.raises(ConfigError, match=word):
        api.federation(replace(OPTIONS, **change), ["a", "b"])


def test_a_file_with_fields_of_another_kind_is_refused(tmp_path):
    for text, word in (("roundz: 1", "roundz"), ("strategy: fast", "strategy")):
        (tmp_path / "f.yaml").write_text(text)
        with pytest.raises(ConfigError, match=word):
            api.options_in(tmp_path / "f.yaml")
