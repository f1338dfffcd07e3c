"""What runs where, from a start-up folder: commands of proxy, SuperLink and SuperNode, and their environment.

A start-up folder is what `provision` writes for the server and for each site. It can be moved as a whole.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from seguro.core.errors import ConfigError, RunError
from seguro.core.files import read_json
from seguro.core.types import Record
from seguro.federated import executor
from seguro.federated.certificates import valid_until

FILE = "startup.json"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Flower's own switches: it tells nobody of its use, looks for no update and installs nothing at run time."""
REACH_S = 10.0


class ServerStart(Record):
    """What the server's start-up folder is for."""

    project: str
    host: str
    port: int = Field(ge=1, le=65535)
    bind: str = "*"
    superlink_port: int = Field(ge=1, le=65535)
    sites: tuple[str, ...]


class SiteStart(Record):
    """What a site's start-up folder is for."""

    project: str
    site: str
    host: str
    port: int = Field(ge=1, le=65535)
    sidecar_port: int = Field(ge=1, le=65535)
    runtime_port: int = Field(ge=1, le=65535)


S = TypeVar("S", ServerStart, SiteStart)


def server_start(folder: Path) -> ServerStart:
    """Return what the server's start-up folder says; ConfigError where it is none."""
    return _read(folder, ServerStart)


def site_start(folder: Path) -> SiteStart:
    """Return what a site's start-up folder says; ConfigError where it is none."""
    return _read(folder, SiteStart)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: this one's, Flower quiet, its files below `home`."""
    return {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": _path()}


def quiet() -> None:
    """Set Flower's switches in this process; before the first import of flwr, which reads them then."""
    os.environ.update(QUIET)


def superlink_command(folder: Path) -> list[str]:
    """Return the command of the SuperLink: loopback only, TLS, nodes by their registered keys."""
    start = server_start(folder)
    return [
        _tool("flower-superlink", "federated"),
        *("--host", "127.0.0.1", "--port", str(start.superlink_port)),
        *("--ssl-certfile", str(folder / "superlink.pem"), "--ssl-keyfile", str(folder / "superlink.key")),
        *("--ssl-ca-certfile", str(folder / "ca.pem")),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--isolation", "process"),  # its app is run by our executor
    ]


def register_commands(folder: Path) -> list[list[str]]:
    """Return the commands that tell a started SuperLink the public keys of its sites."""
    flwr = _tool("flwr", "federated")
    return [
        [flwr, "supernode", "register", str(folder / "nodes" / f"{site}.pub"), "local", "--name", site]
        for site in server_start(folder).sites
    ]


def run_command(app: Path, federation: Path, folder: Path) -> list[str]:
    """Return the command that submits a run to the SuperLink and follows it to its end."""
    for path in (federation, folder):
        _plain("path", str(path))
    config = f'federation="{federation}" folder="{folder}"'
    return [_tool("flwr", "federated"), "run", str(app), "local", "--run-config", config, "--stream"]


def flower_config(folder: Path) -> str:
    """Return Flower's config.toml of the server: operators reach the SuperLink on the loopback."""
    start = server_start(folder)
    return (
        '[superlink]\ndefault = "local"\n\n[superlink.local]\n'
        f'address = "127.0.0.1:{start.superlink_port}"\nroot-certificates = "{folder / "ca.pem"}"\n'
    )


def supernode_command(folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Return the command of a site's SuperNode, which reaches the server through its sidecar.

    Args:
        folder: the site's start-up folder.
        settings: the node's configuration: data, out, policy, ...; the site's name is added.

    Raises:
        ConfigError: a value with a quote or a line break, which Flower would read as something else.
    """
    start = site_start(folder)
    pairs = {"site": start.site, **settings}
    for key, value in pairs.items():
        _plain(key, value)
    return [
        *(sys.executable, "-m", "seguro.federated.supernode"),
        *("--superlink", f"127.0.0.1:{start.sidecar_port}"),
        *("--root-certificates", str(folder / "ca.pem")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--host", "127.0.0.1", "--port", str(start.runtime_port)),
        *("--isolation", "process"),  # its apps are run by our executor
        *("--node-config", " ".join(f'{k}="{v}"' for k, v in pairs.items())),
    ]


def executor_command(folder: Path) -> list[str]:
    """Return the command of the executor, which runs the apps of the folder's SuperLink or SuperNode."""
    raw = _raw(folder)
    if isinstance(raw, dict) and "sites" in raw:
        address = f"127.0.0.1:{server_start(folder).superlink_port}"
        return executor.command("server", address, folder / "ca.pem")
    return executor.command("site", f"127.0.0.1:{site_start(folder).runtime_port}")


def proxy_command(folder: Path) -> list[str]:
    """Return the command of the folder's proxy, in the foreground.

    Raises:
        ConfigError: HAProxy is not installed.
    """
    found = shutil.which("haproxy", path=f"{_path()}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ConfigError("the package 'haproxy' (2.6 or later) is not installed: apt-get install haproxy")
    return [found, "-db", "-C", str(folder), "-f", "haproxy.cfg"]


def check(folder: Path, *, now: datetime | None = None) -> datetime:
    """Return until when the folder's certificates are valid, the earliest of them.

    Raises:
        ConfigError: a file is missing, a certificate has expired or is of another federation; it is named.
    """
    raw = _raw(folder)
    server = isinstance(raw, dict) and "sites" in raw
    names = ("public.pem", "superlink.pem") if server else ("site.pem", "sidecar.pem")
    ends = []
    for name in names:
        try:
            found, authority = (folder / name).read_bytes(), (folder / "ca.pem").read_bytes()
            ends.append(valid_until(found, authority, now=now or datetime.now(UTC)))
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; ask for a new start-up folder") from error
        except ConfigError as error:
            raise ConfigError(
                f"{folder / name}: {error}; ask for a new start-up folder (provision --renew)"
            ) from error
    return min(ends)


def reach(folder: Path, *, timeout_s: float = REACH_S) -> None:
    """Connect to the server as the site and see that it lets this site in.

    Raises:
        RunError: what is wrong, in words: nobody there, another server, or a certificate that is refused.
    """
    start = site_start(folder)
    where = f"{start.host}:{start.port}"
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "site.pem")
    call = f"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: {start.host}\r\nContent-Length: 0\r\n\r\n"
    try:
        with (
            socket.create_connection((start.host, start.port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=start.host) as stream,
        ):
            stream.settimeout(timeout_s)
            stream.sendall(call.encode())
            answer = stream.recv(64).decode("latin-1")
    except ssl.SSLCertVerificationError as error:
        raise RunError(f"{where} is not this federation's server ({error.verify_message})") from error
    except ssl.SSLError as error:
        raise RunError(
            f"{where} refuses the certificate of site {start.site} ({_alert(error)}); is it expired or "
            "revoked? Ask for a new start-up folder"
        ) from error
    except OSError as error:
        raise RunError(
            f"{where} cannot be reached ({error.strerror or error}); is the server started, and does a "
            "firewall let this port out?"
        ) from error
    status = answer.split(" ")[1] if answer.startswith("HTTP/1.") else ""
    if status in ("", "403"):
        raise RunError(f"{where} does not let site {start.site} in; it is not on the server's list")
    if status in ("502", "503", "504"):
        raise RunError(f"{where}: the proxy is there, the SuperLink behind it is not; start it first")


def _plain(key: str, value: str) -> None:
    if any(c in value for c in "\"'\n\\"):
        raise ConfigError(f"{key} {value!r}: quotes, backslashes and line breaks cannot be passed on")


def _alert(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _read(folder: Path, kind: type[S]) -> S:
    try:
        return kind.model_validate(_raw(folder))
    except ValidationError as error:
        what = "the server" if kind is ServerStart else "a site"
        raise ConfigError(
            f"{folder}: not the start-up folder of {what}; 'seguro federate provision' makes them"
        ) from error


def _raw(folder: Path) -> object:
    if not (folder / FILE).is_file():
        raise ConfigError(
            f"{folder}: no {FILE} in it; name a start-up folder, made by seguro federate provision"
        )
    return read_json(folder / FILE)


def _tool(name: str, extra: str) -> str:
    found = shutil.which(name, path=_path())
    if found is None:
        raise ConfigError(f"'{name}' is not installed: pip install 'seguro[{extra}]'")
    return found


def _path() -> str:
    """Return the search path with the folder of this Python first, where pip puts Flower's commands."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
