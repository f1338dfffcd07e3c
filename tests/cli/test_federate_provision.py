"""seguro federate provision: what it makes, what it says, and what a dry run leaves alone."""

import json

import pytest

pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.cli.main import main

PROJECT = "name: liver\nserver: fed.example.org\nsites: [north, south]\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project.yaml").write_text(PROJECT)
    return tmp_path


def test_folders_and_the_next_command(project, capsys):
    assert main(["federate", "provision", "project.yaml"]) == 0
    said = capsys.readouterr().out
    assert "north: client certificate of north" in said
    assert "next: seguro federate server liver.federation/server FEDERATION.yaml" in said
    assert sorted(p.name for p in (project / "liver.federation/sites").iterdir()) == ["north", "south"]
    assert main(["federate", "provision", "project.yaml", "--revoke", "south", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["folder"] == "liver.federation"
    assert "south: client certificate of south revoked" in out.err


def test_a_dry_run_makes_nothing(project, capsys):
    assert main(["federate", "provision", "project.yaml", "--dry-run", "--out", "there"]) == 0
    assert "fed.example.org:8443, sites north, south" in capsys.readouterr().out
    assert not (project / "there").exists()


def test_wrong_files_and_sites_are_usage_errors(project, capsys):
    assert main(["federate", "provision", "project.yaml", "--renew", "east"]) == 1
    assert "east: not in this project" in capsys.readouterr().err
    (project / "bad.yaml").write_text("name: liver\n")
    assert main(["federate", "provision", "bad.yaml"]) == 1
    assert main(["federate", "provision", "none.yaml"]) == 2
