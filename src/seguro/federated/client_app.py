"""The Flower app of a site: it carries messages to the site and its answers back.

Flower imports it in a new process for every message, so it imports nothing that computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from seguro.core.errors import ConfigError
from seguro.federated.audit import Audit
from seguro.federated.grid import unwrapped, wrapped
from seguro.federated.message import Answering, Gate
from seguro.federated.policy import Guarded, Policy, read_policy
from seguro.federated.resident import Resident

if TYPE_CHECKING:
    from seguro.engine.runtime import Precision
    from seguro.federated.site import Site

log = logging.getLogger(__name__)


class SiteFailed(RuntimeError):
    """What goes over the network in place of an error of ours: it has no text, so it cannot leak."""


def made(site_of: Callable[[Context], Answering]) -> ClientApp:
    """Return the client app that answers every kind of message as the site of its context."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            data = site_of(context).answer(unwrapped(message.content))
        except Exception:
            log.exception("the task could not be answered")
            raise SiteFailed from None
        return Message(wrapped(data), reply_to=message)

    for kind in (app.query, app.train, app.evaluate):
        kind()(answer)
    return app


def from_context(context: Context) -> Answering:
    """Return the site of a node's configuration: by the `socket` of its process, or here in this one."""
    config = {k: str(v) for k, v in context.node_config.items()}
    return Resident(Path(config["socket"])) if "socket" in config else site_from(config)


def site_from(config: Mapping[str, str]) -> Site:
    """Return the site of a configuration.

    `site`, `data` and `out` are its name, data folder and workspace; `policy` is a YAML file, `device` and
    `precision` are of the training.

    Raises:
        ConfigError: a key is missing.
    """
    from seguro.federated.site import Site

    missing = [k for k in ("site", "data", "out") if k not in config]
    if missing:
        raise ConfigError(f"--node-config lacks {', '.join(missing)}; the start-up file of the site has them")
    out = Path(config["out"])
    return Site(
        config["site"],
        Path(config["data"]),
        out,
        gate=_gate(config.get("policy"), out),
        device=config.get("device", "cpu"),
        precision=_precision(config.get("precision", "32")),
        say=log.warning,
    )


def _precision(name: str) -> Precision:
    from seguro.engine.runtime import Precision

    if name not in get_args(Precision):
        raise ConfigError(f"precision {name}: expected {', '.join(get_args(Precision))}")
    return cast("Precision", name)


def _gate(policy: str | None, out: Path) -> Gate:
    """Return the gate of a real site: everything is noted, and without a policy everything may pass."""
    rules = read_policy(Path(policy)) if policy else Policy()
    return Guarded(rules, Audit(out / "federated" / "audit.jsonl"))


app = made(from_context)
