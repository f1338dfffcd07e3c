"""The proxies as they run: HAProxy between a site and a SuperLink that is played by a small HTTPS server."""

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.core.errors import RunError
from seguro.core.files import write_json
from seguro.federated import startup
from seguro.federated.certificates import Authority
from seguro.federated.provision import Project, provision
from seguro.federated.proxy import FLEET

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (apt-get install haproxy)")
NOW = datetime.now(UTC)


class Link(http.server.BaseHTTPRequestHandler):
    """Answers every call with its path, as the SuperLink would answer only its own."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        said = self.path.encode() + b" " + body
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST

    def log_message(self, *args):
        pass


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(port)


class Federation:
    """A provisioned federation of two sites whose server and first sidecar run."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.project = Project(
            name="liver",
            server="127.0.0.1",
            port=ports[0],
            superlink_port=ports[1],
            sites={"north": {"sidecar_port": ports[2]}, "south": {"sidecar_port": ports[3]}, "gone": {}},
        )
        self.folder = folder
        provision(self.project, folder)
        (folder / "sites/south/late.pem").write_bytes((folder / "sites/gone/site.pem").read_bytes())
        provision(self.project, folder, revoke=["gone"])
        self.link = http.server.ThreadingHTTPServer(("127.0.0.1", ports[1]), Link)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server/superlink.pem", folder / "server/superlink.key")
        self.link.socket = context.wrap_socket(self.link.socket, server_side=True)
        threading.Thread(target=self.link.serve_forever, daemon=True).start()
        self.processes = [self.proxy(folder / "server"), self.proxy(folder / "sites/north")]
        for port in (ports[0], ports[2]):
            wait_for(port)

    def proxy(self, folder: Path) -> subprocess.Popen:
        log = (folder / "haproxy.log").open("wb")
        return subprocess.Popen(startup.proxy_command(folder), stdout=log, stderr=subprocess.STDOUT)

    def call(
        self, path: str, certificate: Path | None, *, method: str = "POST", port: int | None = None
    ) -> str:
        """Return status and body of a call with a site's certificate, over TLS."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca/ca.pem"))
        if certificate is not None:
            context.load_cert_chain(certificate)
        body = "Content-Length: 4\r\n\r\nbody" if method == "POST" else "\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{body}"
        with (
            socket.create_connection(("127.0.0.1", port or self.project.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(head.encode())
            data = b""
            while part := stream.recv(4096):
                data += part
        text = data.decode()
        return text.split(" ")[1] + " " + text.rpartition("\r\n\r\n")[2]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait()
        self.link.shutdown()


@pytest.fixture(scope="module")
def running(tmp_path_factory, free_ports):
    federation = Federation(tmp_path_factory.mktemp("proxy") / "fed", free_ports(4))
    yield federation
    federation.stop()


def north(running: Federation) -> Path:
    return running.folder / "sites/north/site.pem"


@pytest.mark.parametrize("call", FLEET)
def test_a_site_reaches_what_a_node_calls(running, call):
    assert running.call(f"/v1/fleet/{call}", north(running)) == f"200 /v1/fleet/{call} body"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/pull-task"),
        ("GET", "/docs"),
        ("GET", "/health"),
        ("POST", "/"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("GET", "/v1/fleet/get-run"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/get-run/../../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "//v1/control/start-run"),
        ("POST", "/v1/CONTROL/start-run"),
        ("CONNECT", "/v1/fleet/get-run"),
    ],
)
def test_a_site_reaches_nothing_else(running, method, path):
    status = running.call(path, north(running), method=method).split(" ")[0]
    assert status in ("400", "403", "405")


def refused(running: Federation, certificate: Path | None) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        found = running.call("/v1/fleet/get-run", certificate)
        raise AssertionError(found)


def test_no_certificate_is_refused(running):
    refused(running, None)


def issued(tmp_path: Path, authority: Authority, **how) -> Path:
    one = authority.issue("north", how.pop("use", "client"), now=how.pop("now", NOW), days=1)
    path = tmp_path / "one.pem"
    path.write_bytes(one.certificate + one.key)
    return path


def own(running: Federation) -> Authority:
    return Authority.load(
        (running.folder / "ca/ca.pem").read_bytes(), (running.folder / "ca/ca.key").read_bytes()
    )


def test_an_expired_certificate_is_refused(running, tmp_path):
    refused(running, issued(tmp_path, own(running), now=NOW - timedelta(days=2)))


def test_a_certificate_of_another_authority_is_refused(running, tmp_path):
    refused(running, issued(tmp_path, Authority.new("liver", now=NOW, days=9)))


def test_a_certificate_for_another_use_is_refused(running, tmp_path):
    refused(running, issued(tmp_path, own(running), use="server"))
    refused(running, running.folder / "sites/north/sidecar.pem")


def test_a_revoked_certificate_is_refused(running):
    refused(running, running.folder / "sites/south/late.pem")


def test_a_valid_certificate_of_no_site_gets_no_answer(running, tmp_path):
    stranger = own(running).issue("stranger", "client", now=NOW, days=1)
    (tmp_path / "s.pem").write_bytes(stranger.certificate + stranger.key)
    assert running.call("/v1/fleet/get-run", tmp_path / "s.pem").startswith("403")


def test_plain_text_is_refused(running):
    with socket.create_connection(("127.0.0.1", running.project.port), 10) as plain:
        plain.sendall(b"POST /v1/fleet/get-run HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        plain.settimeout(10)
        try:
            answer = plain.recv(4096)
        except ConnectionError:
            answer = b""
    assert b"200" not in answer and b"/v1" not in answer


def test_old_tls_is_refused(running):
    context = ssl.create_default_context(cafile=str(running.folder / "ca/ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(north(running))
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection(("127.0.0.1", running.project.port), 10) as plain,
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_sidecar_shows_the_certificate_of_its_site(running):
    """A node without a certificate reaches the SuperLink through it, over TLS on both legs."""
    port = running.project.sites["north"].sidecar_port
    assert running.call("/v1/fleet/get-run", None, port=port) == "200 /v1/fleet/get-run body"
    assert running.call("/v1/control/start-run", None, port=port).startswith("403")


def test_a_large_message_passes(running):
    context = ssl.create_default_context(cafile=str(running.folder / "ca/ca.pem"))
    port, size = running.project.sites["north"].sidecar_port, 20_000_000
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        stream.sendall(
            b"POST /v1/fleet/push-object HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
        )
        got = 0
        while part := stream.recv(1 << 16):
            got += len(part)
    assert got > size


def test_reach_says_that_all_is_well_or_why_not(running, tmp_path, free_ports):
    startup.reach(running.folder / "sites/north")
    folder = tmp_path / "north"
    shutil.copytree(running.folder / "sites/north", folder)
    (port,) = free_ports(1)
    write_json(folder / "startup.json", startup.site_start(folder).model_dump() | {"port": port})
    with pytest.raises(RunError, match="cannot be reached"):
        startup.reach(folder)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("expired", "refuses the certificate of site north.*expired"),
        ("revoked", "refuses the certificate of site north.*revoked"),
        ("other server", "is not this federation's server"),
        ("unlisted", "not on the server's list"),
    ],
)
def test_reach_names_the_fault_within_seconds(running, tmp_path, harm, said):
    folder = tmp_path / "north"
    shutil.copytree(running.folder / "sites/north", folder)
    if harm == "expired":
        (folder / "site.pem").write_bytes(
            issued(tmp_path, own(running), now=NOW - timedelta(days=2)).read_bytes()
        )
    elif harm == "revoked":
        (folder / "site.pem").write_bytes((running.folder / "sites/south/late.pem").read_bytes())
    elif harm == "unlisted":
        one = own(running).issue("stranger", "client", now=NOW, days=1)
        (folder / "site.pem").write_bytes(one.certificate + one.key)
    else:
        (folder / "ca.pem").write_bytes(Authority.new("liver", now=NOW, days=9).pem)
    started = time.monotonic()
    with pytest.raises(RunError, match=said):
        startup.reach(folder)
    assert time.monotonic() - started < 15


@pytest.mark.slow
def test_without_a_superlink_the_proxy_says_so(tmp_path, free_ports):
    port, link = free_ports(2)
    project = Project(name="x", server="127.0.0.1", port=port, superlink_port=link, sites=["a"])
    provision(project, tmp_path / "fed")
    process = subprocess.Popen(startup.proxy_command(tmp_path / "fed/server"), stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        with pytest.raises(RunError, match="start it first"):
            startup.reach(tmp_path / "fed/sites/a", timeout_s=20)
    finally:
        process.terminate()
        process.wait()


def test_a_folder_can_be_moved(running, tmp_path):
    shutil.copytree(running.folder / "sites/south", tmp_path / "elsewhere")
    command = [*startup.proxy_command(tmp_path / "elsewhere"), "-c"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert found.returncode == 0, found.stderr


def test_a_named_server_needs_no_network_to_start(tmp_path):
    provision(Project(name="x", server="fed.example.org", sites=["a"]), tmp_path / "fed")
    for folder in ("server", "sites/a"):
        command = [*startup.proxy_command(tmp_path / "fed" / folder), "-c"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert found.returncode == 0, found.stderr


PROBE = """
import json, pathlib, socket, ssl, sys
from seguro.core.errors import RunError
from seguro.federated import startup
fed, host, port, inner = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def tried(work):
    try:
        return work()
    except (OSError, RunError) as error:
        return f"{type(error).__name__}: {error}"
def reach(site):
    startup.reach(fed / "sites" / site)
    return "let in"
def connect(to):
    socket.create_connection((host, to), 3).close()
    return "open"
def bare(tls):
    with socket.create_connection((host, port), 10) as stream:
        if tls:
            context = ssl.create_default_context(cafile=str(fed / "ca/ca.pem"))
            stream = context.wrap_socket(stream, server_hostname=host)
        stream.settimeout(10)
        stream.sendall(b"POST /v1/fleet/get-run HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n")
        return "answer " + repr(stream.recv(4096))
print(json.dumps({
    "proxy": tried(lambda: connect(port)),
    "superlink": tried(lambda: connect(inner)),
    "good": tried(lambda: reach("a")),
    "expired": tried(lambda: reach("expired")),
    "unknown authority": tried(lambda: reach("unknown")),
    "no certificate": tried(lambda: bare(True)),
    "plain text": tried(lambda: bare(False)),
}))
"""
"""What somebody on a hospital's network sees: one line of JSON."""


def ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True).returncode


@contextlib.contextmanager
def hospital():
    """A second network namespace stands for a hospital: yields the words that put a command into it."""
    name, here, there = (f"{kind}{os.getpid() % 10000}" for kind in ("seguro", "sga", "sgb"))
    if shutil.which("ip") is None or ip("netns", "add", name) != 0:
        pytest.skip("network namespaces are not allowed here (ip netns add)")
    try:
        steps = [
            ("link", "add", here, "type", "veth", "peer", "name", there),
            ("link", "set", there, "netns", name),
            ("addr", "add", "10.231.77.1/30", "dev", here),
            ("link", "set", here, "up"),
            ("netns", "exec", name, "ip", "addr", "add", "10.231.77.2/30", "dev", there),
            ("netns", "exec", name, "ip", "link", "set", there, "up"),
        ]
        if any(ip(*step) for step in steps):
            pytest.skip("virtual network links are not allowed here (ip link add type veth)")
        yield ["ip", "netns", "exec", name]
    finally:
        ip("netns", "del", name)
        ip("link", "del", here)


@pytest.fixture(scope="module")
def outside(tmp_path_factory, free_ports):
    """What is seen of the server from another network, by what was tried."""
    folder = tmp_path_factory.mktemp("outside") / "fed"
    with contextlib.ExitStack() as stack:
        inside = stack.enter_context(hospital())
        ports = free_ports(2)
        project = Project(
            name="x", server="10.231.77.1", port=ports[0], superlink_port=ports[1], sites=["a", "b"]
        )
        provision(project, folder)
        authority = Authority.load((folder / "ca/ca.pem").read_bytes(), (folder / "ca/ca.key").read_bytes())
        for site, issuer, now in (
            ("expired", authority, NOW - timedelta(days=2)),
            ("unknown", Authority.new("x", now=NOW, days=9), NOW),
        ):
            shutil.copytree(folder / "sites/a", folder / "sites" / site)
            one = issuer.issue("a", "client", now=now, days=1)
            (folder / "sites" / site / "site.pem").write_bytes(one.certificate + one.key)
        link = http.server.ThreadingHTTPServer(("127.0.0.1", ports[1]), Link)
        stack.callback(link.server_close)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server/superlink.pem", folder / "server/superlink.key")
        link.socket = context.wrap_socket(link.socket, server_side=True)
        threading.Thread(target=link.serve_forever, daemon=True).start()
        stack.callback(link.shutdown)
        proxy = subprocess.Popen(startup.proxy_command(folder / "server"), stdout=subprocess.DEVNULL)
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        wait_for(ports[0])
        command = [*inside, sys.executable, "-c", PROBE, str(folder), "10.231.77.1", *map(str, ports)]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert seen.returncode == 0, seen.stderr
        yield json.loads(seen.stdout)


@pytest.mark.slow
def test_from_another_network_only_the_proxy_is_there(outside):
    assert outside["proxy"] == "open"
    assert outside["superlink"].startswith(("ConnectionRefusedError", "TimeoutError"))
    assert outside["good"] == "let in"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ("expired", "RunError: .*refuses the certificate of site a .*expired"),
        ("unknown authority", "RunError: .*refuses the certificate of site a .*unknown"),
        ("no certificate", "SSLError: .*certificate.required|ConnectionResetError"),
        ("plain text", "answer b'(HTTP/1.. 400 .*)?'|ConnectionResetError"),
    ],
)
def test_from_another_network_who_has_no_valid_certificate_is_refused(outside, tried, said):
    assert re.match(said, outside[tried], re.I | re.S), outside[tried]
    assert "200" not in outside[tried] and "/v1" not in outside[tried]
