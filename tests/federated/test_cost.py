"""What a run would take, in the same words at the server, at a site and in a rehearsal."""

from __future__ import annotations

import json
import re

import pytest

from seguro.api import federation as api
from seguro.cli.federate_server import files_of
from seguro.core.errors import ConfigError, DataError
from seguro.federated import compression, cost
from seguro.federated.roster import lonely


@pytest.fixture(scope="module")
def told(workspaces):
    """By site, the file of its facts, as its dry run leaves it."""
    return {name: workspaces[name] / "federated" / "facts.json" for name in "ab"}


def test_bytes_are_those_of_the_rounds_and_fewer_where_they_are_coded(told, federation):
    plain = api.foretell_from(federation("ab", rounds=10), told)
    coded = api.foretell_from(federation("ab", rounds=10, strategy={"coding": "int8", "down": "int8"}), told)
    size = plain.bytes_up // 10
    assert plain.bytes_down == size * 11  # the last weights are scored too
    assert coded.bytes_up < 0.3 * plain.bytes_up
    assert size < coded.bytes_down < size + 0.3 * size * 10
    assert set(compression.CODECS) == {"fp16", "int8"}


def test_the_words_name_bytes_facts_and_who_says_the_hours(told, federation):
    found = api.foretell_from(federation("ab"), told)
    text = "\n".join(found.lines())
    up, down = (
        float(x) for x in re.search(r"sends at most ([\d.]+) MB and receives ([\d.]+) MB", text).groups()
    )
    assert (up, down) == (round(found.bytes_up / 1e6, 1), round(found.bytes_down / 1e6, 1))
    assert "site a: its own dry run says how many hours it trains" in text
    assert f"    n_cases: {json.dumps(found.facts['a']['n_cases'])}" in text
    assert found.values()["hours"] == {}


@pytest.mark.slow
def test_a_site_foretells_its_own_hours_and_in_a_rehearsal_all_do(sites, federation, told, tmp_path):
    path = tmp_path / "federation.yaml"
    path.write_text("preset: tiny\nrounds: 2\nupdates: 2\nplan: {memory_gib: 0.01}\nstrategy: {quorum: 3}\n")
    here = api.foretell_here(path, sites("a")["a"])
    assert here.hours["a"] > 0 and "h of training" in "\n".join(here.lines())
    found = sites("ab")
    facts = {name: site.facts() for name, site in found.items()}
    all_of_them = cost.foretold(federation("ab"), facts, found, tmp_path / "store")
    assert set(all_of_them.hours) == {"a", "b"}
    elsewhere = api.foretell_from(federation("ab"), told)
    assert (all_of_them.bytes_up, all_of_them.bytes_down) == (elsewhere.bytes_up, elsewhere.bytes_down)


def test_strangers_and_files_that_are_none_are_refused(told, federation, sites, tmp_path):
    with pytest.raises(ConfigError, match="facts of b; the run's sites are a"):
        api.foretell_from(federation("a"), told)
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(DataError, match="site a: facts differ"):
        api.foretell_from(federation("a"), {"a": tmp_path / "facts.json"})
    (tmp_path / "federation.yaml").write_text("sites: [x, y]\n")
    with pytest.raises(ConfigError, match="a is not among them"):
        api.foretell_here(tmp_path / "federation.yaml", sites("a")["a"])
    with pytest.raises(ConfigError, match="expected SITE=FILE"):
        files_of(["north"])


def test_a_site_that_is_alone_or_alone_with_labels_is_named():
    one, none = {"n_labelled": 3}, {"n_labelled": 0}
    assert "site a is the only one" in lonely({"a": one}, "supervised")[0]
    assert "only site b has labelled cases" in lonely({"a": none, "b": one, "c": none}, "roam")[0]
    assert lonely({"a": one, "b": one}, "roam") == [] and lonely({"a": none, "b": none}, "roam") == []
    assert lonely({"a": none, "b": one, "c": none}, "factory") == []


def test_the_server_says_so_before_round_1(fake, server, tmp_path):
    said: list[str] = []
    server(fake("a"), tmp_path / "run", names="a", rounds=1, say=said.append).run()
    assert "warning: site a is the only one: nothing is averaged" in said
