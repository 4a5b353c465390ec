"""How much memory the host, its control group, and this process report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker.attempts import machine_memory
from worker.attempts.machine_memory import _cgroup_bytes, available_bytes, reachable_bytes, resident_bytes


def test_the_limit_of_a_control_group_is_read(tmp_path: Path) -> None:
    assert _cgroup_bytes(tmp_path) is None
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 0\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _cgroup_bytes(tmp_path) == 700
    # A group that has read many files looks full, but they make room.
    (tmp_path / "memory.stat").write_text("anon 100\nactive_file 150\ninactive_file 50\nshmem 9\n")
    assert _cgroup_bytes(tmp_path) == 900
    (tmp_path / "memory.stat").write_text("anon 300\n")
    (tmp_path / "memory.max").write_text("200\n")
    assert _cgroup_bytes(tmp_path) == 0


def test_a_used_up_control_group_leaves_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "_cgroup_bytes", lambda folder: 0)
    assert available_bytes() == 0


def test_memory_that_the_host_does_not_report_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: None)
    assert reachable_bytes(torch.device("cpu")) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="asks Linux")
def test_memory_that_the_process_already_holds_counts_as_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: 10**6)
    assert (reachable_bytes(torch.device("cpu")) or 0) > 10**6 + 2**20


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="asks Linux")
def test_this_host_reports_its_memory() -> None:
    assert (available_bytes() or 0) > 2**20 and resident_bytes() > 2**20
