"""How like its own slices a site finds what the weights of a round make of it; two numbers leave, no slice.

No site has the others' images, so a classifier of all sites' real slices can be fitted nowhere. What a site
can say alone is how far made slices of its domain are from its own, and how often, of one made slice of each
domain, that of its own looks most like them.
"""

from __future__ import annotations

from torch import nn

from seguro.data.store import Cases
from seguro.evaluation.generated import descriptors, frechet, singled_out
from seguro.inference import previews
from seguro.methods.contract import Maker

COMPARED = 64
"""Made slices of each domain, and real ones, at most."""
DISTANCE, RECOGNIZED = "made.distance", "made.recognized"
"""Names of the numbers; a site's policy must list them as "audits"."""


def measured(
    method: Maker, modules: nn.ModuleDict, train: Cases, *, site: str, seed: int
) -> dict[str, float]:
    """Return the numbers of a site's own domain; none with fewer than two slices.

    Args:
        method: one that makes images.
        modules: its modules, as they would be deployed.
        train: the site's training cases.
        site: names its domain; where the method does not tell sites apart there is a distance alone.
        seed: of what is made, the same in every round.
    """
    own = method.domains.index(site) if site in method.domains else 0
    real = descriptors(method.seen(train, own, COMPARED))
    if len(real) < 2:
        return {}
    made = [
        descriptors(previews.made(method, modules, number, COMPARED, seed=seed))
        for number in range(len(method.domains))
    ]
    out = {DISTANCE: frechet(made[own], real)}
    others = made[:own] + made[own + 1 :]
    return out | ({RECOGNIZED: singled_out(real, made[own], others)} if others else {})
