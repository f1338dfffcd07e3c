"""A value is kept while what it was computed from stays, and only then."""

from __future__ import annotations

import copy

import pytest
import torch

from seguro.methods.alpnet.memory import Memory


class Counted:
    """Makes the sum of tensors and counts how often."""

    def __init__(self) -> None:
        self.calls = 0
        self.memory: Memory[torch.Tensor] = Memory()

    def __call__(self, *of: torch.Tensor, constant: bool = True) -> torch.Tensor:
        def compute() -> torch.Tensor:
            self.calls += 1
            return torch.stack(of).sum(0)

        return self.memory.get(of, compute, constant=lambda _: constant)


@pytest.fixture
def pair():
    return torch.ones(3), torch.full((3,), 2.0)


def test_the_same_tensors_give_the_same_value(pair):
    counted = Counted()
    assert counted(*pair) is counted(*pair)
    assert counted.calls == 1


@pytest.mark.parametrize("change", ["write", "storage", "another", "one more", "mode"])
def test_any_change_computes_anew(pair, change):
    counted, (a, b) = Counted(), pair
    counted(a, b)
    if change == "write":
        b.add_(1)
    elif change == "storage":
        b.data = b.data + 1
    elif change == "another":
        b = b.clone()
    if change == "mode":
        with torch.inference_mode():
            counted(a, b)
    else:
        of = (a, b, b) if change == "one more" else (a, b)
        torch.testing.assert_close(counted(*of), torch.stack(of).sum(0))
    assert counted.calls == 2


def test_what_may_change_unseen_is_not_kept(pair):
    counted = Counted()
    counted(*pair, constant=False)
    counted(*pair, constant=False)
    with torch.inference_mode():
        blind = torch.ones(3)
        counted(blind)
        counted(blind)
    assert counted.calls == 4


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_begins_empty(pair, copied):
    counted = Counted()
    counted(*pair)
    counted.memory = copied(counted.memory)
    counted(*pair)
    assert counted.calls == 2
