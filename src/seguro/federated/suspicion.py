"""Which site pulls against the others: a warning for people, by what the updates look like; all still count.

A site's change of the weights is compared with the coordinate-wise median of the others' changes, which one
hostile site of four or more cannot move far (Yin et al. 2018, definition 1; the cosine as in FLTrust, Cao et
al. 2021, section 4, which compares with a trusted update of the server's own). Two signs are taken over the
last rounds: a cosine clearly below zero where the others agree, and a length that is a multiple of theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.seeds import generator
from seguro.federated.message import AVERAGED, Arrays

LEAST = 4
"""Updates of a round, so that one hostile site is a minority among the others of every site."""
WINDOW, FIRST = 5, 2
"""Rounds of a site that are looked at together, and the fewest that say something."""
AGAINST, TOGETHER = -0.2, 0.1
"""Mean cosine of a site that is named, and what that of the others must be (their median).

Measured over four to six rounds of five sites of phantoms, supervised and by ROAM: sites like each other .17
to .75, one with inverted contrast .08 to .29, an unlabelled one -.15 to .16 (mean of rounds -.03), one with
background and foreground swapped -.41 to -.27.
"""
LONGER = 3.0
"""Mean length of a site's change over the median of the others', from which it is named."""
MOST = 1e6
"""A longer change than so many times the others' counts as this: it is written as a number."""
SAMPLE = 1 << 13
"""Weights that are looked at, another part in each round: a cosine of all is met within about .01."""


class Suspicion:
    """The last rounds of every site.

    Args:
        seed: of the run; says which weights are looked at.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def look(
        self, old: Arrays, new: Mapping[str, Arrays], number: int
    ) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
        """Return cosine and relative length of each site's change, and who is suspected of what.

        Args:
            old: weights that the round began with.
            new: accepted weights by site.
            number: of the round.
        """
        if len(new) < LEAST:
            return {}, {}
        sites = sorted(new)
        changes = np.stack([_sampled(new[s], old, self.seed, number) for s in sites])
        found = dict(zip(sites, _signs(changes), strict=True))
        for site, signs in found.items():
            self._note(site, signs)
        return found, self.suspects(found)

    def suspects(self, sites: Iterable[str]) -> dict[str, str]:
        """Return why which of `sites` is named, by what was seen so far."""
        seen = {s: self._seen.get(s, ()) for s in sites}
        means = {s: np.mean(x, axis=0) for s, x in seen.items() if len(x) >= FIRST}
        out = {}
        for site, (cosine, ratio) in means.items():
            others = [float(m[0]) for s, m in means.items() if s != site]
            if cosine < AGAINST and others and float(np.median(others)) > TOGETHER:
                out[site] = (
                    f"pulls against the others (cosine {cosine:.2f}, theirs {np.median(others):.2f}): "
                    "its labels may be wrong, or its updates tampered with"
                )
            elif ratio > LONGER:
                out[site] = (
                    f"changes the weights {ratio:.3g} times as much as the others: look at its data and "
                    "settings"
                )
        return out

    def resume(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up what the lines of the rounds so far say."""
        self._seen.clear()
        for line in lines:
            for site, signs in line.get("agreement", {}).items():
                self._note(site, (float(signs[0]), float(signs[1])))

    def _note(self, site: str, signs: tuple[float, float]) -> None:
        self._seen.setdefault(site, deque(maxlen=WINDOW)).append(signs)


def _sampled(new: Arrays, old: Arrays, seed: int, number: int) -> NDArray[np.float64]:
    """Return the change of every so-manieth weight, in float64."""
    names = sorted(k for k, v in new.items() if v.dtype.kind == "f" and not k.startswith(AVERAGED))
    step = max(1, sum(new[k].size for k in names) // SAMPLE)
    at, parts = int(generator(seed, "suspicion", number).integers(step)), []
    for name in names:
        flat, before = new[name].reshape(-1), old[name].reshape(-1)
        parts.append(np.subtract(flat[at::step], before[at::step], dtype=np.float64))
        at = (at - flat.size) % step
    return np.concatenate(parts)


def _signs(changes: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return per site the cosine of its change to the median of the others', and its length over theirs.

    Args:
        changes: (sites, weights).
    """
    ordered = np.sort(changes.T).T  # along memory: sites are few, weights many
    lengths = np.linalg.norm(changes, axis=1)
    out = []
    for i, own in enumerate(changes):
        middle = _median_of_others(ordered, own)
        scale = float(lengths[i] * np.linalg.norm(middle))
        typical = float(np.median(np.delete(lengths, i)))
        cosine = float(own @ middle) / scale if scale else 0.0
        ratio = min(float(lengths[i]) / typical, MOST) if typical else 1.0
        out.append((round(cosine, 4), round(ratio, 4)))
    return out


def _median_of_others(ordered: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over all sites but one, whose values are `own`, of values sorted over all sites."""

    def other(k: int) -> NDArray[np.float64]:
        """Return the k-th lowest when `own` is taken out."""
        found: NDArray[np.float64] = np.where(own > ordered[k], ordered[k], ordered[k + 1])
        return found

    n = len(ordered) - 1
    return other(n // 2) if n % 2 else (other(n // 2 - 1) + other(n // 2)) / 2
