"""Ranks, devices and precision: everything that differs between one laptop and many nodes.

Gradients are averaged in `Run.step`, not by wrapping modules: wrapping makes ranks drift apart for several
forwards before one step, for gradients of gradients and for `autograd.grad`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from seguro.core.errors import ConfigError
from seguro.engine.signals import Stopped

Precision = Literal["32", "bf16-mixed", "16-mixed"]
TIMEOUT = timedelta(hours=24)
"""How long a rank waits for the others: rank 0 may prepare a large data set first.

torchrun ends all when one dies."""
FAREWELL = timedelta(minutes=1)
"""How long a rank that is done waits for the others before it leaves."""
_GROUPS = count()
"""Numbers the groups of a process, the same on every rank: the store of torchrun outlives them."""


class Runtime:
    """One process's place among all: rank, world, device, precision.

    Started by torchrun (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) it joins the
    group with NCCL on GPUs and gloo on CPUs; otherwise it is alone. As a context it leaves the group at the
    end: together with the others, or at once after an error.
    """

    def __init__(self, device: str = "auto", precision: Precision = "32") -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _device(device)
        self.precision: Precision = "32"
        self.use(precision)
        self._store: Store | None = None
        """By which the ranks of a group that this object made take leave."""
        if self.world > 1 and not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
            number = next(_GROUPS)
            self._store = PrefixStore(f"farewell{number}", store)
            group = PrefixStore(f"group{number}", store)
            dist.init_process_group(
                backend, store=group, rank=self.rank, world_size=self.world, timeout=TIMEOUT
            )
            # gloo's threads hold tensors; one that drops its last tensor while Python shuts down aborts
            # the process ("terminate called without an active exception")
            atexit.register(self.leave)

    def use(self, precision: str) -> None:
        """Compute at `precision` from here on.

        Raises:
            ConfigError: no such precision, or the device cannot compute at it.
        """
        known = get_args(Precision)
        if precision not in known:
            raise ConfigError(f"--precision {precision}: expected {', '.join(known)}")
        if precision == "bf16-mixed" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError(
                f"--precision {precision}: {torch.cuda.get_device_name(self.device)} has no bfloat16; "
                "use --device cpu, or a new run (--name) with --precision 16-mixed or 32"
            )
        self.precision = precision  # type: ignore[assignment]

    def usual_precision(self) -> Precision:
        """Return what "auto" stands for on this device."""
        gpu = self.device.type == "cuda"
        return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32"

    def close(self) -> None:
        """Leave the group once every rank is here, so that none is cut off in its last exchange.

        Waits at most `FAREWELL` for ranks that may never come.
        """
        if self._store is not None and dist.is_initialized():
            with suppress(RuntimeError):  # of the store: others are late or gone, nobody is left to wait for
                self._meet(self._store)
        self.leave()

    def _meet(self, store: Store) -> None:
        """Wait for all ranks by way of the store, which rank 0 may hold and so closes last."""
        store.set(f"done/{self.rank}", "")
        store.wait([f"done/{r}" for r in range(self.world)], FAREWELL)
        if self.rank:
            store.set(f"gone/{self.rank}", "")
        else:
            store.wait([f"gone/{r}" for r in range(1, self.world)], FAREWELL)

    def leave(self) -> None:
        """Leave the group at once; ends its threads."""
        if self._store is None:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None
        atexit.unregister(self.leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.close()
        else:
            self.leave()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes at this precision."""
        if self.precision == "32":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device.type, dtype=kind)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of `x` over ranks."""
        if self.world == 1:
            return x.detach()
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over ranks."""
        if self.world == 1:
            return x
        out = x.detach().clone()
        dist.all_reduce(out)
        return out

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds on any rank."""
        if self.world == 1:
            return flag
        x = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return bool(x)

    def from_first(self, number: float) -> float:
        """Return rank 0's `number` on every rank."""
        if self.world == 1:
            return number
        x = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(x, src=0)
        return float(x)

    def broadcast(self, modules: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self.world > 1:
            for tensor in modules.state_dict().values():
                dist.broadcast(tensor, src=0)

    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over ranks; a parameter that has none on any rank keeps none."""
        if self.world == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        live = [p for p, here in zip(parameters, present.tolist(), strict=True) if here]
        if not live:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in live])
        dist.all_reduce(flat)
        flat /= self.world
        offset = 0
        for p in live:
            p.grad = flat[offset : offset + p.numel()].view_as(p).clone()
            offset += p.numel()

    def gather(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return every rank's tensors, by rank; names and shapes must agree (a slot's values may differ)."""
        if self.world == 1:
            return [dict(tensors)]
        out: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        for name in sorted(tensors):
            mine = tensors[name].detach().to(self.device).contiguous()
            parts = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(parts, mine)
            for rank, part in enumerate(parts):
                out[rank][name] = part
        return out

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"--device {name}: not a device ({error}); use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"--device {name}: no CUDA device here; use --device cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def finite(gradients: Sequence[Tensor]) -> bool:
    """Return whether every element of every gradient is finite.

    The sums tell in one pass, and are looked behind only where one is not finite: it may have overflowed.
    """
    sums = [g.sum() for g in gradients]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return True
    return all(bool(torch.isfinite(g).all()) for g in gradients)
