"""seguro federate server and site without a network: what they check, say and refuse before they start."""

import json

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.cli.main import main
from seguro.federated import startup
from seguro.federated.provision import Project, provision


@pytest.fixture
def fed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "proxy_command", lambda folder: ["haproxy", str(folder)])
    provision(Project(name="liver", server="127.0.0.1", port=1, sites=["north", "south"]), tmp_path / "fed")
    (tmp_path / "run.yaml").write_text(
        "name: one\npreset: tiny\nrounds: 3\nupdates: 7\nstrategy: {quorum: 2}\n"
    )
    return tmp_path


def test_the_server_says_what_it_would_run(fed, capsys):
    assert main(["federate", "server", "fed/server", "run.yaml", "--dry-run", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["run"] == "runs/one"
    assert "3 rounds of 7 updates" in out.err and "sites: north, south" in out.err
    assert "--enable-supernode-auth" in out.err
    assert not (fed / "runs").exists() and not (fed / "fed/server/work").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sites: [north, east]\n", "sites east are not of project liver"),
        ("rouds: 3\n", "unknown rouds"),
        ("strategy: {quorum: 9}\n", "quorum of 9 of 2 sites"),
        ("strategy: {privacy: {noise: 1}}\n", "clip"),
    ],
    ids=["site", "key", "quorum", "privacy"],
)
def test_the_server_refuses_what_cannot_run(fed, capsys, text, said):
    (fed / "run.yaml").write_text(text)
    assert main(["federate", "server", "fed/server", "run.yaml", "--dry-run"]) == 1
    assert said in capsys.readouterr().err


def test_each_takes_its_own_folder_only(fed, phantom_folder, capsys):
    assert main(["federate", "server", "fed/sites/north", "run.yaml", "--dry-run"]) == 1
    assert "not the start-up folder of the server" in capsys.readouterr().err
    assert main(["federate", "site", "fed/server", str(phantom_folder), "--dry-run"]) == 1
    assert "not the start-up folder of a site" in capsys.readouterr().err


def test_a_site_shows_what_would_leave_and_then_tries_the_server(fed, phantom_folder, capsys):
    assert main(["federate", "site", "fed/sites/north", str(phantom_folder), "--out", "w", "--dry-run"]) == 3
    out = capsys.readouterr()
    assert "n_cases: 8" in out.out and '"may_leave"' in out.out
    assert "127.0.0.1:1 cannot be reached" in out.err


def test_a_policy_with_a_misspelled_key_stops_the_site(fed, phantom_folder, capsys):
    (fed / "fed/sites/north/policy.yaml").write_text("method: [roam]\n")
    assert main(["federate", "site", "fed/sites/north", str(phantom_folder), "--out", "w"]) == 1
    assert "keys of a policy are" in capsys.readouterr().err


def test_a_dry_run_holds_the_servers_file_against_the_policy(fed, phantom_folder, capsys):
    """Said at once, not when the run is there: what it forbids, and which numbers stay."""
    (fed / "fed/sites/north/policy.yaml").write_text("rounds: 2\nmay_leave: [facts, weights, counts]\n")
    words = ["federate", "site", "fed/sites/north", str(phantom_folder), "--out", "w", "--dry-run"]
    assert main([*words, "--federation", "run.yaml"]) == 1
    out = capsys.readouterr()
    assert "forbids this run: 3 rounds, at most 2 are allowed here" in out.err
    assert "no losses, scores: the policy keeps them here" in out.out
