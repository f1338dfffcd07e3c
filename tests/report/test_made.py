"""What a generating run shows on its page: its last pictures, its scores, its audit."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.core.files import write_bytes, write_json, write_text
from seguro.inference.previews import grid
from seguro.report.gather import gather, reproducible
from seguro.report.page import render


@pytest.fixture
def factory(tmp_path):
    """A run of a factory of two sites, looked at twice."""
    run = tmp_path / "w.seguro" / "runs" / "factory"
    rng = np.random.default_rng(0)
    for site in ("a", "b"):
        for update in (0, 20):
            images = rng.uniform(-1, 1, (8, 1, 4, 4)).astype(np.float32)
            write_bytes(run / "previews" / site / f"{update:08d}.png", grid(images))
    looks = [
        {"kind": "validation", "update": u, "distance.a": 2 - u / 20, "distance.b": 1.0, "recognized": u / 20}
        for u in (0, 20)
    ]
    write_text(run / "log.jsonl", "".join(json.dumps(x) + "\n" for x in looks))
    passed = {
        "ratio": 1.25,
        "passed": True,
        "n_made": 8,
        "n_held_out": 5,
        "n_train": 9,
        "made": 1.0,
        "held_out": 0.8,
    }
    failed = {"passed": False, "reason": "no held-out slice to compare with"}
    write_json(
        run / "audit.json", {"releasable": False, "needed_ratio": 0.9, "domains": {"a": passed, "b": failed}}
    )
    return run


def test_the_last_picture_of_every_domain_is_on_the_page(factory, read):
    content = gather(factory, read)
    assert [p.name for p in content.made.pictures] == ["a, 20", "b, 20"]
    assert {(p.width, p.height) for p in content.made.pictures} == {(32, 4)}
    page = render(content)
    last = (factory / "previews" / "b" / "00000020.png").read_bytes()
    assert base64.b64encode(last).decode() in page
    assert base64.b64encode((factory / "previews" / "b" / "00000000.png").read_bytes()).decode() not in page


def test_what_can_have_no_scores_asks_for_none(factory, read):
    content = gather(factory, read)
    page = render(content)
    assert content.only_makes and not any("predict" in x for x in (*content.missing, *content.commands))
    assert "segments none; seguro adapt" in page and "Made slices" in page
    empty = ("no scores yet", "Mean Dice", 'id="scores"', 'id="cases"', "logged for: Validation Dice")
    assert not [x for x in empty if x in page]
    write_json(factory / "predictions" / "test" / "predictions.json", {"cases": {}, "n": 0})
    assert not gather(factory, read).only_makes


def test_distances_and_recognition_are_curves(factory, read):
    made = gather(factory, read).made
    assert {s.name: s.points[-1] for s in made.distance} == {"a": (20.0, 1.0), "b": (20.0, 1.0)}
    assert [s.points for s in made.recognized] == [((0.0, 0.0), (20.0, 1.0))]


def test_those_of_a_federation_are_curves_over_rounds(factory, read):
    """A federated run has no log of updates: its sites' numbers stand in the lines of the rounds."""
    (factory / "log.jsonl").unlink()
    write_json(factory / "federation.json", {"run": "r", "sites": ["a", "b"], "rounds": 2})
    told = {"a": {"made.distance": 2.0, "made.recognized": 0.5}, "b": {"made.distance": 1.0}}
    lines = [
        {"round": n, "of_round": n - 1, "took_part": ["a", "b"], "metrics": told if n > 1 else {}}
        for n in (1, 2, 3)
    ]
    write_text(factory / "rounds.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    content = gather(factory, read)
    assert {s.name: s.points for s in content.made.distance} == {
        "a": ((1.0, 2.0), (2.0, 2.0)), "b": ((1.0, 1.0), (2.0, 1.0)),
    }  # fmt: skip
    assert [s.points for s in content.made.recognized] == [((1.0, 0.5), (2.0, 0.5))]
    page = render(content)
    assert content.made.axis == "round" and "Distance to real slices" in page


def test_the_audit_is_said_and_what_is_not_releasable_is_warned_of(factory, read):
    page = render(gather(factory, read))
    assert "no held-out slice to compare with" in page and "1.25" in page
    assert "should leave this site" in page
    facts = json.loads((factory / "audit.json").read_text())
    write_json(factory / "audit.json", facts | {"releasable": True})
    assert "should leave this site" not in render(gather(factory, read))


def test_pictures_stand_as_hashes_in_what_must_be_the_same(factory, read):
    facts = reproducible(gather(factory, read))
    assert all(len(p["sha256"]) == 64 and "data" not in p for p in facts["made"]["pictures"])


def test_runs_that_make_nothing_have_no_such_section(run, read):
    page = gather(run, read)
    assert page.made is None
    assert 'id="made"' not in render(page)


@pytest.mark.parametrize("damage", ["picture", "audit"])
def test_damage_is_named(factory, read, damage):
    if damage == "picture":
        write_bytes(factory / "previews" / "a" / "00000020.png", b"x" * 40)
    else:
        write_json(factory / "audit.json", {"domains": {"a": 3}})
    with pytest.raises(DataError, match=r"no PNG|damaged"):
        gather(factory, read)


def test_the_sets_that_were_made_with_a_model_are_listed_with_their_audit(factory, read):
    told = {"domain": "a", "volumes": 5, "beside": 2, "releasable": False, "audit": {"reason": "1.10 times"}}
    write_json(factory / "generated" / "both.json", told)
    content = gather(factory, read)
    (found,) = content.made.sets
    assert (found.name, found.volumes, found.beside, found.releasable) == ("both", 5, 2, False)
    page = render(content)
    assert "Sets of made volumes" in page and "1.10 times" in page
    write_json(factory / "generated" / "torn.json", {"domain": "a"})
    with pytest.raises(DataError, match=r"torn\.json: damaged"):
        gather(factory, read)
