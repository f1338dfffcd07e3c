"""The page about sites: sums that are known, every state of the map, files that are damaged or hostile."""

import json
import math
import re

import pytest

from seguro.core.errors import DataError
from seguro.report.federation import MARKS, megabytes
from seguro.report.page import Headline, ReportContent, render
from seguro.report.sites import MOST_EVENTS, MOST_ROUNDS, federated

OPTIONS = {
    "run": "liver", "method": "supervised", "sites": ["west", "north", "south"], "rounds": 3, "updates": 50,
    "noise_seed": None,
    "strategy": {
        "aggregate": "uniform", "coding": "int8",
        "privacy": {"clip": 1.0, "noise": 1.5, "delta": 1e-5, "budget": 8.0},
    },
}  # fmt: skip
FINISHED = {"round": 1, "epsilon": 6.0}


def line(number: int, **more) -> dict:
    base = {
        "round": number, "of_round": number - 1, "seconds": 30.0, "took_part": ["north", "south"],
        "missing": {"west": "not drawn"}, "rejected": {}, "late": [],
        "bytes_up": {"north": 1_000_000, "south": 500_000}, "bytes_down": {"north": 2_000_000},
        "metrics": {
            "north": {"loss": 1 / number, "dice": 0.8, "n_cases": 9, "n_labelled": 4, "seconds": 10.0},
            "south": {"loss": 2 / number, "dice": 0.6, "n_cases": 5, "n_labelled": 5, "seconds": 12.0},
        },
        "best_round": 1, "epsilon": 2.0 * number,
    }  # fmt: skip
    return base | more


def written(folder, lines, options=OPTIONS, finished=FINISHED):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.json").write_text(json.dumps(options))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if finished:
        (folder / "finished.json").write_text(json.dumps(finished))
    return folder


def test_sums_and_the_worst_site_first(tmp_path):
    found = federated(written(tmp_path, [line(1), line(2), line(3)]))
    assert [s.name for s in found.sites] == ["south", "north", "west"]  # no score comes last
    south, north, west = found.sites
    assert (south.dice, north.dice, west.dice) == (0.6, 0.8, None)
    assert (north.sent, north.received, north.trained, north.seconds) == (3_000_000, 6_000_000, 3, 30.0)
    assert (north.n_cases, north.n_labelled, west.n_cases, west.trained) == (9, 4, None, 0)
    assert found.gap == pytest.approx(0.2)
    facts = dict(found.facts)
    assert facts["Rounds"] == "3 of 3" and facts["Deployed"] == "round 1"
    assert facts["From the sites"] == "4.5 MB" and facts["Time"] == "1.5 min"
    assert facts["Privacy spent"].startswith("ε 6 at δ 1e-05") and facts["Budget"] == "ε 8"
    assert facts["Updates sent as"] == "int8"


def test_dice_is_that_of_the_deployed_round(tmp_path):
    other = line(2)["metrics"] | {"north": {"dice": 0.3}}
    lines = [line(1), line(2, metrics=other), line(3)]
    found = federated(written(tmp_path, lines))
    assert next(s for s in found.sites if s.name == "north").dice == 0.3  # scores of round 1 stand in line 2


def test_curves_are_where_the_weights_are(tmp_path):
    found = federated(written(tmp_path, [line(1), line(2), line(3)]))
    north = next(s for s in found.dice if s.name == "north")
    assert [x for x, _ in north.points] == [0, 1, 2]
    assert [(x, y) for x, y in next(s for s in found.loss if s.name == "north").points] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)),
    ]  # fmt: skip
    up, down = found.traffic
    assert up.points[-1] == (3.0, 4.5) and down.points[-1] == (3.0, 6.0)
    assert found.epsilon[0].points[-1] == (3.0, 6.0)
    assert [s.color for s in found.dice] == [0, 1]  # a site keeps its color in every figure
    assert [s.color for s in found.loss] == [0, 1]


def test_a_site_that_has_nothing_to_learn_from_is_no_event(tmp_path):
    """It is asked for nothing in every round; events are few, and what is wrong must be among them."""
    bare = "no labelled case there, and method supervised learns from no other"
    found = federated(written(tmp_path, [line(n, missing={"west": bare}) for n in (1, 2, 3)]))
    rows = {row.site: row.states for row in found.attendance}
    assert rows["west"] == ("unasked",) * 3 and not found.events


def test_every_state_of_the_map(tmp_path):
    lines = [
        line(1),
        line(2, took_part=["north"], missing={"west": "no answer within 60 s"}, rejected={"south": "NaN"}),
        line(3, took_part=["north"], missing={}, late=["west"]),
    ]
    found = federated(written(tmp_path, lines))
    rows = {row.site: row.states for row in found.attendance}
    assert rows["north"] == ("trained",) * 3
    assert rows["south"] == ("trained", "refused", "scored")
    assert rows["west"] == ("unasked", "absent", "late")
    assert {s for states in rows.values() for s in states} == set(MARKS)
    assert found.events == (
        "Round 2, south: NaN",
        "Round 2, west: no answer within 60 s",
        "Round 3, west: came too late, not used",
    )
    assert any("No update of west is in the model" in c for c in found.caveats)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"noise": 0.0}, "epsilon is infinite"), ({}, "Epsilon is of the weights")],
    ids=["no noise", "noise"],
)
def test_privacy_is_not_claimed_beyond_what_it_is(tmp_path, change, said):
    strategy = OPTIONS["strategy"] | {"privacy": OPTIONS["strategy"]["privacy"] | change}
    found = federated(written(tmp_path, [line(1)], OPTIONS | {"strategy": strategy}))
    assert any(said in c for c in found.caveats)


def test_noise_from_a_seed_and_an_unfinished_run_are_said(tmp_path):
    found = federated(written(tmp_path, [line(1)], OPTIONS | {"noise_seed": 0}, finished=None))
    assert any("from a seed" in c for c in found.caveats)
    assert any("has not ended" in c for c in found.caveats)
    assert dict(found.facts)["Deployed"] == "round 1"


def test_a_run_that_is_not_federated_has_no_such_part(tmp_path):
    assert federated(tmp_path) is None
    assert 'id="federation"' not in render(ReportContent(Headline("d", "m", "n", "s")))


def test_before_the_first_round_the_page_is_whole(tmp_path):
    found = federated(written(tmp_path, [], finished=None))
    page = render(ReportContent(Headline("d", "m", "n", "s"), federation=found))
    assert 'id="federation"' in page and "Who took part" not in page


def test_torn_and_repeated_lines(tmp_path):
    written(tmp_path, [line(1), line(2), line(2, took_part=["north"])])
    with (tmp_path / "rounds.jsonl").open("a") as stream:
        stream.write('{"round": 3, "took')
    found = federated(tmp_path)
    assert found.rounds == (1, 2)
    assert next(s for s in found.sites if s.name == "south").trained == 1  # after a resume the last counts
    (tmp_path / "federation.json").write_text("{")
    with pytest.raises(DataError):
        federated(tmp_path)


@pytest.mark.parametrize(
    "more", [{"metrics": []}, {"bytes_up": 3}, {"metrics": {"north": 1}}, {"seconds": "x"}, {"missing": 1}]
)
def test_lines_of_another_form_are_a_fault_of_the_data(tmp_path, more):
    with pytest.raises(DataError, match="is damaged"):
        federated(written(tmp_path, [line(1, **more)]))


def test_values_that_are_not_finite_are_not_drawn(tmp_path):
    bad = {"north": {"loss": math.nan, "dice": math.inf}}
    found = federated(written(tmp_path, [line(1, metrics=bad)]))
    assert found.dice == () and found.loss == ()


def test_long_runs_stay_a_page(tmp_path):
    lines = [line(n, rejected={"west": "NaN"}) for n in range(1, 201)]
    found = federated(written(tmp_path, lines))
    assert found.rounds == tuple(range(201 - MOST_ROUNDS, 201))
    assert len(found.events) == MOST_EVENTS + 1 and "160 more" in found.events[-1]


def test_the_whole_page_escapes_sites_and_hides_folders(tmp_path):
    run = tmp_path / "liver.seguro" / "runs" / "fed"
    evil = "<script>alert(1)</script>"
    options = OPTIONS | {"sites": ["north", "south", evil], "run": evil}
    written(run, [line(1, rejected={evil: f"damaged file {tmp_path}/patients/Meier.nii.gz {evil}"})], options)
    content = ReportContent(Headline("d", "m", "n", "s"), federation=federated(run, [str(tmp_path)]))
    page = render(content)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert str(tmp_path) not in page
    assert re.search(r'href="#federation"', page)


@pytest.mark.parametrize(
    ("n", "text"),
    [(999, "1.0 kB"), (100_000, "0.1 MB"), (2_340_000, "2.3 MB"), (568_000_000_000, "568000 MB")],
)
def test_bytes_for_people(n, text):
    assert megabytes(n) == text


SUSPECT = "pulls against the others (cosine -0.35, theirs 0.50): its labels may be wrong"


def test_a_site_that_pulls_against_the_others_is_named_with_its_last_round(tmp_path):
    agreed = {"north": [0.5, 1.0], "south": [-0.35, 1.2]}
    lines = [line(n, agreement=agreed, suspects={"south": SUSPECT} if n > 1 else {}) for n in (1, 2, 3)]
    found = federated(written(tmp_path / "run", lines))
    assert [(s.name, s.points[-1]) for s in found.agreement] == [
        ("north", (3.0, 0.5)),
        ("south", (3.0, -0.35)),
    ]
    (said,) = [c for c in found.caveats if "south" in c and "Look at" in c]
    assert "in round 3 it pulls against the others (cosine -0.35" in said and "named in 2 rounds" in said
    before = federated(written(tmp_path / "before", [line(1)]))
    assert before.agreement == () and not [c for c in before.caveats if "Look at" in c]


def test_sections_that_a_federated_run_cannot_have_are_left_out(tmp_path):
    found = federated(written(tmp_path / "run", [line(n) for n in (1, 2)]))
    head = Headline("d", "m", "n", "s")
    page, plain = (render(ReportContent(headline=head, unit="mm", federation=f)) for f in (found, None))
    for section in ("learning", "distributions", "cases", "excluded"):
        assert f'id="{section}"' not in page and f'href="#{section}"' not in page
        assert f'id="{section}"' in plain
    assert 'id="federation"' in page and 'id="scores"' in page
