"""The memory that this process uses, and how much it can still get from the host, its cgroup, or a GPU.

Reads Linux and CUDA. Must not know what a job needs.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch


def reachable_bytes(device: torch.device) -> int | None:
    """Bytes of a device that this process holds or can still get; None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + int(torch.cuda.memory_reserved(device))
    left = available_bytes()
    return None if left is None else left + resident_bytes()


def available_bytes() -> int | None:
    """Bytes that this process can still get from the host and its cgroup; None if unknown."""
    found = (_host_bytes(), _cgroup_bytes(Path("/sys/fs/cgroup")))
    return min((bytes_left for bytes_left in found if bytes_left is not None), default=None)


def _host_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def _cgroup_bytes(folder: Path) -> int | None:
    """Bytes left in a version 2 cgroup, not counting its file caches as used; None without a limit."""
    try:
        names = ("memory.max", "memory.current", "memory.stat")
        limit, current, stat = ((folder / name).read_text().strip() for name in names)
    except OSError:
        return None
    if not limit.isdigit():
        return None
    counts = dict(line.split() for line in stat.splitlines())
    cached = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(limit) - int(current) + cached)


def resident_bytes() -> int:
    """Bytes that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
