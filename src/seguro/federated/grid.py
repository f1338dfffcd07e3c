"""Flower between server and sites: our messages as Flower's, and a grid in this process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from seguro.core.errors import DataError
from seguro.federated.fleet import Answer
from seguro.federated.message import Action

RECORD, ARRAY, KIND = "seguro", "message", "seguro"
"""Of the one array that a Flower message of ours holds: where it lies, and how its bytes are to be read."""
TYPES: Mapping[Action, str] = {
    "join": "query",
    "agree": "query",
    "train": "train",
    "evaluate": "evaluate",
    "audit": "evaluate",
}
"""Our actions as Flower's message types."""
CLIENT_RAISED = 2
"""Flower's code for a client app that raised."""
POLL_S = 0.2
KEPT_ROUNDS = 3
"""For so many questions back, answers that come late are still fetched, to be named and dropped."""

Client = Callable[[Message, Context], Message]


def wrapped(data: bytes) -> RecordDict:
    """Return the bytes as the content of a Flower message: one array of bytes, nothing beside it."""
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(data),), KIND, data)})})


def unwrapped(content: RecordDict) -> bytes:
    """Return the bytes in the content of a Flower message.

    Raises:
        DataError: it holds anything else.
    """
    records = content.array_records
    if set(content) != {RECORD} or set(records) != {RECORD} or set(records[RECORD]) != {ARRAY}:
        raise DataError(f"a Flower message with records {sorted(content)}, expected one of seguro")
    array = records[RECORD][ARRAY]
    if array.stype != KIND:
        raise DataError(f"a Flower message with bytes of kind {array.stype!r}, expected {KIND!r}; refused")
    return array.data


class GridFleet:
    """The nodes of a Flower grid as a fleet (`federated.fleet.Fleet`).

    Args:
        grid: Flower's own in a deployment, or `InProcess`.
        poll_s: between two looks for answers.
    """

    def __init__(self, grid: Grid, *, poll_s: float = POLL_S) -> None:
        self.grid = grid
        self.poll_s = poll_s
        self._open: list[dict[str, int]] = []
        """Per question, newest last: message id -> node of those that have not answered."""

    def nodes(self) -> list[int]:
        """Return who is reachable now."""
        return sorted(self.grid.get_node_ids())

    def ask(
        self, tasks: Mapping[int, bytes], *, action: Action, round: int, timeout_s: float
    ) -> Iterable[Answer]:
        """Send each node its task and return one answer per node; whoever is silent too long is missing."""
        content = {id(data): wrapped(data) for data in tasks.values()}
        messages = [
            Message(content[id(data)], node, TYPES[action], ttl=timeout_s, group_id=str(round))
            for node, data in tasks.items()
        ]
        ids = list(self.grid.push_messages(messages))
        waiting = dict(zip(ids, tasks, strict=True))
        found: dict[int, Answer] = {}
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:  # else a second answer to the same question, or one that nobody asked
                    found[node] = _answer(node, reply)
            if waiting:
                time.sleep(self.poll_s)
        self._open = [*self._open, waiting][-KEPT_ROUNDS:]
        silent = f"no answer within {timeout_s:g} s"
        return [found.get(node, Answer(node, missing=silent)) for node in tasks]

    def late(self) -> list[Answer]:
        """Return answers to earlier questions that came after their time; each once."""
        out = []
        for waiting in self._open:
            if not waiting:
                continue
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None and reply.has_content():
                    out.append(_answer(node, reply))
        return out


def _answer(node: int, reply: Message) -> Answer:
    if reply.has_error():
        # the text of an error may be anything; only its kind is passed on
        return Answer(node, missing=f"Flower says the site failed or is gone (code {reply.error.code})")
    try:
        return Answer(node, unwrapped(reply.content))
    except DataError as error:
        return Answer(node, missing=str(error))


class InProcess(Grid):
    """A Flower grid whose nodes are client apps in this process, called one after the other.

    Args:
        clients: node id -> client app and its node configuration.
        parallel: all at the same time, in threads; only where each client works in a process of its own.
    """

    def __init__(
        self,
        clients: Mapping[int, tuple[Client, Mapping[str, str]]],
        *,
        parallel: bool = False,
    ) -> None:
        self.clients = dict(clients)
        self.parallel = parallel
        self._pushed: dict[str, Message] = {}
        # a message cannot be made outside a run without this; there is no public way
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """There is one run."""

    @property
    def run(self) -> Run:
        """There is one run, and nothing is known of it."""
        raise NotImplementedError("the grid in this process has no record of its run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids."""
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are handled when their answers are pulled."""
        ids = []
        for message in messages:
            key = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = key
            self._pushed[key] = message
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers; a client app that raises is an error, as in a deployment."""
        messages = [self._pushed.pop(key) for key in message_ids]
        if not self.parallel:
            return [self._handled(message) for message in messages]
        with ThreadPoolExecutor(max_workers=max(len(messages), 1)) as pool:
            return list(pool.map(self._handled, messages))

    def _handled(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        client, config = self.clients[node]
        try:
            return client(message, Context(1, node, dict(config), RecordDict(), {}))
        except Exception as error:  # noqa: BLE001  as Flower's own nodes do: an error is an answer
            return Message(Error(code=CLIENT_RAISED, reason=type(error).__name__), reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull in one."""
        return self.pull_messages(self.push_messages(messages))
