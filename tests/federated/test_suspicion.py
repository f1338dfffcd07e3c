"""Who is named for pulling against the others, and who is not."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.data import phantom
from seguro.federated import admission, record
from seguro.federated.rounds import Server
from seguro.federated.simulate import simulate
from seguro.federated.site import Site
from seguro.federated.suspicion import LEAST, SAMPLE, Suspicion

OLD = {"w": np.zeros((40, 50), np.float32), "b": np.zeros(7, np.float32), "n": np.zeros((), np.int64)}


def round_of(**directions):
    """Updates by site: arrays all of one value."""
    return {
        site: {k: np.full_like(v, value if v.dtype.kind == "f" else 1) for k, v in OLD.items()}
        for site, value in directions.items()
    }


def test_signs_by_hand():
    """Changes in a plane: the median of the others is taken number by number."""
    ways = {"a": (1.0, 0.0), "b": (1.0, 1.0), "c": (0.0, 2.0), "d": (-3.0, 0.0)}
    new = {s: {"w": np.array(v, np.float32)} for s, v in ways.items()}
    found, named = Suspicion(0).look({"w": np.zeros(2, np.float32)}, new, 1)
    # of b, c, d: (0, 1); of a, c, d: (0, 0); of a, b, d: (1, 0); of a, b, c: (1, 1)
    root = float(np.sqrt(2))
    assert {s: x[0] for s, x in found.items()} == pytest.approx(
        {"a": 0, "b": 0, "c": 0, "d": -1 / root}, abs=1e-4
    )
    assert found["d"][1] == pytest.approx(3 / root, abs=1e-4)  # theirs are 1, root of 2 and 2 long
    assert not named  # one round says nothing yet


@pytest.mark.parametrize("n", [4, 5, 6])
def test_the_median_of_the_others_is_that_of_numpy(n):
    rng = np.random.default_rng(n)
    old = {"w": np.zeros(500, np.float32)}
    new = {f"s{i}": {"w": rng.normal(size=500).round(1).astype(np.float32)} for i in range(n)}  # with ties
    found, _ = Suspicion(0).look(old, new, 1)
    for site, arrays in new.items():
        middle = np.median([v["w"].astype(np.float64) for s, v in new.items() if s != site], axis=0)
        own = arrays["w"].astype(np.float64)
        cosine = own @ middle / np.linalg.norm(own) / np.linalg.norm(middle)
        assert found[site][0] == pytest.approx(cosine, abs=1e-4)


def test_a_part_of_the_weights_stands_for_all():
    rng = np.random.default_rng(0)
    common = rng.normal(size=20 * SAMPLE)
    old = {"w": np.zeros(20 * SAMPLE, np.float32)}
    new = {s: {"w": (common + rng.normal(size=common.size)).astype(np.float32)} for s in "abcde"}
    look = Suspicion(0)
    rounds = [look.look(old, new, r)[0]["a"][0] for r in range(1, 5)]
    assert len(set(rounds)) > 1 and np.ptp(rounds) < 0.05  # another part in each round
    assert Suspicion(0).look(old, new, 1)[0]["a"][0] == rounds[0]


def test_who_pulls_against_the_others_is_named_after_two_rounds_and_no_other():
    look = Suspicion(0)
    assert look.look(OLD, round_of(a=1.0, b=1.1, c=0.9, d=1.0, e=-1.0), 1)[1] == {}
    found, named = look.look(OLD, round_of(a=1.0, b=1.1, c=0.9, d=1.0, e=-1.0), 2)
    assert list(named) == ["e"] and "pulls against the others (cosine -1.00, theirs 1.00)" in named["e"]
    assert found["a"] == (1.0, 1.0)


def test_who_changes_far_more_than_the_others_is_named():
    look = Suspicion(0)
    for number in (1, 2):
        _, named = look.look(OLD, round_of(a=1.0, b=1.1, c=0.9, d=1.0, e=50.0), number)
    assert list(named) == ["e"] and "50 times as much" in named["e"]


def test_nobody_is_named_where_the_others_do_not_agree_either():
    rng = np.random.default_rng(1)
    look = Suspicion(0)
    for number in range(1, 6):
        new = {s: {k: rng.normal(size=v.shape).astype(v.dtype) for k, v in OLD.items()} for s in "abcd"}
        new["e"] = {k: -sum(new[s][k] for s in "abcd") for k in OLD}
        _, named = look.look(OLD, new, number)
        assert "e" not in named or "pulls" not in named["e"]


def test_three_sites_say_nothing_of_each_other():
    assert LEAST == 4
    assert Suspicion(0).look(OLD, round_of(a=1.0, b=1.0, c=-1.0), 1) == ({}, {})


def test_sites_that_did_not_move_are_no_suspects():
    look = Suspicion(0)
    for number in (1, 2):
        found, named = look.look(OLD, round_of(a=0.0, b=0.0, c=0.0, d=0.0), number)
    assert found["a"] == (0.0, 1.0) and named == {}


def test_the_server_says_it_once_counts_the_site_and_knows_it_after_a_restart(
    fake, federation, tmp_path, monkeypatch
):
    monkeypatch.setattr(admission, "POLL_S", 0.001)

    class Killed(BaseException):
        pass

    def die(update):
        raise Killed

    told, lines = {"rounds": 5, "strategy": {"timeout_s": 0.05}}, []
    fleet = fake("abcde", step={"e": -1.0})
    fleet.train["a"] = lambda u: die(u) if u.round == 4 else u
    with pytest.raises(Killed):
        Server(federation("abcde", **told), tmp_path / "run", fleet, lines.append).run()
    warned = [line for line in lines if line.startswith("warning")]
    assert len(warned) == 1 and "round 2: site e pulls against" in warned[0]
    Server(federation("abcde", **told), tmp_path / "run", fake("abcde", step={"e": -1.0}), lines.append).run()
    assert [line for line in lines if line.startswith("warning")] == warned
    done = [e for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert [sorted(e["suspects"]) for e in done] == [[], ["e"], ["e"], ["e"], ["e"]]
    assert all("e" in e["took_part"] for e in done)
    assert done[3]["agreement"]["e"] == [-1.0, 1.0]


def _hospitals(root, *, flipped: bool) -> dict[str, Site]:
    """Five sites of phantoms: c has inverted contrast, d no label; e may take background for foreground."""
    import nibabel as nib

    sites = {}
    for k, name in enumerate("abcde"):
        folder = phantom.write_msd(root / name, n_labelled=3, n_test=0, seed=k)
        if name == "c":
            for path in (folder / "imagesTr").glob("*.nii.gz"):
                image = nib.load(path)
                values = np.asarray(image.dataobj, np.float32)
                nib.save(nib.Nifti1Image(values.max() + values.min() - values, image.affine), path)
        if name == "e" and flipped:
            for path in (folder / "labelsTr").glob("*.nii.gz"):
                label = nib.load(path)
                wrong = np.array([1, 0, 0], np.uint8)[np.asarray(label.dataobj).astype(int)]
                nib.save(nib.Nifti1Image(wrong, label.affine), path)
        sites[name] = Site(name, folder, root / f"work-{name}")
    bare = sites["d"].manifest()
    cases = [
        c.model_copy(update={"label": None, "masks": (), "annotated": (), "split": "unlabelled"})
        for c in bare.cases
    ]
    sites["d"]._manifest = bare.model_copy(update={"cases": tuple(cases), "classes": None})
    return sites


@pytest.mark.slow
@pytest.mark.parametrize("flipped", [False, True], ids=["honest", "flipped"])
def test_a_site_with_wrong_labels_is_named_and_odd_but_honest_ones_are_not(flipped, federation, tmp_path):
    """Real training by ROAM, which takes the unlabelled site along."""
    lines: list[str] = []
    told = federation(
        "abcde", method="roam", rounds=4, updates=8, strategy={"evaluate_every": 4, "aggregate": "trimmed"}
    )
    simulate(told, _hospitals(tmp_path, flipped=flipped), tmp_path / "run", say=lines.append)
    done = [e for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert all(e["took_part"] == list("abcde") for e in done)
    named = {site for e in done for site in e["suspects"]}
    assert named == ({"e"} if flipped else set()), [e["agreement"] for e in done]
    assert any("site e pulls against the others" in line for line in lines) == flipped


def test_agreement_survives_a_file_that_was_written_before_it_was_known():
    look = Suspicion(0)
    look.resume([{"round": 1}, {"round": 2, "agreement": {"a": [0.5, 1.0]}}])
    assert look.suspects(["a", "b"]) == {}
