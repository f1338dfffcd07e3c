"""What a site allows: each key of a policy stops a run or a message, and only what it is about."""

import numpy as np
import pytest

from seguro.core.errors import ConfigError
from seguro.federated.audit import Audit, verify
from seguro.federated.message import METRICS, Refusal, Task, Update, to_bytes
from seguro.federated.policy import Asked, Guarded, Policy, against, asked_by, held_back, lets, read_policy

RUN = {"method": "roam", "rounds": 20, "updates": 50, "clip": 1.0, "noise": 1.1, "epsilon": 8.0} | {
    "delta": 1e-5
}
PLAN = {"classes": {"names": ["background", "liver", "spleen"], "regions": False}}
AGREE = Task("r", 0, "agree", config={"spec": RUN, "plan": PLAN})
TRAIN = Task("r", 1, "train", {"w": np.zeros(4, np.float32)})
SENT = Update("r", "north", 1, "train", {"w": np.zeros(1000, np.float32)}, 3.0, {"loss": 0.5, "dice": 0.8})


def gate(tmp_path, **policy) -> Guarded:
    return Guarded(Policy(**policy), Audit(tmp_path / "audit.jsonl"))


def test_a_run_is_read_from_the_task_that_describes_it():
    asked = asked_by(AGREE)
    assert asked == Asked(
        method="roam",
        classes=("liver", "spleen"),
        rounds=20,
        updates=50,
        private=True,
        epsilon=8.0,
        delta=1e-5,
    )
    regions = {"classes": {"names": ["whole", "core"], "regions": True}}
    assert asked_by(Task("r", 0, "agree", config={"spec": RUN, "plan": regions})).classes == ("whole", "core")
    assert asked_by(TRAIN) is None


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"methods": ["supervised"]}, "method roam is not allowed here, only supervised"),
        ({"classes": ["liver"]}, "classes spleen are not allowed here, only liver"),
        ({"rounds": 19}, "20 rounds, at most 19"),
        ({"updates": 49}, "50 updates a round, at most 49"),
        ({"epsilon": 7.9}, "epsilon up to 7.9 at delta 1e-05 is asked for here, found a budget of 8.0"),
        ({"epsilon": 8.0, "delta": 1e-6}, "at delta 1e-06 is asked for here, found a budget of 8.0 at delta"),
    ],
    ids=["method", "class", "rounds", "updates", "epsilon", "delta"],
)
def test_each_key_refuses_a_run(tmp_path, policy, said):
    with pytest.raises(Refusal, match=said):
        gate(tmp_path, **policy).admit(AGREE, to_bytes(AGREE))
    (line,) = verify(tmp_path / "audit.jsonl")
    assert said in line["refused"] and line["direction"] == "in"


def test_a_policy_that_fits_admits(tmp_path):
    fits = {"methods": ["roam"], "classes": ["spleen", "liver"], "rounds": 20, "updates": 50, "epsilon": 8.0}
    gate(tmp_path, **fits).admit(AGREE, to_bytes(AGREE))
    gate(tmp_path).admit(AGREE, to_bytes(AGREE))
    assert all(line["refused"] == "" for line in verify(tmp_path / "audit.jsonl"))


@pytest.mark.parametrize(
    "change",
    [{"noise": 0.0}, {"clip": None}, {"epsilon": None}, {"delta": None}, {"delta": 0.5}],
    ids=["noise", "clip", "budget", "no-delta", "delta"],
)
def test_half_of_privacy_is_none(change):
    """An epsilon that fails every other time protects nobody, and lets no large message out."""
    asked = asked_by(Task("r", 0, "agree", config={"spec": RUN | change, "plan": PLAN}))
    assert against(Policy(epsilon=100.0), asked, 0)
    assert held_back(Policy(largest_message_mb=0.001), asked, SENT, 5000)


def test_a_round_too_many_is_refused():
    assert against(Policy(rounds=20), Asked(), 21) == ["21 rounds, at most 20 are allowed here"]
    assert against(Policy(rounds=20), Asked(), 20) == []


@pytest.mark.parametrize(
    ("leaves", "kind"),
    [("weights", {"arrays": SENT.arrays}), ("losses", {"metrics": {"loss": 0.1}})]
    + [("scores", {"metrics": {"dice": 0.1}}), ("scores", {"metrics": {"dice.liver": 0.1}})]
    + [("audits", {"metrics": {name: 1.0}}) for name in METRICS if name.startswith(("audit.", "made."))]
    + [
        ("counts", {"metrics": {name: 1.0}})
        for name in METRICS
        if name not in ("loss", "dice") and not name.startswith(("audit.", "made."))
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(next(iter(x.values())))),
)
def test_each_kind_may_be_kept_at_the_site(leaves, kind):
    update = Update("r", "north", 1, "train", **kind)
    others = [x for x in Policy().may_leave if x != leaves]
    assert held_back(Policy(may_leave=others), Asked(), update, 10) == [f"{leaves} may not leave this site"]
    assert held_back(Policy(may_leave=[leaves]), Asked(), update, 10) == []


def test_facts_may_be_kept_at_the_site():
    update = Update("r", "north", 0, "join", facts={"n_cases": 4})
    assert held_back(Policy(may_leave=["weights"]), Asked(), update, 10) == ["facts may not leave this site"]
    agreed = Update("r", "north", 0, "agree", facts={"plan": "abc"})  # the hash of what the server sent
    assert held_back(Policy(may_leave=["weights"]), Asked(), agreed, 10) == []


def test_numbers_off_the_list_never_leave():
    update = Update("r", "north", 1, "train", metrics={"patient-007": 1.0})
    (why,) = held_back(Policy(), Asked(), update, 10)
    assert "not on the list" in why and "007" not in why  # the reason travels too


def test_a_large_message_leaves_only_with_privacy():
    policy = Policy(largest_message_mb=0.004)
    data = to_bytes(SENT)
    assert len(data) > 4000
    assert "without differential privacy" in held_back(policy, Asked(), SENT, len(data))[0]
    assert held_back(policy, asked_by(AGREE), SENT, len(data)) == []
    assert held_back(policy, Asked(), SENT, 4000) == []


@pytest.mark.parametrize("kept", ["losses", "scores", "counts"])
def test_numbers_that_may_not_leave_are_left_out(kept):
    update = Update("r", "n", 1, "train", SENT.arrays, 7.0, {"loss": 1.0, "dice.a": 0.5, "n_cases": 7.0})
    name = {"losses": "loss", "scores": "dice.a", "counts": "n_cases"}[kept]
    policy = Policy(may_leave=[x for x in Policy().may_leave if x != kept])
    left = lets(policy, update)
    assert set(left.metrics) == set(update.metrics) - {name} and left.arrays is update.arrays
    assert left.weight == (1.0 if kept == "counts" else 7.0)
    assert held_back(policy, Asked(), left, 10) == []


def test_a_refusal_always_leaves():
    refused = Update("r", "north", 1, "train", refused="no")
    assert held_back(Policy(may_leave=[], largest_message_mb=1e-6), Asked(), refused, 100) == []


def test_a_policy_that_was_changed_holds_for_the_next_round(tmp_path):
    gate(tmp_path).admit(AGREE, to_bytes(AGREE))
    later = gate(tmp_path, methods=["supervised"])  # another process of the same site
    with pytest.raises(Refusal, match="method roam"):
        later.admit(TRAIN, to_bytes(TRAIN))
    other = Task("r2", 1, "train")
    later.admit(other, to_bytes(other))  # of which nothing is known; it has no plan here and cannot train


def test_the_scores_after_the_last_round_are_no_round_too_many(tmp_path):
    site = gate(tmp_path, rounds=20)
    task = Task("r2", 21, "evaluate")
    site.admit(task, to_bytes(task))
    task = Task("r2", 21, "train")
    with pytest.raises(Refusal, match="21 rounds, at most 20"):
        site.admit(task, to_bytes(task))


def test_what_is_held_back_is_on_record(tmp_path):
    site = gate(tmp_path, may_leave=["facts", "counts"])
    site.admit(AGREE, to_bytes(AGREE))
    with pytest.raises(Refusal, match="losses, scores, weights may not leave"):
        site.release(SENT, to_bytes(SENT))
    line = list(verify(tmp_path / "audit.jsonl"))[-1]
    assert line["direction"] == "out" and "weights" in line["refused"]


def test_a_run_in_other_words_is_refused(tmp_path):
    odd = Task("r", 0, "agree", config={"spec": RUN | {"rounds": "many"}, "plan": PLAN})
    with pytest.raises(Refusal, match="another way"):
        gate(tmp_path).admit(odd, to_bytes(odd))


def test_files_are_read_and_misspelled_keys_refused(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("methods: [roam]\nlargest_message_mb: 50\nmay_leave: [facts, weights]\n")
    assert read_policy(path) == Policy(
        methods=["roam"], largest_message_mb=50, may_leave=["facts", "weights"]
    )
    for text in ("method: roam\n", "may_leave: [images]\n", "rounds: 0\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="keys of a policy are methods, classes"):
            read_policy(path)
