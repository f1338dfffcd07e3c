"""Sites of made cases, measured and prepared once; a fleet of sites that answer whatever a test wants."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seguro.data import phantom
from seguro.federated import admission, message
from seguro.federated.fleet import Answer
from seguro.federated.message import Task, Update
from seguro.federated.rounds import Server
from seguro.federated.site import Site
from seguro.federated.strategies import Federation
from seguro.methods import get

PLAN = {"memory_gib": 0.01, "batch": 2}
RUN = 16
"""Pixels in a row that no message and no log may hold."""


def tiny_federation(sites: Iterable[str], *, method: str = "supervised", **more: Any) -> Federation:
    """A federation of the tiny method, of two rounds of two updates unless said otherwise."""
    kind = get(method)
    config = kind.Config.model_validate(kind.presets["tiny"]).model_dump(mode="json")
    told = {"run": "r", "rounds": 2, "updates": 2, "plan": PLAN, "sites": sorted(sites), **more}
    return Federation.model_validate({"method": method, "preset": "tiny", "config": config, **told})


@pytest.fixture(scope="session")
def federation() -> Callable[..., Federation]:
    """`tiny_federation`, for tests."""
    return tiny_federation


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Returns that many ports of this machine that nothing listens on."""

    def found(n: int) -> list[int]:
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(n)]
            for s in sockets:
                s.bind(("127.0.0.1", 0))
            return [s.getsockname()[1] for s in sockets]

    return found


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Three folders of data: three labelled cases; three labelled and one not; two of other size."""
    root = tmp_path_factory.mktemp("sites")
    return {
        "a": phantom.write_msd(root / "a", n_labelled=3, n_test=0, seed=1),
        "b": phantom.write_msd(root / "b", n_labelled=3, n_unlabelled=1, n_test=0, seed=2),
        "c": phantom.write_msd(root / "c", n_labelled=2, n_test=0, seed=3, shape=(12, 22, 24)),
    }


@pytest.fixture(scope="session")
def workspaces(folders, tmp_path_factory) -> dict[str, Path]:
    """Workspaces in which each site's cases are checked and measured; tests name their runs differently."""
    root = tmp_path_factory.mktemp("workspaces")
    for name, folder in folders.items():
        Site(name, folder, root / name).facts()
    return {name: root / name for name in folders}


@pytest.fixture
def sites(folders, workspaces) -> Callable[..., dict[str, Site]]:
    """Makes sites "a", "b", ... new in memory over the same workspaces."""
    return lambda names="ab", **more: {n: Site(n, folders[n], workspaces[n], **more) for n in names}


@dataclass
class Fake:
    """A fleet whose sites take the plan and answer a training task with its arrays plus `step`.

    `train` may be replaced per site by a function from the honest update to bytes, to another update, or to
    None, which is no answer. Tasks are kept in `seen`.
    """

    facts: Mapping[str, Any]
    names: dict[int, str]
    step: Mapping[str, float] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)
    dice: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    train: dict[str, Callable[[Update], Any]] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    seen: list[tuple[str, Task]] = field(default_factory=list)
    waiting: list[Answer] = field(default_factory=list)

    def nodes(self) -> list[int]:
        return [n for n in sorted(self.names) if n not in self.offline]

    def late(self) -> list[Answer]:
        out, self.waiting = self.waiting, []
        return out

    def ask(self, tasks: Mapping[int, bytes], *, action: str, round: int, timeout_s: float) -> list[Answer]:
        return [self._answer(node, data) for node, data in tasks.items()]

    def _answer(self, node: int, data: bytes) -> Answer:
        from seguro.data.plan import Plan
        from seguro.federated.plan import plan_hash

        name, task = self.names[node], message.task_from(data)
        self.seen.append((name, task))
        update = Update(task.run, name, task.round, task.action)
        if task.action == "join":
            update = replace(update, facts=self.facts)
        elif task.action == "agree":
            update = replace(update, facts={"plan": plan_hash(Plan.model_validate(task.config["plan"]))})
        else:
            metrics = {"n_cases": 3.0}
            if task.config["evaluate"] and name in self.dice:
                metrics |= {"dice": self.dice[name](task.round - 1), "n_validation": 1.0}
            update = replace(update, metrics=metrics)
            if task.action == "train":
                arrays = {
                    k: v + np.asarray(self.step.get(name, 1.0)).astype(v.dtype)
                    for k, v in task.arrays.items()
                }
                update = replace(update, arrays=arrays, weight=self.weight.get(name, 1.0))
                told = self.train.get(name, lambda u: u)(update)
                if told is None:
                    return Answer(node, missing="no answer within 1 s")
                if isinstance(told, bytes):
                    return Answer(node, told)
                update = told
        return Answer(node, message.to_bytes(update))


@pytest.fixture
def fake(sites) -> Callable[..., Fake]:
    """Makes a fleet of the sites named, on nodes 1, 2, ..."""
    facts = sites("a")["a"].facts()
    return lambda names="abc", **more: Fake(facts, dict(enumerate(names, start=1)), **more)


@pytest.fixture
def server(federation, monkeypatch) -> Callable[..., Server]:
    """Makes a server over a fleet of sites; it does not wait."""
    monkeypatch.setattr(admission, "POLL_S", 0.001)

    def made(fleet, folder, names="abc", say=lambda line: None, **more) -> Server:
        settings = {"strategy": {"timeout_s": 0.05, **more.pop("strategy", {})}, **more}
        return Server(federation(names, **settings), folder, fleet, say)

    return made


def pieces(volume: np.ndarray) -> np.ndarray:
    """Return every run of RUN pixels along any axis that is not constant, one per row."""
    found = []
    for axis in range(volume.ndim):
        lines = np.moveaxis(volume, axis, -1)
        if lines.shape[-1] >= RUN:
            found.append(np.lib.stride_tricks.sliding_window_view(lines, RUN, axis=-1).reshape(-1, RUN))
    every = np.concatenate(found)
    return every[(every != every[:, :1]).any(axis=1)]


def holds(data: bytes, runs: np.ndarray) -> bool:
    """Return whether one of the rows of `runs` occurs in the bytes, at any offset."""
    raw = np.ascontiguousarray(runs)
    keys = {row.tobytes() for row in raw}
    heads = np.unique(np.frombuffer(b"".join(k[:8] for k in keys), np.uint64))
    size = raw.dtype.itemsize * RUN
    for shift in range(8):
        words = np.frombuffer(data[shift : len(data) - (len(data) - shift) % 8], np.uint64)
        for place in np.flatnonzero(np.isin(words, heads)):
            start = shift + 8 * int(place)
            if data[start : start + size] in keys:
                return True
    return False


@pytest.fixture(scope="session")
def pixels() -> SimpleNamespace:
    """`pieces` of an image, and whether bytes hold one of them."""
    return SimpleNamespace(pieces=pieces, holds=holds, run=RUN)
