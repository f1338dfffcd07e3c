"""Pictures of made slices lie below the run, whatever a site is called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seguro.inference import previews


@pytest.mark.parametrize(
    ("domain", "folder"),
    [("Site 3-b", "Site 3-b"), ("../../x", "__.._x"), ("..", "_"), ("a/b:c", "a_b_c"), ("Zürich", "Zürich")],
)
def test_a_domain_has_a_folder_of_its_own_below_the_previews(domain, folder, tmp_path):
    method = SimpleNamespace(domains=(domain,), made=lambda modules, number, n, rng: torch.zeros(n, 1, 2, 2))
    (path,) = previews.write(tmp_path / "p", "00000000", method, nn.ModuleDict({"g": nn.Linear(1, 1)}))
    assert path.parent == tmp_path / "p" / folder and path.is_file()
    assert path.resolve().is_relative_to((tmp_path / "p").resolve())
