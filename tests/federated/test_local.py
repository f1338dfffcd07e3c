"""What of a site's training goes on from round to round, by a method that keeps more than weights."""

from __future__ import annotations

import pytest

from seguro.federated import aggregate, message
from seguro.federated.simulate import simulate
from seguro.methods.factory.config import PRESETS, FactoryConfig
from seguro.methods.factory.method import Factory

CLIP = 0.01
TINY = PRESETS["tiny"] | {"size": 8, "width": 4, "full": 4, "latent": 8}


@pytest.fixture
def turns(monkeypatch):
    """By method: (update, mean path length before it, steps of each optimiser, domains, what is logged)."""
    seen: dict[Factory, list] = {}
    update = Factory.update

    def watched(self, batch, run):
        before = (run.update, float(self.state()["path_mean"]), {n: steps(o) for n, o in run.optims.items()})
        logged = update(self, batch, run)
        seen.setdefault(self, []).append((*before, set(batch.domain.tolist()), set(logged)))
        return logged

    monkeypatch.setattr(Factory, "update", watched)
    return seen


def steps(optim) -> int:
    state = optim.optimiser.state
    return int(max((s["step"] for s in state.values()), default=0))


@pytest.mark.parametrize("optimiser", ["keep", pytest.param("reset", marks=pytest.mark.slow)])
def test_what_a_site_remembers_of_the_round_before(optimiser, sites, federation, turns, tmp_path):
    """Two rounds of six updates: three turns of each network a round, whose lazy schedule goes on."""
    config = FactoryConfig(**TINY, domains=("a", "b"), r1_every=2, path_every=3).model_dump(mode="json")
    told = federation(
        "ab",
        method="factory",
        run=f"turns-{optimiser}",
        config=config,
        updates=6,
        batch=2,
        plan={"memory_gib": 0.01, "batch": 2, "dims": 2},
        strategy={"optimiser": optimiser, "aggregate": "uniform"},
    )
    found = sites("ab")
    simulate(told, found, tmp_path / "run")
    for number, name in enumerate("ab"):
        done = turns[found[name]._training._loop.method]
        assert [d[0] for d in done] == list(range(12))
        assert all(domains == {number} for _, _, _, domains, _ in done)  # it asks for slices of itself only
        assert [d[0] for d in done if "r1" in d[4]] == [0, 4, 8]
        assert [d[0] for d in done if "path" in d[4]] == [1, 7]
        _, path, stepped, _, _ = done[6]
        assert stepped == ({"g": 3, "d": 3} if optimiser == "keep" else {"g": 0, "d": 0})
        assert (path > 0) == (optimiser == "keep")


class Watching(message.Open):
    """A gate that notes how far the weights that leave are from those that came."""

    def __init__(self) -> None:
        self.far: list[float] = []

    def admit(self, task, data) -> None:
        self.came = task.arrays

    def release(self, update, data) -> None:
        if update.action == "train":
            self.far.append(aggregate.length(aggregate.change(update.arrays, self.came)))


def test_a_private_run_leaves_a_site_clipped(sites, federation, tmp_path):
    """By the site itself, which need not trust the server that clips again."""
    for run, privacy in (("open", None), ("clipped", {"clip": CLIP, "noise": 0.0})):
        found, strategy = sites("a"), {"aggregate": "uniform", "privacy": privacy}
        found["a"].gate = gate = Watching()
        simulate(federation("a", run=run, strategy=strategy), found, tmp_path / run)
        assert len(gate.far) == 2
        assert all(far <= CLIP * 1.001 if privacy else far > 2 * CLIP for far in gate.far), run
