"""Start-up folders: who may connect, what is secret, and that a second run breaks nothing."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID as Uses

from seguro.core.errors import ConfigError
from seguro.core.files import read_json
from seguro.federated import certificates, startup
from seguro.federated.policy import Policy, read_policy
from seguro.federated.provision import Project, provision, read_project
from seguro.federated.proxy import FLEET, server_config, sidecar_config

NOW = datetime(2026, 5, 1, tzinfo=UTC)
PROJECT = Project(name="liver", server="127.0.0.1", sites=["north", "south"], days=30)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fed") / "liver.federation"
    provision(PROJECT, out, now=NOW)
    return out


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_commands_in_the_read_me_files_are_those_of_the_program(made):
    """A server that follows its own page must not be told that an option does not exist."""
    import inspect

    from seguro.cli.federate_server import server
    from seguro.cli.federate_site import site

    takes = {"server": inspect.signature(server), "site": inspect.signature(site)}
    for path in (made / "server/README.md", made / "sites/north/README.md"):
        for what, rest in re.findall(r"seguro federate (server|site) (.+)", path.read_text()):
            options = {x[2:].replace("-", "_") for x in rest.split() if x.startswith("--")}
            assert options <= set(takes[what].parameters)
            places = [x for x in rest.split() if not x.startswith("--")]
            required = [p for p in takes[what].parameters.values() if p.default is p.empty]
            assert len(places) == len(required), rest


def test_a_site_gets_no_secret_but_its_own(made):
    keys = {p: p.read_bytes() for p in made.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()}
    assert {str(p.relative_to(made)) for p in keys} == {
        "ca/ca.key", "server/public.pem", "server/superlink.key",
        *(f"sites/{s}/{f}" for s in ("north", "south") for f in ("node.key", "site.pem", "sidecar.pem")),
    }  # fmt: skip
    assert len(set(keys.values())) == len(keys)
    assert all(p.stat().st_mode & 0o077 == 0 for p in keys)
    assert made.stat().st_mode & 0o077 == 0


def test_certificates_are_for_one_use_and_one_name(made):
    north = certificate(made / "sites/north/site.pem")
    assert north.subject.rfc4514_string() == "CN=north"
    assert list(north.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [Uses.CLIENT_AUTH]
    for name in ("server/public.pem", "server/superlink.pem", "sites/north/sidecar.pem"):
        found = certificate(made / name)
        assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
            Uses.SERVER_AUTH
        ]
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate(made / "server/superlink.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert next(n.value for n in names.value) == "localhost"


def test_node_keys_fit_and_the_server_has_the_public_ones(made):
    for site in PROJECT.sites:
        private = load_ssh_private_key((made / f"sites/{site}/node.key").read_bytes(), None)
        public = load_ssh_public_key((made / f"server/nodes/{site}.pub").read_bytes())
        assert private.public_key() == public
        assert private.curve.name == "secp384r1"


def test_a_second_run_changes_no_key_and_no_policy(tmp_path):
    out = tmp_path / "fed"
    provision(PROJECT, out, now=NOW)
    (out / "sites/north/policy.yaml").write_text("rounds: 3\n")
    before = contents(out)
    assert provision(PROJECT, out, now=NOW + timedelta(days=1)) == []
    after = contents(out)
    assert {k for k in before if before[k] != after[k]} <= {"server/crl.pem"}  # it has a date
    assert set(before) == set(after)


def test_a_site_can_be_added(tmp_path):
    out = tmp_path / "fed"
    provision(PROJECT, out, now=NOW)
    before = contents(out / "sites")
    lines = provision(
        PROJECT.model_copy(update={"sites": {**PROJECT.sites, "west": PROJECT.sites["north"]}}), out
    )
    assert all(line.startswith("west: ") for line in lines) and len(lines) == 2
    assert before.items() <= contents(out / "sites").items()
    assert startup.server_start(out / "server").sites == ("north", "south", "west")


def test_renewed_and_revoked_sites(tmp_path):
    out = tmp_path / "fed"
    provision(PROJECT, out, now=NOW)
    old = certificate(out / "sites/north/site.pem").serial_number
    provision(PROJECT, out, renew=["north"], revoke=["south"], now=NOW)
    listed = {c.serial_number for c in x509.load_pem_x509_crl((out / "server/crl.pem").read_bytes())}
    assert old in listed and certificate(out / "sites/south/site.pem").serial_number in listed
    assert certificate(out / "sites/north/site.pem").serial_number not in listed
    assert startup.server_start(out / "server").sites == ("north",)
    assert [p.stem for p in (out / "server/nodes").iterdir()] == ["north"]
    provision(PROJECT, out, now=NOW)  # a revoked site stays out
    assert startup.server_start(out / "server").sites == ("north",)
    provision(PROJECT, out, renew=["south"], now=NOW)  # until it is renewed
    assert startup.server_start(out / "server").sites == ("north", "south")


def test_what_a_kill_left_is_made_again(tmp_path):
    out = tmp_path / "fed"
    provision(PROJECT, out, now=NOW)
    (out / "sites/north/sidecar.pem").unlink()
    lines = provision(PROJECT, out, now=NOW)
    assert any("revoked" in line for line in lines)
    assert startup.check(out / "sites/north", now=NOW) > NOW


def test_folders_say_until_when_they_work(made):
    for name in ("server", "sites/north"):
        assert startup.check(made / name, now=NOW) == NOW + timedelta(days=30)


@pytest.mark.parametrize(
    ("days", "said"), [(31, r"site\.pem: expired on 2026-05-31"), (-1, "clock right")], ids=["late", "early"]
)
def test_expired_certificates_are_named(made, days, said):
    with pytest.raises(ConfigError, match=said):
        startup.check(made / "sites/north", now=NOW + timedelta(days=days))


def test_certificates_of_another_federation_are_named(made, tmp_path):
    provision(PROJECT, tmp_path / "other", now=NOW)
    folder = tmp_path / "other/sites/north"
    (folder / "ca.pem").write_bytes((made / "ca/ca.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"site\.pem: was not issued by this federation"):
        startup.check(folder, now=NOW)
    (folder / "site.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="not a certificate"):
        startup.check(folder, now=NOW)
    (folder / "site.pem").unlink()
    with pytest.raises(ConfigError, match="new start-up folder"):
        startup.check(folder, now=NOW)


def test_certificates_do_not_outlive_the_authority():
    authority = certificates.Authority.new("x", now=NOW, days=10)
    assert authority.issue("a", "client", now=NOW, days=365).until == NOW + timedelta(days=10)


def test_the_policy_that_is_written_limits_nothing_and_every_key_in_it_exists(made, tmp_path):
    path = made / "sites/north/policy.yaml"
    assert read_policy(path) == Policy()
    lines = path.read_text().splitlines()[1:]
    keys = [line.removeprefix("# ").split(":")[0] for line in lines]
    assert sorted(keys) == sorted(Policy.model_fields)
    (tmp_path / "p.yaml").write_text("\n".join(line.removeprefix("# ") for line in lines))
    assert read_policy(tmp_path / "p.yaml").epsilon == 8


def test_flower_is_quiet_and_on_the_loopback(made):
    environment = startup.environment(made / "home")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
    for command in (
        startup.superlink_command(made / "server"),
        startup.supernode_command(made / "sites/north", {"data": "d"}),
    ):
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert "--insecure" not in command
    assert "--enable-supernode-auth" in startup.superlink_command(made / "server")
    assert [c[-1] for c in startup.register_commands(made / "server")] == ["north", "south"]


def test_what_flower_would_misread_is_refused(made):
    pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
    with pytest.raises(ConfigError, match="quotes"):
        startup.supernode_command(made / "sites/north", {"data": 'a" policy="b'})


def test_proxies_let_through_what_a_node_calls_and_no_more():
    text = server_config(bind="*", port=8443, superlink_port=8000, sites=["north"])
    allowed = {
        word for line in text.splitlines() if "METH_POST" in line for word in line.split() if "/v1" in word
    }
    assert allowed == {f"/v1/fleet/{c}" for c in FLEET}
    assert not {"register-node", "unregister-node"} & set(FLEET)
    assert "verify required" in text and "crl-file" in text
    named = sidecar_config(host="fed.example.org", port=8443, sidecar_port=9443)
    assert "verifyhost fed.example.org" in named and "bind 127.0.0.1:9443 ssl" in named


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nserver: b\nsites: []\n",
        "name: a\nserver: b\nsites: [x, x]\n",
        "name: a\nserver: b\nsites: [server]\n",
        "name: ../a\nserver: b\nsites: [x]\n",
        'name: a\nserver: "b ssl"\nsites: [x]\n',
        "name: a\nserver: b\nsites: [x/y]\n",
        "name: a\nserver: b\nsites: [x]\nport: 0\n",
        "name: a\nsite: b\n",
    ],
    ids=["none", "twice", "reserved", "path", "injected", "site path", "port", "unknown"],
)
def test_impossible_projects_are_refused(tmp_path, text):
    (tmp_path / "project.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"project\.yaml"):
        read_project(tmp_path / "project.yaml")


def test_unknown_sites_cannot_be_renewed(tmp_path):
    for wrong in ({"renew": ["east"]}, {"revoke": ["server"]}, {"renew": ["north"], "revoke": ["north"]}):
        with pytest.raises(ConfigError):
            provision(PROJECT, tmp_path / "fed", **wrong)
    assert not (tmp_path / "fed").exists()


def test_other_folders_are_named(tmp_path, made):
    with pytest.raises(ConfigError, match="start-up folder"):
        startup.site_start(tmp_path)
    with pytest.raises(ConfigError, match="not the start-up folder of a site"):
        startup.site_start(made / "server")
    assert read_json(made / "sites/north/startup.json")["site"] == "north"
