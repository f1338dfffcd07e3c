"""What leaves a site in a run: weights and listed numbers; no voxel, no mask, no name, no path.

The run takes seconds; test_simulate has a quick one over all messages.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")

from seguro.api.federation import FederateOptions, federation
from seguro.data import phantom
from seguro.federated.audit import Audit, verify
from seguro.federated.exchange import outgoing
from seguro.federated.message import METRICS, Task, Update, payload_bytes, to_bytes, update_from
from seguro.federated.policy import Guarded, Policy
from seguro.federated.simulate import simulate
from seguro.federated.site import Site

ROUNDS = 2


class Captured(Guarded):
    """A gate that also keeps what leaves."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Policy(), Audit(folder / "audit.jsonl"))
        self.sent: list[bytes] = []

    def release(self, update: Update, data: bytes) -> None:
        super().release(update, data)
        self.sent.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sites, their captured messages and the run's folder; patients have names that can be found again."""
    base = tmp_path_factory.mktemp("leaks")
    sites = {}
    for k, name in enumerate(("north", "south")):
        data = phantom.write_msd(base / f"Klinik-{name}", n_labelled=2, n_test=0, seed=k)
        for folder in ("imagesTr", "labelsTr"):
            for path in sorted((data / folder).glob("*.nii.gz")):
                path.rename(path.with_name(f"Mustermann-{k}-{path.name}"))
        if (data / "dataset.json").exists():
            text = (data / "dataset.json").read_text().replace("Tr/", f"Tr/Mustermann-{k}-")
            (data / "dataset.json").write_text(text)
        sites[name] = Site(
            name, data, base / f"work-{name}", gate=Captured(base / f"work-{name}" / "federated")
        )
    options = FederateOptions(
        preset="tiny", rounds=ROUNDS, updates=2, batch=2, name="leaks", plan={"memory_gib": 0.05}
    )
    folder = simulate(federation(options, list(sites)), sites, base / "server")
    return sites, folder


def images(site: Site):
    """Yield the site's images and labels, as they lie on the disk and as training reads them."""
    for path in sorted(site.data.glob("*Tr/*.nii.gz")):
        volume = np.asarray(nib.load(path).dataobj)
        yield "labels" in str(path), volume
    for path in sorted((site.workspace / "store").rglob("*.npy")):
        stored = np.load(path)
        yield "label" in path.name, stored.reshape(stored.shape[-3:]) if stored.ndim > 3 else stored


@pytest.mark.slow
def test_no_row_of_an_image_or_a_mask_leaves(run, pixels):
    sites, _ = run
    looked = 0
    for site in sites.values():
        sent = b"".join(site.gate.sent)
        for is_label, volume in images(site):
            kinds = (
                (np.uint8, np.int16, np.int64, np.float32) if is_label else (np.uint8, np.int16, np.float32)
            )
            for kind in kinds:
                with np.errstate(invalid="ignore"):
                    runs = pixels.pieces(volume.astype(kind))
                if len(runs):
                    looked += len(runs)
                    assert not pixels.holds(sent, runs), (site.name, kind)
    assert looked > 5_000


@pytest.mark.slow
def test_a_row_that_does_leave_is_found(run, pixels):
    sites, _ = run
    site = sites["north"]
    volume = next(v for is_label, v in images(site) if not is_label).astype(np.float32)
    row = np.ascontiguousarray(volume[0, 0] if volume.shape[-1] >= pixels.run else volume[:, 0, 0])
    assert np.ptp(row[: pixels.run]) > 0
    leak = to_bytes(Update("leaks", "north", 1, "train", {"w": row}))
    assert pixels.holds(b"xyz" + leak, pixels.pieces(volume))


@pytest.mark.slow
def test_only_the_arrays_of_the_model_leave(run):
    sites, folder = run
    model = json.loads((folder / "federation.json").read_text())["arrays_bytes"]
    for site in sites.values():
        training = site._training
        expected = outgoing(training._loop.method, training._loop.run.averaged)
        updates = [update_from(data) for data in site.gate.sent]
        trained = [u for u in updates if u.action == "train"]
        assert len(trained) == ROUNDS
        for update in trained:
            assert {k: v.shape for k, v in update.arrays.items()} == {k: v.shape for k, v in expected.items()}
        assert all(not u.arrays for u in updates if u.action != "train")
        assert model == payload_bytes(expected)
        assert sum(map(len, site.gate.sent)) < ROUNDS * model + 20_000


@pytest.mark.slow
def test_only_numbers_on_the_list_leave(run):
    sites, _ = run
    names = {n for site in sites.values() for data in site.gate.sent for n in update_from(data).metrics}
    assert names and all(n in METRICS or n.startswith("dice.") for n in names)
    assert {"loss", "n_cases"} <= names


@pytest.mark.slow
def test_no_name_and_no_path_is_anywhere_but_at_its_site(run, tmp_path):
    sites, folder = run
    words = {b"Mustermann", b"Klinik", b".nii", str(folder.parent).encode()}
    for site in sites.values():
        words |= {c.id.encode() for c in site.manifest().cases} | {
            c.patient.encode() for c in site.manifest().cases
        }
    texts = [data for site in sites.values() for data in site.gate.sent]
    texts += [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    texts += [site.gate.audit.path.read_bytes() for site in sites.values()]
    for word in words:
        assert not any(word in text for text in texts), word
    assert any(
        b"Mustermann" in p.read_bytes() for p in folder.parent.rglob("manifest.json")
    )  # it could be found


@pytest.mark.slow
def test_the_audit_log_has_every_message_with_its_hash(run):
    import hashlib

    for site in run[0].values():
        lines = list(verify(site.gate.audit.path))
        out = [line for line in lines if line["direction"] == "out"]
        assert [x["sha256"] for x in out] == [hashlib.sha256(d).hexdigest() for d in site.gate.sent]
        assert [x["bytes"] for x in out] == [len(d) for d in site.gate.sent]
        assert len(lines) == 2 * len(out)
        first = next(x for x in out if x["action"] == "train")
        assert len(first["arrays"]) == len(update_from(site.gate.sent[lines.index(first) // 2]).arrays)


@pytest.mark.slow
def test_a_policy_stops_a_run_before_its_first_round(run, tmp_path):
    site = run[0]["north"]
    strict = Site(
        "north",
        site.data,
        tmp_path / "w",
        gate=Guarded(Policy(methods=["roam"]), Audit(tmp_path / "audit.jsonl")),
    )
    options = FederateOptions(preset="tiny", rounds=1, updates=1, name="no", plan={"memory_gib": 0.05})
    from seguro.core.errors import RunError

    with pytest.raises(RunError, match=r"north.*method supervised is not allowed here, only roam"):
        simulate(federation(options, ["north"]), {"north": strict}, tmp_path / "server")
    assert not list(tmp_path.glob("w/federated/no/*"))


@pytest.mark.parametrize("run_name", ["../../outside", "/etc", "a/b", "", ".hidden", "x" * 65])
def test_a_run_cannot_be_named_to_write_elsewhere(sites, run_name):
    from seguro.core.errors import DataError

    with pytest.raises(DataError, match="whose name is none"):
        sites("a")["a"].answer(to_bytes(Task(run_name, 0, "join")))


@pytest.mark.slow
def test_what_a_site_refuses_to_send_is_told_and_noted(run, tmp_path):
    site = run[0]["north"]
    quiet = Site(
        "north",
        site.data,
        tmp_path / "w",
        gate=Guarded(Policy(may_leave=["weights"]), Audit(tmp_path / "a.jsonl")),
    )
    told = update_from(quiet.answer(to_bytes(Task("r", 0, "join"))))
    assert told.refused == "the policy of this site: facts may not leave this site" and not told.facts
    refused, left = list(verify(tmp_path / "a.jsonl"))[1:]
    assert refused["refused"] and refused["facts"] and not left["refused"] and not left["facts"]
