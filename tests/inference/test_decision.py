"""Labels of probabilities, by hand."""

import numpy as np
import torch

from seguro.core.types import Classes
from seguro.inference.decision import file_values, probabilities, voxels

CLASSES = Classes(names=("background", "a", "b"), values=((0,), (7,), (300,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))


def test_exclusive_classes_become_their_file_values_and_ties_go_to_the_first():
    p = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.6, 0.4], [0.2, 0.3, 0.4]])
    assert file_values(p, CLASSES).tolist() == [0, 7, 7]


def test_regions_are_painted_in_order_above_one_half():
    p = torch.tensor([[0.9, 0.9, 0.5, 0.2], [0.2, 0.8, 0.5, 0.7]])
    assert file_values(p, REGIONS).tolist() == [1, 2, 0, 2]


def test_voxels_count_foreground_classes_and_overlaps():
    assert voxels(np.array([0, 7, 7, 300]), CLASSES) == {"a": 2, "b": 1}
    assert voxels(np.array([0, 1, 2, 2]), REGIONS) == {"whole": 3, "core": 2}


def test_probabilities_are_softmax_or_sigmoid():
    logits = torch.tensor([[0.0], [np.log(3.0)], [0.0]], dtype=torch.float32)
    assert torch.allclose(probabilities(logits, CLASSES)[:, 0], torch.tensor([0.2, 0.6, 0.2]))
    assert torch.allclose(probabilities(logits[:2], REGIONS)[:, 0], torch.tensor([0.5, 0.75]))
