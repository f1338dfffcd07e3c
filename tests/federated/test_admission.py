"""Who is let in, turned away, waited for and welcomed back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seguro.core.errors import ConfigError, DataError, RunError
from seguro.core.files import read_json
from seguro.federated import admission, message, record


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


def test_facts_that_say_more_than_agreed_stop_the_run(fake, server, tmp_path):
    fleet = fake()
    fleet.facts = {**fleet.facts, "patients": ["Doe"]}
    with pytest.raises(DataError, match="patients"):
        server(fleet, tmp_path / "run").run()
