"""A server that was killed, torn or out of quorum goes on where it stopped."""

from __future__ import annotations

import pytest

from seguro.core.errors import ConfigError, RunError
from seguro.federated import exchange, record


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
