"""Who takes part: which node is which site, and whether it agreed to the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seguro.core.errors import ConfigError
from seguro.methods import get


def lonely(facts: Mapping[str, Mapping[str, Any]], method: str) -> list[str]:
    """Return warnings, each naming the site, where a federation is none: one site, or labels at one only.

    Args:
        facts: by site, what it told of its cases.
        method: one that learns without labels is chosen without them too.
    """
    if len(facts) == 1:
        return [f"warning: site {next(iter(facts))} is the only one: nothing is averaged"]
    labelled = [site for site, told in sorted(facts.items()) if told["n_labelled"]]
    if len(labelled) != 1 or get(method).needs.labels == "none":
        return []
    return [
        f"warning: only site {labelled[0]} has labelled cases: its validation cases alone choose the best "
        "round, and what holds for its images may not hold for the others'"
    ]


class Roster:
    """Nodes and the sites that they say they are.

    A node is believed once: who connects is settled by certificates and keys; that two nodes are not the same
    site is settled here.

    Args:
        sites: names of those who may take part.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.node_of: dict[str, int] = {}
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.agreed: set[str] = set()

    def enter(self, node: int, site: str, facts: Mapping[str, Any], online: Sequence[int]) -> None:
        """Note that `node` is `site`; a node that is gone is replaced.

        Raises:
            ConfigError: a name that is not expected, or one that another node has and is still there.
        """
        if site not in self.sites:
            raise ConfigError(f"a node says it is site {site!r}; expected are {', '.join(self.sites)}")
        before = self.node_of.get(site)
        if before is not None and before != node and before in online:
            raise ConfigError(
                f"two nodes say they are site {site!r}; give each site its own name in its start-up file"
            )
        if before != node:
            self.agreed.discard(site)
        self.node_of[site] = node
        self.facts[site] = facts

    def unknown(self, online: Sequence[int]) -> list[int]:
        """Return the reachable nodes that have not said who they are."""
        known = set(self.node_of.values())
        return [n for n in online if n not in known]

    def here(self, online: Sequence[int]) -> list[str]:
        """Return the reachable sites that agreed to the plan, in the order of the names."""
        return [s for s in self.sites if s in self.agreed and self.node_of[s] in online]

    def missing(self) -> list[str]:
        """Return the sites that have not said who they are."""
        return [s for s in self.sites if s not in self.node_of]
