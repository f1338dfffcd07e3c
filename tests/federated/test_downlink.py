"""The way down: what is sent as a change is what is sent whole, to the bit, and nothing of it is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.federated import aggregate, exchange, message, record
from seguro.federated.compression import CODECS
from seguro.federated.downlink import Downlink, Held
from seguro.federated.message import Refusal, Task
from seguro.federated.simulate import simulate


def weights(seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": (scale * rng.standard_normal((8, 40))).astype(np.float32),
        "n": np.array(3 * seed, np.int64),
    }


def task(arrays, number: int = 1) -> Task:
    return Task("r", number, "train", arrays)


@pytest.mark.parametrize("coding", CODECS)
def test_a_change_gives_the_weights_that_another_site_gets_whole(coding):
    down, site = Downlink(coding), Held(coding)
    old = weights()
    site.whole(message.task_from(down.tasks(task(old), ["a"])["a"]))
    new = down.rounded(old, weights(1))
    down.answered("a")
    newer = down.rounded(new, weights(2))
    sent = {k: message.task_from(v) for k, v in down.tasks(task(newer, 3), ["a", "b"]).items()}
    assert "base" in sent["a"].config and "base" not in sent["b"].config
    site.whole(task(new))
    found = site.whole(sent["a"])
    assert exchange.digest(found.arrays) == exchange.digest(sent["b"].arrays) == exchange.digest(newer)
    assert found.arrays["n"] == 6  # a counter is exact


def test_rounding_is_made_up_for_by_later_changes():
    """Small steps that eight bits cannot show beside a large one arrive in the end."""
    down, held = Downlink("int8"), {"w": np.zeros(3, np.float32)}
    step = {"w": np.array([1.0, 3e-4, -2e-5], np.float32)}
    wanted = np.zeros(3)
    for _ in range(100):
        wanted += step["w"]
        held = down.rounded(held, aggregate.moved(held, step))
    assert np.abs(held["w"] + down.left["w"] - wanted).max() < 1e-3
    assert np.abs(held["w"] - wanted).max() <= 1.01 / 127 / 2 + 1e-3


def test_without_a_coding_nothing_changes():
    down = Downlink("none")
    assert down.rounded(weights(), weights(1))["w"] is not None
    new = weights(1)
    assert down.rounded(weights(), new) is new and down.saved() == {}
    down.answered("a")
    assert "base" not in message.task_from(down.tasks(task(new), ["a"])["a"]).config


def test_who_did_not_answer_gets_everything_whole_and_so_do_all_after_a_restart():
    down, old = Downlink("int8"), weights()
    new = down.rounded(old, weights(1))
    for site in "ab":
        down.answered(site)
    newer = down.rounded(new, weights(2))
    kinds = {s: "base" in message.task_from(d).config for s, d in down.tasks(task(newer), "abc").items()}
    assert kinds == {"a": True, "b": True, "c": False}
    # asked again in the same round, a site may already have the new ones
    assert not any("base" in message.task_from(d).config for d in down.tasks(task(newer), "ab").values())
    again = Downlink("int8")
    resumed = again.resume({**newer, **down.saved()})
    assert exchange.digest(resumed) == exchange.digest(newer)
    assert exchange.digest(again.rounded(resumed, weights(3))) == exchange.digest(
        down.rounded(newer, weights(3))
    )


def test_a_change_to_other_weights_is_refused():
    down, site = Downlink("int8"), Held("int8")
    new = down.rounded(weights(), weights(1))
    down.answered("a")
    newer = down.rounded(new, weights(2))
    sent = message.task_from(down.tasks(task(newer), ["a"])["a"])
    with pytest.raises(Refusal, match="not here"):
        site.whole(sent)  # it has nothing
    site.whole(task(weights(7)))
    with pytest.raises(Refusal, match="not here"):
        site.whole(sent)
    site.whole(task(new))
    with pytest.raises(DataError, match="other names"):
        site.whole(replace(sent, arrays={"w": sent.arrays["w"]}))


@pytest.mark.slow
def test_over_a_run_both_ways_together_are_below_a_quarter(sites, federation, tmp_path):
    """From the second task of a site on; the first has the weights whole."""
    for run, strategy in (("plain", {}), ("coded", {"coding": "int8", "down": "int8"})):
        told = federation("ab", run=f"down-{run}", rounds=4, strategy=strategy)
        simulate(told, sites("ab"), tmp_path / run)
    plain, coded = (record.lines(tmp_path / run) for run in ("plain", "coded"))
    assert [e["took_part"] for e in coded] == [e["took_part"] for e in plain]
    assert coded[0]["bytes_down"]["a"] == pytest.approx(plain[0]["bytes_down"]["a"], rel=0.02)
    for line, whole in zip(coded[1:], plain[1:], strict=True):
        found, wanted = (sum(x["bytes_down"].values()) + sum(x["bytes_up"].values()) for x in (line, whole))
        heads = 9_000 * (len(line["bytes_down"]) + len(line["took_part"]))  # of many small arrays, each way
        assert found - heads <= wanted / 4, (found, wanted)


def test_a_server_that_was_killed_goes_on_with_the_same_weights(sites, federation, tmp_path):
    told = federation("ab", run="down-killed", rounds=3, strategy={"down": "int8", "coding": "int8"})
    simulate(told, sites("ab"), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def die(line: str) -> None:
        if line.startswith("round 2:"):
            raise Killed

    with pytest.raises(Killed):
        simulate(told, sites("ab"), tmp_path / "killed", save_every_s=0.0, say=die)
    simulate(told, sites("ab"), tmp_path / "killed", save_every_s=0.0)
    hashes = [[e["sha256"] for e in record.lines(tmp_path / n)] for n in ("whole", "killed")]
    assert hashes[0] == hashes[1]


def test_a_silent_site_is_sent_everything_whole(fake, server, tmp_path):
    fleet = fake(train={n: (lambda u: None) for n in "c"})
    run = server(fleet, tmp_path / "run", rounds=2, strategy={"down": "int8"})
    run.run()
    kinds = [(s, t.round, "base" in t.config) for s, t in fleet.seen if t.action == "train"]
    assert kinds[3:6] == [("a", 2, True), ("b", 2, True), ("c", 2, False)]
    # this fleet cannot decode: nobody's answer counted, and the round is done again with whole weights
    assert kinds[6:9] == [("a", 2, False), ("b", 2, False), ("c", 2, False)]
    assert [e["took_part"] for e in record.lines(tmp_path / "run")][:2] == [["a", "b"]] * 2
