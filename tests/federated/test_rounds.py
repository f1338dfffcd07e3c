"""The server's rounds against sites that answer whatever a test wants: no site trains here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seguro.core.errors import RunError
from seguro.engine.model import load_model
from seguro.federated import aggregate, message, record
from seguro.federated.accountant import Accountant


def test_rounds_add_up_to_the_weighted_mean_of_the_steps(fake, server, tmp_path):
    fleet = fake(step={"a": 1.0, "b": 2.0, "c": 6.0}, weight={"a": 3.0, "b": 1.0, "c": 1.0})
    run = server(fleet, tmp_path / "run")
    run.run()
    first = next(t.arrays for _, t in fleet.seen if t.action == "train")
    by_hand = 2 * (3 * 1.0 + 2.0 + 6.0) / 5
    assert all(
        np.abs(v - first[k] - by_hand).max() < 1e-5 for k, v in run.arrays.items() if v.dtype.kind == "f"
    )
    assert load_model(tmp_path / "run").method == "supervised"


def test_uniform_is_the_plain_mean_and_trimmed_drops_the_ends(fake, server, tmp_path):
    for strategy, wanted in (({"aggregate": "uniform"}, 3.0), ({"aggregate": "trimmed"}, 2.0)):
        fleet = fake(step={"a": 1.0, "b": 2.0, "c": 6.0}, weight={"a": 3.0, "b": 1.0, "c": 1.0})
        run = server(fleet, tmp_path / strategy["aggregate"], strategy=strategy, rounds=1)
        run.run()
        first = next(t.arrays for _, t in fleet.seen if t.action == "train")
        found = np.concatenate([(v - first[k]).ravel() for k, v in run.arrays.items() if v.dtype.kind == "f"])
        assert np.abs(found - wanted).max() < 1e-5


def test_a_silent_site_is_missed_and_welcomed_back(fake, server, tmp_path):
    fleet = fake(train={"c": lambda u: None if u.round == 1 else u})
    server(fleet, tmp_path / "run").run()
    first, second = [e for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert first["took_part"] == ["a", "b"] and "no answer" in first["missing"]["c"]
    assert second["took_part"] == ["a", "b", "c"]


def test_two_updates_are_not_averaged_where_a_trimmed_mean_was_asked_for(fake, server, tmp_path):
    """Of two none can be dropped: one hostile site of three must not win by the absence of another."""
    fleet = fake(train={"b": lambda u: None})
    with pytest.raises(RunError, match="no quorum of 3"):
        server(fleet, tmp_path / "run", strategy={"aggregate": "trimmed", "retries": 0}).run()


def test_a_fraction_trains_and_the_others_are_scored(fake, server, tmp_path):
    fleet = fake(dice={n: (lambda r: 0.5) for n in "abc"})
    server(fleet, tmp_path / "run", rounds=4, strategy={"fraction": 0.34}).run()
    lines = record.lines(tmp_path / "run")[:-1]
    assert all(len(e["took_part"]) == 1 for e in lines)
    assert len({tuple(e["took_part"]) for e in lines}) > 1
    assert all(len(e["metrics"]) == 3 for e in lines[1:])
    again = server(fake(), tmp_path / "again", rounds=4, strategy={"fraction": 0.34})
    again.run()
    assert [e["took_part"] for e in record.lines(tmp_path / "again")[:-1]] == [e["took_part"] for e in lines]


def test_an_answer_after_its_time_is_named_and_not_used(fake, server, tmp_path):
    fleet = fake()
    held = []

    def slow(update):
        if update.round == 1:
            held.append(update)
            return None
        if held:
            from seguro.federated.fleet import Answer

            fleet.waiting.append(Answer(3, message.to_bytes(held.pop())))
        return update

    fleet.train["c"] = slow
    lines: list[str] = []
    run = server(fleet, tmp_path / "run", say=lines.append)
    run.run()
    second = record.lines(tmp_path / "run")[1]
    assert second["late"] == ["c"] and second["took_part"] == ["a", "b", "c"]
    assert any("site c came after its round" in line for line in lines)


def test_a_site_that_lost_its_disk_takes_the_plan_again(fake, server, tmp_path):
    """It is the same node, so nobody would ask it; it says that it knows no plan."""

    def lost(update):
        return replace(update, arrays={}, refused=f"{message.UNKNOWN_RUN} r") if update.round == 1 else update

    fleet = fake(train={"c": lost})
    server(fleet, tmp_path / "run").run()
    first, second = [e for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert first["took_part"] == ["a", "b"] and message.UNKNOWN_RUN in first["missing"]["c"]
    assert second["took_part"] == ["a", "b", "c"]
    asked = [t.action for s, t in fleet.seen if s == "c"]
    assert asked == ["join", "agree", "train", "agree", "train", "evaluate"]


def test_a_kill_before_the_weights_are_saved_leaves_no_line_and_one_after_it_no_gap(
    fake, server, tmp_path, monkeypatch
):
    """Killed as the second round is saved, the run goes on as if it had not been, line by line."""
    whole = server(fake(), tmp_path / "whole")
    whole.run()
    run = server(fake(), tmp_path / "run")
    save = run._save

    def killed() -> None:
        if run.round == 2:
            raise KeyboardInterrupt
        save()

    monkeypatch.setattr(run, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    server(fake(), tmp_path / "run").run()
    found, wanted = (
        [(e["round"], e["action"], e["sha256"]) for e in record.lines(tmp_path / name)]
        for name in ("run", "whole")
    )
    assert found == wanted


def test_one_hostile_site_of_five_moves_the_mean_and_not_the_trimmed_mean(fake, server, tmp_path):
    names, found = "abcde", {}
    for rule in ("uniform", "trimmed"):
        fleet = fake(names, step={"e": -1000.0})
        run = server(fleet, tmp_path / rule, names, rounds=1, strategy={"aggregate": rule})
        run.run()
        first = next(t.arrays for _, t in fleet.seen if t.action == "train")
        found[rule] = max(
            float(np.abs(v - first[k] - 1.0).max()) for k, v in run.arrays.items() if v.dtype.kind == "f"
        )
    assert found["trimmed"] < 1e-5 and found["uniform"] > 100


def test_a_norm_bound_limits_what_a_scaled_update_does(fake, server, tmp_path):
    fleet = fake("abcde", step={"e": -1000.0})
    run = server(fleet, tmp_path / "run", "abcde", rounds=1, strategy={"norm_bound": 1.0})
    run.run()
    first = next(t.arrays for _, t in fleet.seen if t.action == "train")
    worst = max(float(np.abs(v - first[k] - 0.6).max()) for k, v in run.arrays.items() if v.dtype.kind == "f")
    assert worst < 1e-3  # four steps of 1 and one of -1, over five
    assert (
        record.lines(tmp_path / "run")[0]["norms"]["e"]
        > 100 * record.lines(tmp_path / "run")[0]["norms"]["a"]
    )


def test_private_rounds_move_no_further_than_the_clip_and_stop_at_the_budget(fake, server, tmp_path):
    lines: list[str] = []
    private = {"clip": 0.5, "noise": 0.0}
    fleet = fake(step={"a": 100.0})
    run = server(fleet, tmp_path / "silent", rounds=1, strategy={"aggregate": "uniform", "privacy": private})
    run.run()

    first = next(t.arrays for _, t in fleet.seen if t.action == "train")
    assert aggregate.length(aggregate.change(run.arrays, first)) <= 0.5 + 1e-6
    private = {"clip": 0.5, "noise": 2.0, "budget": 8.0}
    run = server(
        fake(), tmp_path / "noisy", say=lines.append, rounds=50, noise_seed=1,
        strategy={"aggregate": "uniform", "privacy": private},
    )  # fmt: skip
    run.run()
    spent = [e["epsilon"] for e in record.lines(tmp_path / "noisy")]
    assert 0 < spent[0] < spent[-1] <= 8.0 and len(spent) < 50
    by_hand = Accountant()
    for n, found in enumerate(spent[:-1], start=1):  # the last line is a look, which spends nothing
        by_hand.add(2.0, 1.0)
        assert found == pytest.approx(by_hand.epsilon(1e-5), rel=1e-6), n
    assert any("another one would spend epsilon" in line for line in lines)
