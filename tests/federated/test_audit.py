"""The audit log: every message, nothing of its content, and no line can go without being missed."""

import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from seguro.core.errors import DataError, RunError
from seguro.federated.audit import FIRST, Audit, verify
from seguro.federated.message import Task, Update, to_bytes

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def update(number: int) -> Update:
    return Update("r", "north", number, "train", WEIGHTS, 4.0, {"loss": 0.123456}, facts={"n_cases": 98765})


def write(path: Path, n: int) -> None:
    for number in range(n):
        message = update(number)
        Audit(path).add("out", message, to_bytes(message))


def test_a_line_says_what_left_and_not_its_values(tmp_path):
    log = Audit(tmp_path / "audit.jsonl")
    task, sent = Task("r", 1, "train", WEIGHTS), update(1)
    log.add("in", task, to_bytes(task))
    log.add("out", sent, to_bytes(sent), refused="policy: no weights")
    first, second = verify(log.path)
    assert (first["direction"], first["action"], first["refused"]) == ("in", "train", "")
    assert second["bytes"] == len(to_bytes(sent))
    assert second["sha256"] == hashlib.sha256(to_bytes(sent)).hexdigest()
    assert second["arrays"] == [["w", "float32", [2, 3]]]
    assert second["metrics"] == ["loss"] and second["facts"] == ["n_cases"]
    assert second["refused"] == "policy: no weights"
    text = log.path.read_text()
    assert "0.123456" not in text and "98765" not in text
    assert log.path.stat().st_mode & 0o077 == 0


def test_lines_hang_together(tmp_path):
    write(tmp_path / "a", 3)
    lines = (tmp_path / "a").read_bytes().splitlines()
    hashes = [FIRST, *(hashlib.sha256(x).hexdigest() for x in lines)]
    assert [x["previous"] for x in verify(tmp_path / "a")] == hashes[:3]


@pytest.mark.parametrize("harm", ["removed", "changed", "swapped", "damaged"])
def test_a_log_that_was_touched_is_found(tmp_path, harm):
    path = tmp_path / "audit.jsonl"
    write(path, 4)
    lines = path.read_text().splitlines(keepends=True)
    if harm == "removed":
        del lines[1]
    elif harm == "changed":
        lines[1] = lines[1].replace('"bytes":', '"bytes":1')
    elif harm == "swapped":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[1] = lines[1][:40] + "\n"
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=r"line \d does not follow"):
        list(verify(path))


def test_a_line_cut_by_a_kill_is_dropped_and_the_log_goes_on(tmp_path):
    path = tmp_path / "audit.jsonl"
    write(path, 2)
    with path.open("a") as stream:
        stream.write('{"time":"2026')
    write(path, 1)
    assert len(list(verify(path))) == 3


def test_two_processes_of_a_site_write_one_log(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(path, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list(verify(path))) == 40


def test_what_cannot_be_recorded_does_not_pass(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="does not pass"):
        Audit(tmp_path / "folder").add("out", update(1), b"")


def test_no_log_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="audit log"):
        list(verify(tmp_path / "none"))
    (tmp_path / "bad").write_text(json.dumps([1]) + "\n")
    with pytest.raises(DataError, match="line 1"):
        list(verify(tmp_path / "bad"))
