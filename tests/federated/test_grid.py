"""Our bytes in Flower's messages, and what of Flower's is not believed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")

from flwr.app import Array, ArrayRecord, Message, RecordDict

from seguro.core.errors import DataError
from seguro.federated.grid import ARRAY, RECORD, GridFleet, InProcess, unwrapped, wrapped


def test_bytes_come_out_as_they_went_in():
    for data in (b"", b"\0\n\xff" * 1000):
        assert unwrapped(wrapped(data)) == data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(RecordDict(), id="nothing"),
        pytest.param(RecordDict({RECORD: ArrayRecord()}), id="no-array"),
        pytest.param(RecordDict({"other": wrapped(b"x")[RECORD]}), id="other-record"),
        pytest.param(RecordDict({RECORD: wrapped(b"x")[RECORD], "more": ArrayRecord()}), id="more-beside-it"),
        pytest.param(RecordDict({RECORD: ArrayRecord({ARRAY: Array(np.zeros(3))})}), id="an-array-of-numpy"),
    ],
)
def test_other_content_is_refused(content):
    with pytest.raises(DataError, match="a Flower message with"):
        unwrapped(content)


def echo(message, context):
    return Message(wrapped(unwrapped(message.content) + str(context.node_id).encode()), reply_to=message)


class Twice(InProcess):
    """A grid that hands out every answer a second time, the second one changed."""

    def pull_messages(self, message_ids):
        found = list(super().pull_messages(message_ids))
        again = [Message(wrapped(b"replayed"), reply_to=m) for m in self.kept]
        return [*found, *again]

    def push_messages(self, messages):
        self.kept = list(messages)
        return super().push_messages(self.kept)


def test_a_second_answer_to_one_question_is_dropped():
    fleet = GridFleet(Twice({1: (echo, {}), 2: (echo, {})}))
    answers = fleet.ask({1: b"a", 2: b"b"}, action="train", round=1, timeout_s=5)
    assert {a.node: a.data for a in answers} == {1: b"a1", 2: b"b2"}
    assert fleet.late() == []
