"""Which round is best, and when scores are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.files import read_json
from seguro.engine import checkpoint
from seguro.engine.model import load_model
from seguro.federated import message, record
from seguro.federated.record import Round
from seguro.federated.scores import Scores

SCORES = {"a": lambda r: [0.0, 0.9, 0.2, 0.6][r], "b": lambda r: [0.0, 0.1, 0.5, 0.4][r]}


@pytest.mark.parametrize(("best", "chosen"), [("mean", 1), ("worst", 3), ("last", 3)])
def test_the_best_round_is_found_without_central_data(best, chosen, fake, server, tmp_path):
    """Means of rounds 1 to 3: .5, .35, .5; of the worst site .1, .2, .4."""
    run = server(fake("ab", dice=SCORES), tmp_path / "run", "ab", rounds=3, strategy={"best": best})
    run.run()
    lines = record.lines(tmp_path / "run")
    assert [e["of_round"] for e in lines] == [0, 1, 2, 3] and lines[-1]["action"] == "evaluate"
    assert [e["worst"] for e in lines] == [None, "b", "a", "b"]
    assert read_json(tmp_path / "run" / "finished.json")["round"] == chosen
    weights = load_model(tmp_path / "run").predictor.state_dict()
    saved = checkpoint.load(tmp_path / "run" / "checkpoints", chosen).tensors
    name = next(k for k in weights if k.endswith("weight"))
    assert np.array_equal(weights[name].numpy(), saved[message.AVERAGED + name].numpy())


def test_sites_that_keep_their_counts_to_themselves_still_choose_the_round():
    """Each counts as one case; with counts of zero every mean would be zero and the first round the best."""
    scores = Scores("mean")
    for of_round, dice in ((1, 0.2), (2, 0.7), (3, 0.4)):
        told = Round(of_round + 1, "train", of_round)
        told.updates = {
            s: message.Update("r", s, of_round + 1, "train", metrics={"dice": dice}) for s in "ab"
        }
        scores.take(told)
    assert scores.best_round == 2 and scores.best == 0.7


def test_a_round_is_not_best_because_the_weakest_site_missed_it(fake, server, tmp_path):
    """In round 3 site b is away and counts with the .1 that it told in round 2; a alone would be at 1."""
    told = {"a": [0.0, 0.9, 1.0, 0.6], "b": [0.0, 0.1, 0.0, 0.3]}
    fleet = fake("ab", dice={s: (lambda r, s=s: told[s][r]) for s in "ab"})
    fleet.train["b"] = lambda u: None if u.round == 3 else u
    run = server(fleet, tmp_path / "run", "ab", rounds=3, strategy={"best": "worst"})
    run.run()
    lines = record.lines(tmp_path / "run")
    assert [e["score"] for e in lines] == [None, 0.1, 0.1, 0.3]
    assert lines[2]["worst"] == "b" and run.scores.best_round == 3
    from seguro.engine import checkpoint as checkpoints

    facts = checkpoints.load(tmp_path / "run" / "checkpoints", 3).facts
    assert facts["scores"] == {"a": [0.6, 1.0], "b": [0.3, 1.0]}  # they survive the server


def test_scores_are_asked_for_only_when_due(fake, server, tmp_path):
    fleet = fake("ab", dice=SCORES)
    server(fleet, tmp_path / "run", "ab", rounds=3, strategy={"evaluate_every": 2}).run()
    asked = {t.round: t.config["evaluate"] for _, t in fleet.seen if t.action in ("train", "evaluate")}
    assert asked == {1: False, 2: False, 3: True, 4: True}
