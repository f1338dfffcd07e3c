"""Messages: the same bytes for the same message, and nothing believed of bytes that are none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from seguro.core.errors import DataError
from seguro.federated import message, tensors
from seguro.federated.message import MAGIC, Task, Update

ARRAYS = {
    "network.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "network.count": np.array(7, np.int64),
    "averaged.network.weight": np.zeros((2, 3), np.float32),
}
UPDATE = Update("run", "site", 3, "train", ARRAYS, 2.0, {"loss": 0.5}, facts={"n": [1, 2.5]})


def with_head(**changed) -> bytes:
    """An update whose head has other fields."""
    data = message.to_bytes(UPDATE)
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    text = json.dumps(json.loads(data[start:end]) | changed).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + data[end:]


def test_what_goes_in_comes_out():
    task = Task("run", 1, "train", ARRAYS, {"plan": {"a": [1, None]}})
    for sent, back in (
        (task, message.task_from(message.to_bytes(task))),
        (UPDATE, message.update_from(message.to_bytes(UPDATE))),
    ):
        assert replace(back, arrays={}) == replace(sent, arrays={})
        assert set(back.arrays) == set(sent.arrays)
        for name, array in sent.arrays.items():
            assert back.arrays[name].dtype == array.dtype and np.array_equal(back.arrays[name], array)
            assert back.arrays[name].shape == array.shape


def test_the_same_message_gives_the_same_bytes_in_any_order_of_its_arrays():
    other = replace(UPDATE, arrays=dict(reversed(ARRAYS.items())))
    assert message.to_bytes(UPDATE) == message.to_bytes(other)


def test_a_message_is_its_arrays_and_a_short_head():
    assert len(message.to_bytes(UPDATE)) < message.payload_bytes(ARRAYS) + 1000


DATA = message.to_bytes(UPDATE)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"GIF89a" + DATA, id="other-magic"),
        pytest.param(DATA[:-5], id="cut"),
        pytest.param(DATA[:20], id="cut-in-head"),
        pytest.param(MAGIC + (1 << 60).to_bytes(8, "little"), id="endless-head"),
        pytest.param(message.to_bytes(Task("run", 1, "train")), id="a-task"),
        pytest.param(with_head(action="format"), id="unknown-action"),
        pytest.param(with_head(extra=1), id="unknown-field"),
        pytest.param(with_head(round="one"), id="round-is-text"),
        pytest.param(with_head(weight=-1), id="negative-weight"),
        pytest.param(with_head(weight=float("nan")), id="weight-not-a-number"),
        pytest.param(with_head(weight=10**400), id="weight-beyond-any-float"),
        pytest.param(with_head(weight=True), id="weight-is-a-truth"),
        pytest.param(with_head(metrics=[1]), id="metrics-no-mapping"),
        pytest.param(with_head(metrics={"dice": "good"}), id="a-metric-is-text"),
        pytest.param(with_head(metrics={"dice": None}), id="a-metric-is-nothing"),
        pytest.param(with_head(metrics={"dice": float("nan")}), id="a-metric-is-not-a-number"),
        pytest.param(with_head(metrics={"loss": -(10**400)}), id="a-metric-beyond-any-float"),
        pytest.param(with_head(site=None), id="no-site"),
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(DataError):
        message.update_from(data)


def file(**changed) -> bytes:
    """A safetensors file of one array, whose entry in the head has other fields."""
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changed
    text = json.dumps({"w": {k: v for k, v in entry.items() if v is not None}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


def test_arrays_are_a_safetensors_file_that_others_read_and_write():
    from safetensors.numpy import load, save

    ours = load(b"".join(tensors.packed(ARRAYS)))
    theirs = tensors.unpacked(memoryview(save(ARRAYS)))
    for found in (ours, theirs):
        assert set(found) == set(ARRAYS)
        assert all(np.array_equal(found[k], v) and found[k].shape == v.shape for k, v in ARRAYS.items())
    assert tensors.unpacked(memoryview(save({}))) == {}
    empty = tensors.unpacked(memoryview(b"".join(tensors.packed({"none": np.zeros((0, 3), np.float32)}))))
    assert empty["none"].shape == (0, 3)


def test_arrays_that_do_not_lie_evenly_are_whole():
    mixed = {"a": np.array([1, 2, 3], np.int8), "b": np.array([0.5, -1.0], np.float64)}
    found = tensors.unpacked(memoryview(b"".join(tensors.packed(mixed))))
    assert all(found[k].flags.aligned and np.array_equal(found[k], v) for k, v in mixed.items())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(file()[:-1], id="cut"),
        pytest.param(file() + b"x", id="longer"),
        pytest.param((1 << 40).to_bytes(8, "little") + b"{}", id="endless-head"),
        pytest.param((2).to_bytes(8, "little") + b"[]", id="head-is-a-list"),
        pytest.param(file(dtype="F128"), id="unknown-type"),
        pytest.param(file(dtype=["F32"]), id="type-is-a-list"),
        pytest.param(file(shape=[-2, -3]), id="negative-shape"),
        pytest.param(file(shape=[6.0]), id="shape-of-floats"),
        pytest.param(file(shape=[1 << 40, 1 << 40]), id="enormous-shape"),
        pytest.param(file(data_offsets=[4, 28]), id="a-hole"),
        pytest.param(file(data_offsets=[-24, 0]), id="before-the-start"),
        pytest.param(file(data_offsets=None), id="no-offsets"),
    ],
)
def test_a_file_of_arrays_that_is_none_is_refused(data):
    with pytest.raises(ValueError, match=r"array|head"):
        tensors.unpacked(memoryview(data))


def test_arrays_of_objects_do_not_travel():
    with pytest.raises(DataError, match="do not travel"):
        message.to_bytes(replace(UPDATE, arrays={"w": np.array([None])}))


def test_more_bytes_than_expected_are_not_even_read():
    with pytest.raises(DataError, match=f"{len(DATA)} bytes, at most 100"):
        message.update_from(DATA, limit=100)


def test_only_listed_and_finite_numbers_leave():
    told = {
        "loss": 1,
        "dice": 0.5,
        "dice.organ1": 0.4,
        "dice.other": 0.1,
        "patient": 17.0,
        "seconds": float("inf"),
    }
    assert message.allowed(told, ["organ1"]) == {"loss": 1.0, "dice": 0.5, "dice.organ1": 0.4}
