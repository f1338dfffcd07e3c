"""A value is kept while what it was computed from stays, and only then."""

from __future__ import annotations

import copy

import pytest
import torch

from seguro.methods.alpnet.memory import Memory, Recent


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


class Encoded:
    """Doubles images and counts how often."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.calls = 0
        self.recent = Recent(limit)

    def __call__(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        def compute() -> torch.Tensor:
            self.calls += 1
            return weight * image

        found = self.recent.get(image, [weight], compute)
        torch.testing.assert_close(found, weight * image)
        return found


@torch.no_grad()
def test_an_image_is_found_again_by_its_content(pair):
    encoded, (image, weight) = Encoded(), pair
    encoded(image, weight)
    encoded(image.clone(), weight)
    encoded(torch.stack([image, image], 1)[:, 0], weight)  # other strides
    assert encoded.calls == 1
    encoded(image[None], weight)
    encoded(image.double(), weight)
    encoded(image.add_(1), weight)
    assert encoded.calls == 4


@torch.no_grad()
def test_other_weights_forget_what_was_encoded(pair):
    encoded, (image, weight) = Encoded(), pair
    encoded(image, weight)
    encoded(image, weight.add_(1))
    encoded(image, weight.clone())
    with torch.inference_mode():
        encoded(image, weight)
    assert encoded.calls == 4


@torch.no_grad()
def test_no_more_is_kept_than_the_limit_and_the_oldest_goes(pair):
    weight, size = pair[1], pair[1].nbytes
    encoded, images = Encoded(2 * size), [torch.full((3,), float(i)) for i in range(3)]
    for i in (0, 1, 0, 2, 0):  # 1 goes for 2
        encoded(images[i], weight)
    assert encoded.calls == 3
    encoded(images[1], weight)
    assert encoded.calls == 4
    nothing = Encoded(size - 1)
    nothing(images[0], weight)
    nothing(images[0], weight)
    assert nothing.calls == 2


def test_where_gradients_may_be_asked_for_nothing_is_kept(pair):
    encoded, (image, weight) = Encoded(), pair
    encoded(image, weight)
    encoded(image, weight)
    assert encoded.calls == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@torch.no_grad()
def test_a_copy_of_what_was_encoded_begins_empty(pair, copied):
    encoded, (image, weight) = Encoded(), pair
    encoded(image, weight)
    encoded.recent = copied(encoded.recent)
    encoded(image, weight)
    encoded(image, weight)
    assert encoded.calls == 2
