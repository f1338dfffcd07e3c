"""What is left of main memory: of the machine, and of a container's limit."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core import memory
from seguro.core.memory import Memory, main_memory, peak, reset_peak

GIB = 1 << 30


def system(root, **groups):
    """Write a machine of 16 GiB, 8 available, and files of its memory group."""
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text(
        f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {8 << 20} kB\n"
    )
    for name, text in groups.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, Memory(16 * GIB, 8 * GIB)),
        ({"memory_dot_max": "max\n", "memory_dot_current": "1\n"}, Memory(16 * GIB, 8 * GIB)),
        (
            {
                "memory_dot_max": f"{4 * GIB}\n",
                "memory_dot_current": f"{3 * GIB}\n",
                "memory_dot_stat": f"anon 1\ninactive_file {GIB}\n",
            },
            Memory(4 * GIB, 2 * GIB),
        ),
        (
            {
                "memory__memory_dot_limit_in_bytes": f"{12 * GIB}\n",
                "memory__memory_dot_usage_in_bytes": f"{GIB}\n",
                "memory__memory_dot_stat": "total_inactive_file 0\n",
            },
            Memory(12 * GIB, 8 * GIB),
        ),
        (
            {
                "memory__memory_dot_limit_in_bytes": f"{2**63 - 4096}\n",
                "memory__memory_dot_usage_in_bytes": f"{GIB}\n",
                "memory__memory_dot_stat": "total_inactive_file 0\n",
            },
            Memory(16 * GIB, 8 * GIB),
        ),
    ],
    ids=["machine", "no limit", "limit", "limit of version 1", "no limit of version 1"],
)
def test_the_least_of_machine_and_container(tmp_path, groups, expected):
    assert main_memory(system(tmp_path, **groups)) == expected


@pytest.mark.parametrize("text", [None, "", "MemTotal: x kB\nMemAvailable: y kB\n", "MemTotal: 5 kB\n"])
def test_a_system_that_does_not_say(tmp_path, text):
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "meminfo").write_text(text)
    assert main_memory(tmp_path) is None


def test_a_peak_counts_from_the_reset_and_stays_when_memory_is_given_back():
    held = reset_peak()
    if held is None:
        pytest.skip("this system does not tell the peak of a process")
    size = 64 << 20
    block = np.ones(size, np.uint8)
    del block
    assert 0.9 * size < peak() - held < 1.5 * size
    assert reset_peak() - held < 0.5 * size and peak() - held < 0.5 * size


def test_a_system_without_the_files_of_processes_gives_none(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    assert reset_peak() is None and peak() is None
