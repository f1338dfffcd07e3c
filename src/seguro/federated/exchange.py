"""What of a method travels: the arrays of `Method.shared()`, and back into a method's modules."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.core.files import sha256_json
from seguro.federated.message import AVERAGED, Arrays
from seguro.methods.contract import Method

_SHARED: WeakKeyDictionary[Method, tuple[str, ...]] = WeakKeyDictionary()
"""Names that travel, by method: they never change, and asking takes as long as copying the weights."""


def outgoing(method: Method, averaged: nn.ModuleDict) -> dict[str, NDArray[Any]]:
    """Return copies of the shared arrays by name, moving averages with the prefix AVERAGED."""
    return {name: np.array(view) for name, view in views(method, averaged).items()}


def views(method: Method, averaged: nn.ModuleDict) -> dict[str, NDArray[Any]]:
    """Return the shared arrays as `outgoing` does, not copied where they lie in main memory."""
    return {k: tensor.detach().cpu().numpy() for k, tensor in _places(method, averaged).items()}


@torch.no_grad()
def incoming(method: Method, averaged: nn.ModuleDict, arrays: Arrays, *, keep: Collection[str] = ()) -> bool:
    """Load shared arrays into the modules and their averages; the names in `keep` stay as they are here.

    Returns:
        bool: whether the arrays have the names and shapes that `outgoing` would give; else nothing is loaded.
    """
    places = _places(method, averaged)
    if places.keys() != arrays.keys() or any(tuple(places[k].shape) != v.shape for k, v in arrays.items()):
        return False
    for name, array in arrays.items():
        if name.removeprefix(AVERAGED) not in keep:
            _fill(places[name], array)
    return True


def _places(method: Method, averaged: nn.ModuleDict) -> dict[str, Tensor]:
    """Return the tensors that travel, as they lie in the modules and in their averages."""
    own, means = method.modules.state_dict(keep_vars=True), averaged.state_dict(keep_vars=True)
    if method not in _SHARED:
        _SHARED[method] = tuple(method.shared())
    shared = _SHARED[method]
    return {n: own[n] for n in shared} | {AVERAGED + n: means[n] for n in shared if n in means}


def _fill(tensor: Tensor, array: NDArray[Any]) -> None:
    if tensor.device.type == "cpu":
        np.copyto(tensor.detach().numpy(), array)  # received arrays are read-only, which torch would not take
    else:
        tensor.copy_(torch.from_numpy(np.array(array)))


def deployable(method: Method, averaged: nn.ModuleDict) -> nn.ModuleDict:
    """Return the method's modules, with their averages in place of the raw ones where there are some."""
    means = dict(averaged.items())
    return nn.ModuleDict({n: means.get(n, m) for n, m in method.modules.items()})


def norms(method: Method) -> frozenset[str]:
    """Return the names of the weights and buffers of the method's normalization layers."""
    kinds = (
        nn.modules.batchnorm._NormBase,  # batch and instance norm; torch has no public base of them
        nn.GroupNorm,
        nn.LayerNorm,
    )
    return frozenset(
        f"{where}.{name}"
        for where, module in method.modules.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    )


def digest(arrays: Arrays) -> str:
    """Return one hash over names, types, shapes and values."""
    return sha256_json(
        {
            k: [str(a.dtype), list(a.shape), hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()]
            for k, a in sorted(arrays.items())
        }
    )
