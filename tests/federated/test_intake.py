"""What the server does not believe of an answer: the site is named, and nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seguro.federated import compression, exchange, intake, message, record


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
