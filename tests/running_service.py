"""One `salem serve` as users run it (API, worker, private Redis) and an HTTP client for it.

Knows the service's routes and, on Linux, its processes. Does not know what a test wants to show.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from salem.settings import Settings
from salem.storage.registry import Registry

START_TIMEOUT_S = 90.0
JOB_TIMEOUT_S = 60.0
POLL_S = 0.02
LEASE_S = 2.0  # short: a test that kills a work-horse waits for its lease to expire
RECONCILE_S = 0.3

Document = dict[str, Any]


@dataclass(frozen=True)
class Service:
    """A running service: its home, its parent process, and a client of its API."""

    settings: Settings
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def post(self, path: str, body: Document) -> Document:
        """Send a request that must be accepted, and return the response."""
        response = self.client.post(path, json=body)
        assert response.is_success, response.text
        answer: Document = response.json()
        return answer

    def get(self, path: str) -> Document:
        response = self.client.get(path)
        assert response.is_success, response.text
        answer: Document = response.json()
        return answer

    def register(self, name: str, task: str, reference: Sequence[Document]) -> Document:
        """Host the folder of this name, and return the finished job."""
        source = {"kind": "folder", "path": name}
        body = {"name": name, "task": task, "source": source, "reference": list(reference)}
        return self.wait(self.post("/models", body)["id"])

    def edit(self, model: str, edits: Sequence[Document], **more: Any) -> Document:
        """Correct a model, and return the finished job."""
        return self.wait(self.post("/edits", {"model": model, "edits": list(edits), **more})["id"])

    def wait(self, job_id: str, timeout_s: float = JOB_TIMEOUT_S) -> Document:
        """Wait for a job to end, and return it."""
        return self.watch(job_id, timeout_s)[-1]

    def watch(self, job_id: str, timeout_s: float = JOB_TIMEOUT_S) -> list[Document]:
        """Every state of the job that a quick poller sees, up to its end."""
        seen = [self.get(f"/jobs/{job_id}")]
        deadline = time.monotonic() + timeout_s
        while seen[-1]["finished_at"] is None:
            assert time.monotonic() < deadline, f"{seen[-1]}\n{self.log.read_text()}"
            time.sleep(POLL_S)
            seen.append(self.get(f"/jobs/{job_id}"))
        return seen

    def answers(self, model: str, inputs: Sequence[str]) -> list[str]:
        answer = self.post("/predict", {"model": model, "inputs": list(inputs)})
        return [prediction["output"] for prediction in answer["predictions"]]

    def versions(self, model: str) -> list[Document]:
        """Newest first."""
        found: list[Document] = self.get(f"/models/{model}/versions")["data"]
        return found

    def orphaned_blobs(self) -> set[str]:
        """Blobs on disk that no row names; a sweep would remove them."""
        registry = Registry.connect(self.settings.effective_database_url)
        try:
            stored = {path.name for path in (self.settings.home / "blobs").rglob("*") if path.is_file()}
            return stored - registry.blobs_in_use()
        finally:
            registry.close()

    @property
    def worker_pid(self) -> int:
        """The process that forks work-horses."""
        return next(pid for pid in children(self.process.pid) if b"worker.main" in _read(pid, "cmdline"))

    def work_horse(self) -> int:
        """Wait for the process that runs the current job, and return its id."""
        worker = self.worker_pid
        wait_until(lambda: bool(children(worker)))
        return children(worker)[0]


@contextmanager
def running(settings: Settings, log: Path, packages: Path | None = None) -> Iterator[Service]:
    """`salem serve` on a free port until the block ends; its models lie in the settings' home.

    With `packages`, the service and its worker run from the packages in that folder.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SALEM_") and name not in ("DATABASE_URL", "REDIS_URL", "BLOB_URL")
    } | {
        "SALEM_HOME": str(settings.home),
        "SALEM_NUM_THREADS": "1",
        "SALEM_LEASE_S": str(LEASE_S),
        "SALEM_RECONCILE_S": str(RECONCILE_S),
        "SALEM_DEVICE": "cpu",
        "SALEM_SCOPE_ENCODER": settings.scope_encoder,
    }
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=packages, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=_address(process, log), timeout=30.0, trust_env=False) as client:
            wait_until(lambda: client.get("/readyz").is_success, START_TIMEOUT_S)
            yield Service(settings, process, client, log)
    finally:
        process.terminate()
        process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the service prints."""

    def said() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"Salem serves at (http://\S+)", log.read_text())

    wait_until(lambda: said() is not None, START_TIMEOUT_S)
    found = said()
    assert found is not None
    return found[1]


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until the condition holds; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out while waiting"
        time.sleep(POLL_S)


def children(pid: int) -> list[int]:
    """The living child processes of a process (Linux)."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [child for child in found if _parent(child) == pid and alive(child)]


def _parent(pid: int) -> int | None:
    stat = _read(pid, "stat").rpartition(b") ")[2].split()
    return int(stat[1]) if stat else None


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not."""
    return b") Z " not in (stat := _read(pid, "stat")) and bool(stat)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
