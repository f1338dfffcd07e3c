"""HAProxy: at the server the one open port, at each site the sidecar that shows its certificate.

Flower's one port serves sites and operators alike, and its control path asks nobody who they are. So the
SuperLink listens on the loopback, and what is open to the outside is a proxy that wants a certificate of the
federation's authority and passes on the calls of a running SuperNode, nothing else. A SuperNode cannot show
one, so a sidecar on its machine does. Both ends re-encrypt, which Flower's node authentication asks for. Only
between a SuperNode and its executor, two processes of one machine, Flower speaks in plain text.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

FLEET = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""Calls of a SuperNode with a registered key. `register-node` is not among them: sites do not add sites."""
_COMMON = """\
global
    log stdout format raw local0
    maxconn 512

defaults
    mode http
    log global
    option httplog
    option dontlognull
    timeout connect 10s
    timeout http-request 30s
    timeout client 10m
    timeout server 10m
"""


def server_config(*, bind: str, port: int, superlink_port: int, sites: Sequence[str]) -> str:
    """Return haproxy.cfg of the server, whose folder holds the files that it names.

    Args:
        bind: address that the port is opened on; "*" for all.
        port: the port that sites connect to.
        superlink_port: of the SuperLink on the loopback.
        sites: common names of certificates that may connect.
    """
    paths = " ".join(f"/v1/fleet/{call}" for call in FLEET)
    return f"""{_COMMON}
frontend sites
    bind {bind}:{port} ssl crt public.pem ca-file ca.pem crl-file crl.pem verify required ssl-min-ver TLSv1.3
    log-format "%ci %{{+Q}}[ssl_c_s_dn(CN)] %ST %B %{{+Q}}r"
    http-request deny deny_status 403 unless {{ ssl_c_s_dn(CN) -m str {" ".join(sites)} }}
    http-request deny deny_status 403 unless METH_POST {{ path -m str {paths} }}
    default_backend superlink

backend superlink
    server superlink 127.0.0.1:{superlink_port} ssl verify required ca-file ca.pem verifyhost localhost
"""


def sidecar_config(*, host: str, port: int, sidecar_port: int) -> str:
    """Return haproxy.cfg of a site, whose folder holds the files that it names.

    Args:
        host: of the server, a name or an address.
        port: of the server.
        sidecar_port: where the SuperNode connects, on the loopback.
    """
    named, resolvers, at = not _is_address(host), "", f"[{host}]" if ":" in host else host
    if named:  # the sidecar starts without the network, and follows a name to a new address
        resolvers = "\nresolvers system\n    parse-resolv-conf\n"
    options = " init-addr last,libc,none resolvers system" if named else ""
    identity = f"sni str({host}) verifyhost {host}" if named else f"verifyhost {host}"
    return f"""{_COMMON}{resolvers}
frontend supernode
    bind 127.0.0.1:{sidecar_port} ssl crt sidecar.pem ssl-min-ver TLSv1.2
    default_backend server

backend server
    server server {at}:{port} ssl crt site.pem verify required ca-file ca.pem {identity}{options}
"""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
