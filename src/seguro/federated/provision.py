"""Start-up folders of a federation: an authority, a folder for the server, and one for each site.

Run again it makes what is missing and writes the configurations anew; keys and certificates stay, and so do
policies, which belong to the sites. Every site's folder holds its private keys: bring it there on a safe way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator

from seguro.core.errors import ConfigError
from seguro.core.files import atomic, read_json, write_bytes, write_json, write_text
from seguro.core.settings import read_yaml
from seguro.core.types import Record
from seguro.federated import startup
from seguro.federated.certificates import Authority, Issued, Use, needed, node_key
from seguro.federated.proxy import server_config, sidecar_config
from seguro.federated.startup import ServerStart, SiteStart

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
LOOPBACK = ("localhost", "127.0.0.1")
AUTHORITY_DAYS = 3650
SERVER = "server"
NODE_PUB = "node.pub"
POLICY = """\
# What this site allows. The file is the site's: the server cannot read it. What is not set is not limited.
# methods: [supervised, roam]      # that may train here
# classes: [liver, spleen]         # that a run may segment
# largest_message_mb: 50           # that may leave without differential privacy, in 10^6 bytes
# epsilon: 8                       # only runs with differential privacy, up to this budget
# delta: 0.00001                   # largest probability with which that epsilon may fail
# rounds: 200                      # of a run
# updates: 1000                    # in a round
may_leave: [facts, weights, losses, scores, counts]
"""
SERVER_README = """\
# Server of {project}

Sites: {sites}. They reach {host}:{port}, which only HAProxy listens on; the SuperLink is on the loopback.

    seguro federate server THIS_FOLDER FEDERATION.yaml

starts HAProxy and the SuperLink, registers the sites' keys and runs the federation. By hand the proxy is

    haproxy -db -C THIS_FOLDER -f haproxy.cfg

public.pem and superlink.key are private keys: readable by one user, in no backup that others read.
"""
SITE_README = """\
# Site {site} of {project}

The sidecar shows this site's certificate to {host}:{port}; the SuperNode reaches it on
127.0.0.1:{sidecar_port}. Nothing needs to reach this machine from outside; it needs to reach {host} on
port {port}.

1. Write in policy.yaml what may happen here.
2. See whether the server lets this site in, and what would leave it:
   seguro federate site THIS_FOLDER DATA --dry-run
3. Take part: seguro federate site THIS_FOLDER DATA

By hand the sidecar is: haproxy -db -C THIS_FOLDER -f haproxy.cfg

node.key, site.pem and sidecar.pem are private keys: who has them is this site. If they are lost, tell the
server's people, who revoke them (seguro federate provision PROJECT.yaml --revoke {site}).
"""


class SitePorts(Record):
    """Ports of a site, on its loopback; to be told apart only where sites share a machine."""

    sidecar_port: Port = 9443
    """Of the sidecar, to which the SuperNode connects."""
    runtime_port: Port = 9094
    """Of the SuperNode's own interface to its apps."""


class Project(Record):
    """A federation, as PROJECT.yaml says it."""

    name: Name
    server: Host
    """Name or address under which sites reach the server."""
    port: Port = 8443
    """The one port that is open to them."""
    bind: str = Field("*", pattern=r"^[A-Za-z0-9.:*-]+$")
    """Address of the server that the port is opened on."""
    superlink_port: Port = 8000
    """Of the SuperLink, on the server's loopback."""
    sites: dict[Name, SitePorts] = Field(min_length=1)
    """Their names; a list, or names with ports."""
    days: int = Field(365, ge=1, le=AUTHORITY_DAYS)
    """How long certificates are valid."""

    @field_validator("sites", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(set(map(str, value))) != len(value):
                raise ValueError("two sites of one name")
            value = {str(name): {} for name in value}
        if isinstance(value, Mapping) and SERVER in value:
            raise ValueError("a site cannot be called server")
        return {k: v or {} for k, v in value.items()} if isinstance(value, Mapping) else value


def read_project(path: Path) -> Project:
    """Return the project in a YAML file.

    Raises:
        ConfigError: unknown keys or impossible values; each is named.
        DataError: no such file, or not YAML.
    """
    try:
        return Project.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}:\n  " + "\n  ".join(lines)) from error


def provision(
    project: Project,
    out: Path,
    *,
    renew: Collection[str] = (),
    revoke: Collection[str] = (),
    now: datetime | None = None,
) -> list[str]:
    """Write `out`/ca, `out`/server and `out`/sites/<name>; return what was made, one line each.

    Args:
        project: what is wanted.
        out: its folder; made if it is not there, readable by its owner only.
        renew: sites, or "server", that get new certificates and keys; the old ones are revoked.
        revoke: sites that may no longer connect. The server's folder must be taken to the server again.
        now: the time from which new certificates count.

    Raises:
        ConfigError: a site to renew or revoke that is not in the project.
    """
    needed()
    if unknown := sorted({*renew, *revoke} - {*project.sites, SERVER}):
        raise ConfigError(
            f"{', '.join(unknown)}: not in this project; its sites are {', '.join(project.sites)}"
        )
    if SERVER in revoke or set(renew) & set(revoke):
        raise ConfigError(
            "--revoke takes sites that are not renewed; the server gets new ones by --renew server"
        )
    made: list[str] = []
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = _Ledger(out / "ca", project, now or datetime.now(UTC), made)
    for name in (*renew, *revoke):
        ledger.take_back(name, ban=name in revoke)
    sites = {name: ports for name, ports in project.sites.items() if name not in ledger.banned}
    for name, ports in sites.items():
        _site(out / "sites" / name, project, name, ports, ledger)
    _server(out / SERVER, project, {n: (out / "sites" / n / NODE_PUB).read_bytes() for n in sites}, ledger)
    return made


class _Ledger:
    """The authority's folder: its key, and a list of what it issued and took back."""

    def __init__(self, folder: Path, project: Project, now: datetime, made: list[str]) -> None:
        self.project, self.now, self.made = project, now, made
        self.path = folder / "issued.json"
        pem, key = folder / "ca.pem", folder / "ca.key"
        if key.exists():
            self.authority = Authority.load(pem.read_bytes(), key.read_bytes())
        else:
            self.authority = Authority.new(project.name, now=now, days=AUTHORITY_DAYS)
            write_bytes(pem, self.authority.pem)
            secret(key, self.authority.secret)
            made.append(f"{folder}: the authority; keep ca.key offline, whoever has it can add sites")
        known = read_json(self.path) if self.path.exists() else {}
        self.entries: list[dict[str, Any]] = known.get("certificates", [])
        self.banned: list[str] = known.get("banned", [])

    def current(self, name: str) -> bool:
        """Return whether the folder `name` has certificates that count."""
        return any(e["folder"] == name and not e["revoked"] for e in self.entries)

    def issue(self, folder: str, name: str, use: Use, hosts: Collection[str] = ()) -> Issued:
        """Return a new certificate for a folder; it is on the list before it is anywhere else."""
        issued = self.authority.issue(name, use, hosts, now=self.now, days=self.project.days)
        until = f"{issued.until:%Y-%m-%d}"
        self.entries.append(
            {"folder": folder, "name": name, "use": use, "serial": str(issued.serial), "until": until}
            | {"revoked": False}
        )
        self._write()
        self.made.append(f"{folder}: {use} certificate of {name}, valid until {until}")
        return issued

    def take_back(self, name: str, *, ban: bool) -> None:
        """Take back all certificates of a folder, and let it have new ones or not."""
        for entry in self.entries:
            if entry["folder"] == name and not entry["revoked"]:
                entry["revoked"] = True
                self.made.append(f"{name}: {entry['use']} certificate of {entry['name']} revoked")
        self.banned = [*(n for n in self.banned if n != name), *([name] if ban else [])]
        self._write()

    def revocations(self) -> bytes:
        """Return the list of what does not count any more, as PEM."""
        return self.authority.revoked([int(e["serial"]) for e in self.entries if e["revoked"]], now=self.now)

    def _write(self) -> None:
        write_json(self.path, {"certificates": self.entries, "banned": self.banned})


def secret(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, readable by its owner only at every moment."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(data)


def _site(folder: Path, project: Project, name: str, ports: SitePorts, ledger: _Ledger) -> None:
    private, public = folder / "node.key", folder / NODE_PUB
    shown, beside = folder / "site.pem", folder / "sidecar.pem"
    if not ledger.current(name) or not all(p.exists() for p in (private, public, shown, beside)):
        ledger.take_back(name, ban=False)
        key, pub = node_key()
        secret(private, key)
        write_bytes(public, pub)
        for path, issued in (
            (shown, ledger.issue(name, name, "client")),
            (beside, ledger.issue(name, f"{name} sidecar", "server", LOOPBACK)),
        ):
            secret(path, issued.certificate + issued.key)
    if not (folder / "policy.yaml").exists():
        write_text(folder / "policy.yaml", POLICY)
    start = SiteStart(
        project=project.name,
        site=name,
        host=project.server,
        port=project.port,
        sidecar_port=ports.sidecar_port,
        runtime_port=ports.runtime_port,
    )
    config = sidecar_config(host=start.host, port=start.port, sidecar_port=start.sidecar_port)
    _common(folder, start, config, SITE_README.format(**start.model_dump()), ledger)


def _server(folder: Path, project: Project, nodes: Mapping[str, bytes], ledger: _Ledger) -> None:
    public, inner, inner_key = folder / "public.pem", folder / "superlink.pem", folder / "superlink.key"
    if not ledger.current(SERVER) or not all(p.exists() for p in (public, inner, inner_key)):
        ledger.take_back(SERVER, ban=False)
        outside = ledger.issue(SERVER, project.server, "server", (project.server,))
        inside = ledger.issue(SERVER, "localhost", "server", LOOPBACK)
        secret(public, outside.certificate + outside.key)
        secret(inner_key, inside.key)
        write_bytes(inner, inside.certificate)
    write_bytes(folder / "crl.pem", ledger.revocations())
    for name, pub in nodes.items():
        write_bytes(folder / "nodes" / f"{name}.pub", pub)
    for old in (folder / "nodes").glob("*.pub"):
        if old.stem not in nodes:
            old.unlink()
    start = ServerStart(
        project=project.name,
        host=project.server,
        port=project.port,
        bind=project.bind,
        superlink_port=project.superlink_port,
        sites=tuple(nodes),
    )
    config = server_config(
        bind=start.bind, port=start.port, superlink_port=start.superlink_port, sites=start.sites
    )
    sites = ", ".join(nodes)
    _common(folder, start, config, SERVER_README.format(**{**start.model_dump(), "sites": sites}), ledger)


def _common(folder: Path, start: ServerStart | SiteStart, config: str, readme: str, ledger: _Ledger) -> None:
    write_bytes(folder / "ca.pem", ledger.authority.pem)
    write_text(folder / "haproxy.cfg", config)
    write_json(folder / startup.FILE, start.model_dump(mode="json"))
    write_text(folder / "README.md", readme)
