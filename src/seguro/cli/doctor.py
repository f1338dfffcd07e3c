"""Say what this machine and installation can do."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, console, finish
from seguro.core.memory import GIB, main_memory

if TYPE_CHECKING:
    from rich.console import Console

EXTRAS = {
    "nets": ("monai", "einops"),
    "fast": ("edt", "connected-components-3d", "isal"),
    "dicom": ("pydicom", "python-gdcm"),
    "itk": ("SimpleITK", "pynrrd"),
    "fewshot": ("scikit-image",),
    "federated": ("flwr", "cryptography"),
    "demo": ("nilearn",),
}
"""Extra -> the packages it brings, as in pyproject.toml (a test compares them)."""
CORE = ("torch", "numpy", "scipy", "nibabel", "pillow", "safetensors", "pydantic", "typer", "rich")
UPDATE_GFLOP = 1060.0
"""One update of a 3-D U-Net of width 32 on two 64 x 64 x 64 patches: 708 GFLOP of convolutions, and half as
much again for normalization, activations and data, in units of the time that convolutions take."""


def doctor(
    seconds: Annotated[float, typer.Option(help="Length of the speed probe; 0 leaves it out.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Print versions, extras, machine, what the current folder can do, and a short speed probe."""
    out = console(as_json)
    result: dict[str, Any] = {
        "versions": {"python": sys.version.split()[0], "seguro": _version("seguro")}
        | {name: _version(name) for name in CORE},
        "extras": {extra: _missing(packages) for extra, packages in EXTRAS.items()},
        "machine": _machine(),
        "folder": probe_folder(Path.cwd()),
    }
    result["speed"] = probe_speed(seconds) if seconds > 0 else None
    warnings = concerns(result)
    _print(out, result)
    finish(out, result=result, as_json=as_json, warnings=warnings, then=_next(result))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing(packages: tuple[str, ...]) -> list[str]:
    """Return the packages of an extra that are not installed; an empty list means the extra is complete."""
    return [p for p in packages if _version(p) is None]


def _machine() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    shm = Path("/dev/shm")
    return {
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "shm_gib": round(shutil.disk_usage(shm).total / GIB, 2) if shm.is_dir() else None,
        "gpus": gpus,
    }


def memory_gib(root: Path = Path("/")) -> dict[str, float] | None:
    """Return total and available memory in GiB, or None where the system does not say."""
    found = main_memory(root)
    return {k: round(v / GIB, 1) for k, v in found._asdict().items()} if found else None


def probe_folder(folder: Path) -> dict[str, Any]:
    """Return free space, and whether files in `folder` can be replaced atomically; leaves nothing behind."""
    from seguro.core.errors import RunError
    from seguro.core.files import write_bytes

    path = folder / f".seguro-doctor.{os.getpid()}"
    try:
        write_bytes(path, b"old")
        inode = path.stat().st_ino
        write_bytes(path, b"new")
        atomic = path.read_bytes() == b"new" and path.stat().st_ino != inode
        reason = None if atomic else "a replaced file is not a new one"
    except OSError as error:
        atomic, reason = False, error.strerror or type(error).__name__
    except RunError as error:
        atomic, reason = False, str(error)
    finally:
        if os.access(folder, os.W_OK):
            path.unlink(missing_ok=True)
    return {
        "free_gib": round(shutil.disk_usage(folder).free / GIB, 1),
        "atomic_writes": atomic,
        "reason": reason,
    }


def probe_speed(seconds: float) -> dict[str, Any]:
    """Return GFLOP/s of a 3-D convolution, forward and backward, on the device that training would use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, width = (96, 64) if device == "cuda" else (32, 32)
    layer = torch.nn.Conv3d(width, width, 3, padding=1).to(device)
    x = torch.zeros(2, width, side, side, side, device=device)
    once = 3 * 2 * 27 * width * width * x[:, 0].numel() / 1e9  # forward and two backward products
    n, start = -1, time.perf_counter()
    while n < 1 or time.perf_counter() - start < seconds:
        if n == 0:  # the first pass allocates and is not counted
            start = time.perf_counter()
        layer(x.requires_grad_()).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        n += 1
    gflops = n * once / (time.perf_counter() - start)
    return {
        "device": device,
        "gflops": round(gflops, 1),
        "seconds_per_update": round(UPDATE_GFLOP / gflops, 2),
        "minutes_per_1000_updates": round(1000 * UPDATE_GFLOP / gflops / 60, 1),
    }


def concerns(result: Mapping[str, Any]) -> list[str]:
    """Return what is likely to trouble a run here, one sentence each."""
    machine, folder, out = result["machine"], result["folder"], []
    if not folder["atomic_writes"]:
        out.append(f"this folder cannot be written safely ({folder['reason']}): choose another with --out")
    elif folder["free_gib"] < 2:
        out.append(f"only {folder['free_gib']} GiB free here: a prepared dataset may not fit")
    if machine["torch_threads"] > machine["usable_cores"]:
        out.append(
            f"torch uses {machine['torch_threads']} threads on {machine['usable_cores']} usable cores, "
            f"slower than it needs to be: set OMP_NUM_THREADS={machine['usable_cores']}"
        )
    memory = machine["memory_gib"]
    if memory and memory["available"] < 3:
        out.append(f"only {memory['available']} GiB of memory available: plan with a smaller --memory")
    return out


def _print(out: Console, result: Mapping[str, Any]) -> None:
    from rich.markup import escape

    def line(name: str, text: str) -> None:
        out.print(f"[bold]{name:<10} [/]{escape(text)}")

    line("versions", "  ".join(f"{k} {v or 'missing'}" for k, v in result["versions"].items()))
    for extra, missing in result["extras"].items():
        lacks = f"not installed ({', '.join(missing)}): pip install 'seguro[{extra}]'"
        line(extra, lacks if missing else "installed")
    machine, memory = result["machine"], result["machine"]["memory_gib"]
    amount = f"{memory['available']} of {memory['total']} GiB memory free" if memory else "memory unknown"
    line("machine", f"{machine['usable_cores']} cores, {machine['torch_threads']} torch threads, {amount}")
    line("shared", "no /dev/shm" if machine["shm_gib"] is None else f"/dev/shm {machine['shm_gib']} GiB")
    line("GPU", ", ".join(machine["gpus"]) or "none; everything runs on the CPU")
    folder = result["folder"]
    writes = "atomic writes work" if folder["atomic_writes"] else f"writes fail: {folder['reason']}"
    line("folder", f"{folder['free_gib']} GiB free, {writes}")
    if speed := result["speed"]:
        line(
            "speed",
            f"{speed['gflops']:g} GFLOP/s in 3-D convolutions on {speed['device']}: about "
            f"{speed['minutes_per_1000_updates']:g} minutes per 1000 updates of two 64x64x64 patches",
        )


def _next(result: Mapping[str, Any]) -> str:
    return "seguro check FOLDER" if result["extras"]["demo"] else "seguro demo"
