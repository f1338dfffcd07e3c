"""Who a real SuperLink behind its proxy turns away, and how soon and how plainly (slow: it starts Flower)."""

import os
import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.core.errors import RunError
from seguro.core.files import write_text
from seguro.federated import deployment, startup
from seguro.federated.deployment import Service
from seguro.federated.provision import Project, provision

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
        reason="haproxy is not installed (apt-get install haproxy)",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_ports):
    """The folder of a federation whose SuperLink and proxy run; no key is registered."""
    folder = tmp_path_factory.mktemp("refused") / "fed"
    ports = free_ports(4)
    project = Project(
        name="x", server="127.0.0.1", port=ports[0], superlink_port=ports[1],
        sites={"north": {"sidecar_port": ports[2], "runtime_port": ports[3]}},
    )  # fmt: skip
    provision(project, folder)
    own, work = folder / "server", folder / "server/work"
    environment = startup.environment(work / "flower")
    write_text(work / "flower/config.toml", startup.flower_config(own))
    with (
        Service("the SuperLink", startup.superlink_command(own), work / "link.log", environment) as link,
        Service("HAProxy", startup.proxy_command(own), work / "haproxy.log") as proxy,
    ):
        link.listening(ports[1])
        proxy.listening(ports[0])
        yield folder


def post(folder: Path, port: int, path: str) -> int:
    """Return the status of a call with the site's certificate."""
    context = ssl.create_default_context(cafile=str(folder / "ca/ca.pem"))
    context.load_cert_chain(folder / "sites/north/site.pem")
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        stream.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        return int(stream.recv(64).split(b" ")[1])


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-task"]
)
def test_control_and_runtime_are_on_the_loopback_of_the_server_only(server, path):
    start = startup.server_start(server / "server")
    assert post(server, start.port, path) == 403
    assert post(server, start.superlink_port, path) != 403  # it is there, for the server's own people


def test_a_site_cannot_add_a_node(server):
    start = startup.server_start(server / "server")
    assert post(server, start.port, "/v1/fleet/register-node") == 403


def test_a_node_whose_key_is_not_registered_is_refused(server, tmp_path):
    """Within 15 s and with the reason in words, not only with Flower's number for it (check 7)."""
    started = time.monotonic()
    with pytest.raises(RunError, match=r"does not know the key of site north") as raised:
        deployment.take_part(server / "sites/north", tmp_path, tmp_path / "w")
    assert time.monotonic() - started < 15
    assert "Failed to initialize the connection" in str(raised.value)
