"""`salem serve` as a user runs it: one command starts everything, and one signal ends everything."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.service.supervisor import Supervisor, environment
from salem.errors import Unavailable
from salem.queue.private_redis import PrivateRedis
from salem.settings import Settings

START_TIMEOUT_S = 90.0


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")  # short: a Unix socket's path has little room


class Serve:
    """One `salem serve` with its own home. Its output goes to a file."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        self.log = home / "serve.log"
        command = [sys.executable, "-m", "app.cli", "serve", *arguments]
        env = {**os.environ, "SALEM_HOME": str(home), "SALEM_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def members(self) -> set[int]:
        """Every living process of this home. All inherit a variable, but Redis overwrites it with a title."""
        variable, folder = f"SALEM_HOME={self.home}".encode(), f"{self.home}/redis".encode()
        return {
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit()
            and (variable in read_proc(process / "environ") or folder in read_proc(process / "cmdline"))
        }


def read_proc(path: Path) -> bytes:
    """A file of /proc, or nothing if the process has just ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(*arguments: str) -> Serve:
        started.append(Serve(home, *arguments))
        return started[-1]

    yield start
    for serve in started:
        serve.process.kill()
        serve.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=2).is_success
    except httpx.HTTPError:
        return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_ctrl_c_ends_everything(serve: Callable[..., Serve]) -> None:
    port = free_port()
    service = serve("--port", str(port))
    assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), START_TIMEOUT_S), service.output
    assert wait_until(lambda: f"Salem serves at http://127.0.0.1:{port}" in service.output, 10)
    assert len(service.members()) >= 4  # itself, Redis, API, worker
    service.process.send_signal(signal.SIGINT)
    assert service.wait(30) == 0
    assert "Traceback" not in service.output
    assert service.members() == set()


@linux
def test_kill_9_of_the_parent_leaves_no_orphan(serve: Callable[..., Serve]) -> None:
    port = free_port()
    service = serve("--port", str(port))
    assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), START_TIMEOUT_S), service.output
    service.process.kill()
    service.wait(5)
    assert wait_until(lambda: service.members() == set(), 10)


@linux
def test_children_that_die_are_restarted(serve: Callable[..., Serve]) -> None:
    port = free_port()
    service = serve("--port", str(port), "--workers", "0")
    assert wait_until(lambda: "Salem serves at" in service.output, START_TIMEOUT_S), service.output
    before = service.members()
    for child in before - {service.process.pid}:
        os.kill(child, signal.SIGKILL)

    def back() -> bool:
        now = service.members()
        anew = len(now) == len(before) and now & before == {service.process.pid}
        return anew and answers(f"http://127.0.0.1:{port}/healthz")

    assert wait_until(back, START_TIMEOUT_S), service.output


class Redis:
    """A private Redis that runs or does not."""

    def __init__(self, running: bool) -> None:
        self.running = running


def test_a_private_redis_that_stays_down_stops_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    supervisor = Supervisor(Settings(home=home), num_workers=0, say=said.append)
    outcomes: list[Redis | Exception] = [
        Unavailable("it did not start", remedy="look"),
        OSError(errno.ENOSPC, "No space left on device"),
        Redis(running=True),
    ]

    def start(_: Settings, until: Callable[[], bool]) -> Redis:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(PrivateRedis, "start", start)
    monkeypatch.setattr(supervisor, "_redis", Redis(running=False))
    supervisor._keep_redis()
    supervisor._keep_redis()  # within the pause
    assert len(outcomes) == 2 and said[-1] == "it did not start (look); trying again in 30 s"
    monkeypatch.setattr(supervisor, "_next_redis_at", 0.0)
    supervisor._keep_redis()
    assert len(outcomes) == 1 and said[-1].endswith("No space left on device; trying again in 30 s")
    monkeypatch.setattr(supervisor, "_next_redis_at", 0.0)
    for _ in range(2):
        supervisor._keep_redis()
    assert not outcomes and len(said) == 5


def test_an_open_address_is_refused_with_the_reason(serve: Callable[..., Serve]) -> None:
    service = serve("--host", "0.0.0.0")
    assert service.wait(30) == 1
    assert "no API key is set" in service.output and "SALEM_API_KEY" in service.output
    assert "Traceback" not in service.output


def test_a_taken_port_is_refused_with_the_reason(serve: Callable[..., Serve]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = serve("--port", str(listener.getsockname()[1]))
        assert service.wait(30) == 1
    assert "is in use" in service.output and "Traceback" not in service.output


def test_children_read_the_same_settings(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    settings = Settings(
        home=home, redis_url=None, models_root=tmp_path, api_key=SecretStr("k"), log_json=True, port=1
    )
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"redis_url": os.environ.get("REDIS_URL")})


def test_waiting_threads_of_children_sleep_unless_the_operator_decides(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment(Settings(home=home))["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert environment(Settings(home=home))["OMP_WAIT_POLICY"] == "active"
