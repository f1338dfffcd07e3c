"""Methods by name. Adding one is a folder here and a row in TABLE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguro.core.errors import ConfigError

if TYPE_CHECKING:
    from seguro.methods.contract import Method

TABLE: dict[str, str] = {
    "supervised": "seguro.methods.supervised.method:Supervised",
    "rog": "seguro.methods.rog.method:Rog",
    "roam": "seguro.methods.roam.method:Roam",
    "pfseg": "seguro.methods.pfseg.method:Pfseg",
    "mean-teacher": "seguro.methods.semi.mean_teacher:MeanTeacher",
    "cps": "seguro.methods.semi.cps:CPS",
    "unimatch": "seguro.methods.semi.unimatch:UniMatch",
    "bcp": "seguro.methods.semi.bcp:BCP",
    "alpnet": "seguro.methods.alpnet.method:Alpnet",
    "factory": "seguro.methods.factory.method:Factory",
    "adapt": "seguro.methods.adapt.method:Adapt",
    "restyle": "seguro.methods.restyle.method:Restyle",
    "repaint": "seguro.methods.repaint.method:Repaint",
}
"""Name -> module:class; imported only when asked for."""


def get(name: str) -> type[Method]:
    """Return the class of the method `name`.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    import importlib

    if name not in TABLE:
        raise ConfigError(f"no method {name!r}; known are {', '.join(TABLE)}")
    module, _, kind = TABLE[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), kind)
    return found
