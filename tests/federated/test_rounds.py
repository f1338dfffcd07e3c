"""The server's rounds against sites that answer whatever a test wants: no site trains here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError, RunError
from seguro.engine import checkpoint
from seguro.engine.model import load_model
from seguro.federated import admission, compression, exchange, intake, message, record
from seguro.federated.rounds import Server


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(admission, "POLL_S", 0.001)


@pytest.fixture
def server(federation):
    """Makes a server over a fleet of sites."""

    def made(fleet, folder, names="abc", say=lambda line: None, **more) -> Server:
        settings = {"strategy": {"timeout_s": 0.05, **more.pop("strategy", {})}, **more}
        return Server(federation(names, **settings), folder, fleet, say)

    return made


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


def changed(**arrays):
    """A site that answers with other arrays: by name of what is changed."""

    def answer(update):
        found = dict(update.arrays)
        name = sorted(found)[0]
        if "value" in arrays:
            found[name] = np.full_like(found[name], arrays["value"])
        if "shape" in arrays:
            found[name] = np.zeros(arrays["shape"], found[name].dtype)
        if "drop" in arrays:
            del found[name]
        if "add" in arrays:
            found["image"] = np.zeros(16, np.float32)
        if "large" in arrays:
            found[name] = np.zeros(10**6, np.float32)
        return replace(update, arrays=found)

    return answer


HOSTILE = {
    "nan": changed(value=np.nan),
    "infinite": changed(value=np.inf),
    "shape": changed(shape=(3,)),
    "missing": changed(drop=True),
    "further": changed(add=True),
    "oversized": changed(large=True),
    "damaged": lambda update: message.to_bytes(update)[:-9],
    "coding": lambda update: replace(update, coding="int8"),
    "other-run": lambda update: replace(update, run="another"),
    "stale": lambda update: replace(update, round=update.round - 1),
    "other-name": lambda update: replace(update, site="b"),
    "weight": lambda update: replace(update, weight=1e30),
    "one-case-too-many": lambda update: replace(update, weight=4.0),
    "metric-is-text": lambda update: replace(update, metrics={"dice": "perfect"}),
    "better-than-perfect": lambda update: replace(update, metrics={"dice": 7.0, "n_validation": 1.0}),
    "endless-validation": lambda update: replace(update, metrics={"dice": 1.0, "n_validation": 1e9}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_update_that_does_not_fit_is_rejected_logged_and_changes_nothing(kind, fake, server, tmp_path):
    lines: list[str] = []
    bad = fake("ab", train={"a": HOSTILE[kind]})
    run = server(bad, tmp_path / "bad", "ab", lines.append, rounds=1)
    run.run()
    (line,) = [e for e in record.lines(tmp_path / "bad") if e["action"] == "train"]
    assert line["took_part"] == ["b"] and "site a" in line["rejected"]["a"]
    assert any("site a" in said for said in lines)
    alone = server(fake("ab", train={"a": lambda u: None}), tmp_path / "alone", "ab", rounds=1)
    alone.run()
    assert exchange.digest(run.arrays) == exchange.digest(alone.arrays)


def test_scores_that_cannot_be_are_rejected_when_only_scores_were_asked_for(fake, server, tmp_path):
    """At the last look nobody trains: what sites say of themselves is believed no more than before."""
    fleet = fake("ab", dice={"a": lambda r: 1e9, "b": lambda r: 0.5})
    server(fleet, tmp_path / "run", "ab", rounds=1).run()
    last = record.lines(tmp_path / "run")[-1]
    assert last["action"] == "evaluate" and "dice of 1e+09" in last["rejected"]["a"]
    assert last["score"] == 0.5


def test_an_answer_of_scores_has_no_room_for_arrays(fake, server, tmp_path):
    fleet = fake("ab", dice={"b": lambda r: 0.5})
    honest = fleet._answer

    def answer(node, data):
        found = honest(node, data)
        if message.task_from(data).action == "evaluate" and node == 1:
            more = replace(message.update_from(found.data), arrays={"w": np.zeros(1 << 15, np.float32)})
            return replace(found, data=message.to_bytes(more))
        return found

    fleet._answer = answer
    server(fleet, tmp_path / "run", "ab", rounds=1).run()
    assert "refused unread" in record.lines(tmp_path / "run")[-1]["rejected"]["a"]


@pytest.mark.parametrize("coding", ["none", "fp16", "int8"])
def test_a_network_of_very_many_arrays_is_not_taken_for_an_oversized_update(coding):
    like = {f"encoder.stage{i}.block.conv.weight": np.zeros(2, np.float32) for i in range(2000)}
    coded = like if coding == "none" else compression.encode(like, coding).arrays
    sent = message.to_bytes(message.Update("r", "north", 1, "train", coded, coding=coding))
    assert message.payload_bytes(coded) + intake.HEAD_BYTES < len(sent) <= intake.largest(like, coding)
    assert intake.largest(like, coding) < 4 * len(sent)


def test_a_silent_site_is_missed_and_welcomed_back(fake, server, tmp_path):
    fleet = fake(train={"c": lambda u: None if u.round == 1 else u})
    server(fleet, tmp_path / "run").run()
    first, second = [e for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert first["took_part"] == ["a", "b"] and "no answer" in first["missing"]["c"]
    assert second["took_part"] == ["a", "b", "c"]


def test_a_site_that_comes_back_as_another_node_joins_again(fake, server, tmp_path):
    fleet = fake()

    def leaves(update):
        if update.round == 1:
            fleet.offline.add(3)
            fleet.names[9] = "c"
            return None
        return update

    fleet.train["c"] = leaves
    server(fleet, tmp_path / "run").run()
    told = [e["took_part"] for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert told == [["a", "b"], ["a", "b", "c"]]


def test_a_stranger_does_not_keep_a_site_from_coming_back(fake, server, tmp_path):
    """Nodes are asked in order: the stranger is turned away, and the site behind it is let in."""
    fleet = fake()

    def leaves(update):
        if update.round == 1:
            fleet.offline.add(3)
            fleet.names |= {8: "stranger", 9: "c"}
            return None
        return update

    fleet.train["c"] = leaves
    lines: list[str] = []
    server(fleet, tmp_path / "run", say=lines.append).run()
    second = record.lines(tmp_path / "run")[1]
    assert second["took_part"] == ["a", "b", "c"] and "'stranger'" in second["rejected"]["node 8"]
    assert any("node 8 is turned away" in line for line in lines)


def test_a_newcomer_with_facts_of_another_form_is_turned_away(fake, server, tmp_path):
    fleet, facts = fake(), {}

    def leaves(update):
        if update.round == 1:
            fleet.offline.add(3)
            fleet.names[9] = "c"
            facts["channels"] = 7
            return None
        return update

    fleet.train["c"] = leaves
    honest = fleet._answer

    def answer(node, data):
        found = honest(node, data)
        if facts and message.task_from(data).action == "join":
            told = message.update_from(found.data)
            return replace(found, data=message.to_bytes(replace(told, facts={**told.facts, **facts})))
        return found

    fleet._answer = answer
    server(fleet, tmp_path / "run").run()
    second = record.lines(tmp_path / "run")[1]
    assert second["took_part"] == ["a", "b"] and "another form" in second["rejected"]["node 9"]


def test_a_second_node_of_the_same_name_is_refused_before_round_1(fake, server, tmp_path):
    fleet = fake()
    fleet.names[4] = "b"
    with pytest.raises(ConfigError, match="two nodes say they are site 'b'"):
        server(fleet, tmp_path / "run").run()
    assert not any(t.action == "train" for _, t in fleet.seen)


def test_a_site_that_nobody_expects_is_refused_before_round_1(fake, server, tmp_path):
    fleet = fake("abcd")
    with pytest.raises(ConfigError, match="'d'; expected are a, b, c"):
        server(fleet, tmp_path / "run").run()
    assert not any(t.action == "train" for _, t in fleet.seen)


def test_a_site_that_never_comes_is_named(fake, server, tmp_path):
    with pytest.raises(RunError, match="no sign of c"):
        server(fake("ab"), tmp_path / "run").run()


def test_a_site_that_keeps_its_facts_is_named_with_its_reason(fake, server, tmp_path):
    fleet = fake()
    honest = fleet._answer

    def answer(node, data):
        found = honest(node, data)
        if node == 3:
            blank = replace(message.update_from(found.data), refused="facts may not leave", facts={})
            return replace(found, data=message.to_bytes(blank))
        return found

    fleet._answer = answer
    with pytest.raises(RunError, match=r"no sign of c[\s\S]*node 3: refuses: facts may not leave"):
        server(fleet, tmp_path / "run").run()


def test_a_plan_of_an_attempt_that_never_began_is_made_anew(fake, server, tmp_path):
    """A site refused, so the run is started anew with other settings: nothing of the old plan is left."""
    fleet = fake("ab")
    honest, refuses = fleet._answer, [True]

    def answer(node, data):
        found = honest(node, data)
        if refuses and message.task_from(data).action == "agree":
            blank = replace(message.update_from(found.data), refused="no", facts={})
            return replace(found, data=message.to_bytes(blank))
        return found

    fleet._answer = answer
    with pytest.raises(RunError, match="not agreed on"):
        server(fleet, tmp_path / "run", "ab").run()
    refuses.clear()
    server(fleet, tmp_path / "run", "ab", rounds=1, plan={"memory_gib": 0.01, "batch": 3}).run()
    from seguro.core.files import read_json

    assert read_json(tmp_path / "run/plan/plan.json")["batch"] == 3


def test_a_server_that_is_back_waits_for_all_its_sites_and_not_for_ever(fake, server, tmp_path, monkeypatch):
    """The first that finds it again is not to be the only one of the next round."""

    class Killed(BaseException):
        pass

    def die(update):
        raise Killed

    for grace, offline, expected in ((60.0, 3, ["a", "b", "c"]), (0.0, 99, ["a", "b"])):
        folder = tmp_path / f"grace{grace:g}"
        with pytest.raises(Killed):
            train = {"a": lambda u: die(u) if u.round == 2 else u}
            server(fake(train=train), folder, strategy={"timeout_s": 5}).run()
        monkeypatch.setattr(admission, "GRACE_S", grace)
        fleet = fake(offline={3})
        looks = []

        def nodes(fleet=fleet, looks=looks, offline=offline):
            looks.append(1)
            if len(looks) > offline:
                fleet.offline.clear()
            return [n for n in sorted(fleet.names) if n not in fleet.offline]

        fleet.nodes = nodes
        server(fleet, folder, strategy={"timeout_s": 5}).run()
        assert record.lines(folder)[1]["took_part"] == expected


def test_a_site_that_refuses_the_plan_stops_the_run_before_round_1(fake, server, tmp_path):
    fleet = fake()
    honest = fleet._answer

    def answer(node, data):
        found = honest(node, data)
        if message.task_from(data).action == "agree" and node == 2:
            update = replace(message.update_from(found.data), refused="we have no MRI", facts={})
            return replace(found, data=message.to_bytes(update))
        return found

    fleet._answer = answer
    with pytest.raises(RunError, match="b: refuses: we have no MRI"):
        server(fleet, tmp_path / "run").run()
    assert not any(t.action == "train" for _, t in fleet.seen)


def test_no_quorum_stops_the_run_which_then_goes_on(fake, server, tmp_path):
    fleet = fake(train={n: (lambda u: None if u.round == 2 else u) for n in "bc"})
    with pytest.raises(RunError, match="round 2 had no quorum of 2 in 3 attempts"):
        server(fleet, tmp_path / "run", strategy={"quorum": 2}).run()
    server(fake(), tmp_path / "run", strategy={"quorum": 2}).run()
    whole = server(fake(), tmp_path / "whole", strategy={"quorum": 2})
    whole.run()
    hashes = [[e["sha256"] for e in record.lines(tmp_path / f)] for f in ("run", "whole")]
    assert hashes[0] == hashes[1]


def test_a_killed_server_goes_on_at_the_next_round_with_identical_weights(fake, server, tmp_path):
    class Killed(BaseException):
        pass

    def die(update):
        if update.round == 3:
            raise Killed
        return update

    steps = {"a": 1.0, "b": -0.5, "c": 0.25}
    with pytest.raises(Killed):
        server(fake(step=steps, train={"a": die}), tmp_path / "run", rounds=4).run()
    before = record.lines(tmp_path / "run")[-1]
    assert before["round"] == 2
    fleet, lines = fake(step=steps), []
    again = server(fleet, tmp_path / "run", say=lines.append, rounds=4)
    again.run()
    assert "resuming at round 3" in lines
    trained = [t for _, t in fleet.seen if t.action == "train"]
    assert {t.round for t in trained} == {3, 4}
    assert exchange.digest(trained[0].arrays) == before["sha256"]
    whole = server(fake(step=steps), tmp_path / "whole", rounds=4)
    whole.run()
    assert exchange.digest(again.arrays) == exchange.digest(whole.arrays)
    assert [e["round"] for e in record.lines(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_torn_checkpoint_and_a_torn_log_line_are_passed_over(fake, server, tmp_path):
    server(fake(), tmp_path / "run", rounds=3).run()
    hashes = [e["sha256"] for e in record.lines(tmp_path / "run")]
    (tmp_path / "run" / "finished.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "update-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with (tmp_path / "run" / "rounds.jsonl").open("a") as stream:
        stream.write('{"round": 4, "acti')
    server(fake(), tmp_path / "run", rounds=3).run()
    assert [e["sha256"] for e in record.lines(tmp_path / "run")] == hashes


def test_a_finished_run_does_nothing_and_other_settings_are_refused(fake, server, tmp_path):
    server(fake(), tmp_path / "run").run()
    fleet = fake()
    server(fleet, tmp_path / "run").run()
    assert fleet.seen == []
    with pytest.raises(ConfigError, match="rounds: was 2, is 3"):
        server(fleet, tmp_path / "run", rounds=3).run()


SCORES = {"a": lambda r: [0.0, 0.9, 0.2, 0.6][r], "b": lambda r: [0.0, 0.1, 0.5, 0.4][r]}


@pytest.mark.parametrize(("best", "chosen"), [("mean", 1), ("worst", 3), ("last", 3)])
def test_the_best_round_is_found_without_central_data(best, chosen, fake, server, tmp_path):
    """Means of rounds 1 to 3: .5, .35, .5; of the worst site .1, .2, .4."""
    run = server(fake("ab", dice=SCORES), tmp_path / "run", "ab", rounds=3, strategy={"best": best})
    run.run()
    lines = record.lines(tmp_path / "run")
    assert [e["of_round"] for e in lines] == [0, 1, 2, 3] and lines[-1]["action"] == "evaluate"
    assert [e["worst"] for e in lines] == [None, "b", "a", "b"]
    from seguro.core.files import read_json

    assert read_json(tmp_path / "run" / "finished.json")["round"] == chosen
    weights = load_model(tmp_path / "run").predictor.state_dict()
    saved = checkpoint.load(tmp_path / "run" / "checkpoints", chosen).tensors
    name = next(k for k in weights if k.endswith("weight"))
    assert np.array_equal(weights[name].numpy(), saved[message.AVERAGED + name].numpy())


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


def test_two_updates_are_not_averaged_where_a_trimmed_mean_was_asked_for(fake, server, tmp_path):
    """Of two none can be dropped: one hostile site of three must not win by the absence of another."""
    fleet = fake(train={"b": lambda u: None})
    with pytest.raises(RunError, match="no quorum of 3"):
        server(fleet, tmp_path / "run", strategy={"aggregate": "trimmed", "retries": 0}).run()


def test_scores_are_asked_for_only_when_due(fake, server, tmp_path):
    fleet = fake("ab", dice=SCORES)
    server(fleet, tmp_path / "run", "ab", rounds=3, strategy={"evaluate_every": 2}).run()
    asked = {t.round: t.config["evaluate"] for _, t in fleet.seen if t.action in ("train", "evaluate")}
    assert asked == {1: False, 2: False, 3: True, 4: True}


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


def test_one_hostile_site_of_five_moves_the_mean_and_not_the_trimmed_mean(fake, server, tmp_path):
    names, found = "abcde", {}
    for aggregate in ("uniform", "trimmed"):
        fleet = fake(names, step={"e": -1000.0})
        run = server(fleet, tmp_path / aggregate, names, rounds=1, strategy={"aggregate": aggregate})
        run.run()
        first = next(t.arrays for _, t in fleet.seen if t.action == "train")
        found[aggregate] = max(
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


def test_facts_that_say_more_than_agreed_stop_the_run(fake, server, tmp_path):
    fleet = fake()
    fleet.facts = {**fleet.facts, "patients": ["Doe"]}
    with pytest.raises(DataError, match="patients"):
        server(fleet, tmp_path / "run").run()


def test_private_rounds_move_no_further_than_the_clip_and_stop_at_the_budget(fake, server, tmp_path):
    lines: list[str] = []
    private = {"clip": 0.5, "noise": 0.0}
    fleet = fake(step={"a": 100.0})
    run = server(fleet, tmp_path / "silent", rounds=1, strategy={"aggregate": "uniform", "privacy": private})
    run.run()
    from seguro.federated import aggregate

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
    assert any("another one would spend epsilon" in line for line in lines)
