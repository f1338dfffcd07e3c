"""Federation against a site that learns the wrong thing on purpose, and against one that has next to nothing.

Rows 36 and 37 of the list of faults; silent, broken and unknown sites are in tests/federated (test_rounds,
test_grid, test_proxy, test_killed).
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")

from seguro.data import phantom
from seguro.engine.model import load_model
from seguro.federated import aggregate, message, record
from seguro.federated.message import Open
from seguro.federated.simulate import simulate
from seguro.federated.site import Site
from seguro.federated.strategies import Federation
from seguro.methods import get

HOSTILE = "e"


def federation(sites, **more) -> Federation:
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"]).model_dump(mode="json")
    told = {"run": "r", "rounds": 1, "updates": 6, "plan": {"memory_gib": 0.01, "batch": 2}, **more}
    return Federation(method="supervised", preset="tiny", config=config, sites=sorted(sites), **told)


class Kept(Open):
    """Keeps the weights that came in and those that left."""

    def admit(self, task, data):
        if task.action == "train":
            self.old = task.arrays

    def release(self, update, data):
        if update.action == "train":
            self.new = message.update_from(data).arrays


@pytest.fixture(scope="module")
def round_one(tmp_path_factory):
    """Weights before a round, and the changes of four honest sites and of one whose organs are swapped."""
    root = tmp_path_factory.mktemp("hostile")
    sites = {}
    for k, name in enumerate("abcde"):
        data = phantom.write_msd(root / name, n_labelled=2, n_test=0, seed=k)
        if name == HOSTILE:
            for path in (data / "labelsTr").glob("*.nii.gz"):
                image = nib.load(path)
                swapped = np.array([0, 2, 1], np.uint8)[np.asarray(image.dataobj).astype(np.uint8)]
                nib.save(nib.Nifti1Image(swapped, image.affine, image.header), path)
        sites[name] = Site(name, data, root / f"w-{name}", gate=Kept())
    simulate(federation(sites), sites, root / "run")
    old = sites["a"].gate.old
    return old, {n: aggregate.change(s.gate.new, old) for n, s in sites.items()}


def shift(found, honest) -> float:
    """Distance of a mean change from that of the honest sites, in lengths of that one."""
    return aggregate.distance(found, honest) / aggregate.length(honest)


def test_swapped_labels_look_like_any_other_update(round_one):
    """Which is why no check of a single update finds them, and the mean itself must be robust."""
    _, changes = round_one
    lengths = {n: aggregate.length(c) for n, c in changes.items()}
    honest = [lengths[n] for n in "abcd"]
    assert min(honest) / 2 < lengths[HOSTILE] < 2 * max(honest)


@pytest.mark.parametrize("scale", [1.0, -1.0, 100.0], ids=["flipped", "and-negative", "and-scaled"])
def test_one_flipped_site_of_five_moves_a_trimmed_mean_by_so_much_and_no_more(round_one, scale):
    """As it is, it moves the plain mean no further either; made larger or negative, it does."""
    _, changes = round_one
    four = [changes[n] for n in "abcd"]
    poison = {k: (v * v.dtype.type(scale)) if v.dtype.kind == "f" else v for k, v in changes[HOSTILE].items()}
    honest = aggregate.mean(four, [1.0] * 4)
    plain = aggregate.mean([*four, poison], [1.0] * 5)
    trimmed = aggregate.trimmed([*four, poison], 0.2)
    for name, value in trimmed.items():
        low, high = (f([c[name] for c in four], axis=0) for f in (np.min, np.max))
        assert ((value >= low) & (value <= high)).all(), name  # no number leaves what honest sites say
    assert shift(trimmed, honest) < 0.5
    if scale != 1.0:
        assert shift(trimmed, honest) < shift(plain, honest)
    if scale == 100.0:
        bounded = aggregate.mean(aggregate.bounded([*four, poison], 1.0), [1.0] * 5)
        assert shift(bounded, honest) < 0.5 < 10 < shift(plain, honest)


def test_one_site_with_one_case_is_a_federation(tmp_path):
    data = phantom.write_msd(tmp_path / "a", n_labelled=1, n_test=0, seed=1)
    sites = {"a": Site("a", data, tmp_path / "w")}
    simulate(federation("a", updates=1, strategy={"norm_bound": 1.0}), sites, tmp_path / "run")
    train, scores = record.lines(tmp_path / "run")
    assert train["took_part"] == ["a"] and scores["score"] is not None
    assert load_model(tmp_path / "run").method == "supervised"
