"""`salem serve` as a user runs it: one command, everything up; one signal, everything gone."""

from __future__ import annotations

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

from app.supervisor import environment
from salem.settings import Settings

START_TIMEOUT_S = 90.0


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")  # short: a Unix socket's path has little room


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app.cli", "serve", *arguments]
        env = {**os.environ, "SALEM_HOME": str(home), "SALEM_NUM_THREADS": "1", **variables}
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


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


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def members(home: Path) -> set[int]:
    """Every living process that was started for this home, by the variable that all of them inherit."""
    mark = f"SALEM_HOME={home}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_ends_everything_within_ten_seconds(
    serve: Callable[..., subprocess.Popen[str]], home: Path
) -> None:
    port = free_port()
    process = serve("--port", str(port))
    assert wait_until(lambda: ready(port), START_TIMEOUT_S)
    assert len(members(home)) >= 4  # itself, Redis, API, worker
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=15)
    assert time.monotonic() - began < 10
    assert process.returncode == 0
    assert f"Salem serves at http://127.0.0.1:{port}" in output
    assert "Traceback" not in output
    assert members(home) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kill_9_of_the_parent_leaves_no_orphan(
    serve: Callable[..., subprocess.Popen[str]], home: Path
) -> None:
    port = free_port()
    process = serve("--port", str(port))
    assert wait_until(lambda: ready(port), START_TIMEOUT_S)
    process.kill()
    process.wait()
    assert wait_until(lambda: members(home) == set(), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_that_dies_is_started_again(serve: Callable[..., subprocess.Popen[str]], home: Path) -> None:
    port = free_port()
    process = serve("--port", str(port), "--workers", "0")
    url = f"http://127.0.0.1:{port}/healthz"

    def alive() -> bool:
        try:
            return httpx.get(url, trust_env=False, timeout=1).is_success
        except httpx.HTTPError:
            return False

    assert wait_until(alive, START_TIMEOUT_S)
    before = members(home)
    os.kill(max(before - {process.pid}), signal.SIGKILL)
    assert wait_until(lambda: not members(home) >= before, 5)
    assert wait_until(lambda: len(members(home)) == len(before) and alive(), START_TIMEOUT_S)


def test_an_open_address_is_refused_with_the_reason(serve: Callable[..., subprocess.Popen[str]]) -> None:
    output, _ = (process := serve("--host", "0.0.0.0")).communicate(timeout=30)
    assert process.returncode == 1
    assert "no API key is set" in output and "SALEM_API_KEY" in output and "Traceback" not in output


def test_a_taken_port_is_refused_with_the_reason(serve: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = serve("--port", str(listener.getsockname()[1]))
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is taken" in output and "Traceback" not in output


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
