"""`salem serve`: starts a private Redis, the API, and the workers, watches them, and stops them in order.

Knows what runs, in which order, and how long each may take to stop. Must not know routes, jobs, or tensors.
SQL is the system of record, so any process may be killed at any time: the next start resumes its work.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import httpx
from pydantic import AliasChoices, SecretStr

from app.service.address import bind, display_host, refuse_open_address
from app.service.processes import Child, wait_for_end
from salem.errors import SalemError
from salem.queue.private_redis import PrivateRedis
from salem.settings import Settings
from salem.storage.registry import Registry

START_TIMEOUT_S = 180.0  # the first import of torch on a cold disk takes long
WARM_STOP_S = 3.0  # a worker may take this long to finish its job
COLD_STOP_S = 3.0  # and then this long to stop the job
REDIS_STOP_S = 2.0
REDIS_DELAY_S = 30.0  # after a start that failed
POLL_S = 0.2
# Torch threads that wait for one another sleep instead of spinning. On shared cores, a spinning thread takes
# time from the one that it waits for: a job took three times as long.
THREADS_SLEEP = {"OMP_WAIT_POLICY": "passive"}


class Supervisor:
    """One `salem serve`. `run` returns when everything has stopped."""

    def __init__(self, settings: Settings, *, num_workers: int, say: Callable[[str], object]) -> None:
        self._settings = settings
        self._num_workers = num_workers
        self._say = say
        self._num_signals = 0
        self._redis: PrivateRedis | None = None
        self._next_redis_at = 0.0

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM, and return the exit status.

        Raises:
            Misconfigured: other machines can reach the address and there is no key, or there is no Redis.
            Conflict: the port is in use, or another process serves from the same home.
            Unavailable: SQL or the private Redis does not answer.
        """
        refuse_open_address(self._settings)
        self._settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._settings.effective_models_root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            listener = stack.enter_context(bind(self._settings.host, self._settings.port))
            self._migrate()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            if self._settings.redis_url is None:
                self._redis = PrivateRedis.start(self._settings)
            api, workers = self._children(listener)
            try:
                return self._watch(api, workers, listener.getsockname()[1])
            finally:
                self._stop(api, workers)

    def _migrate(self) -> None:
        registry = Registry.connect(self._settings.effective_database_url)
        registry.migrate()
        registry.close()

    def _children(self, listener: socket.socket) -> tuple[Child, list[Child]]:
        variables = environment(self._settings)
        descriptor = listener.fileno()
        # -P: do not import files from the current folder instead of ours
        serve_api = [sys.executable, "-P", "-m", "app.main", "--fd", str(descriptor)]
        api = Child("api", serve_api, variables, pass_fds=(descriptor,))
        work = [sys.executable, "-P", "-m", "worker.main"]
        workers = [Child(f"worker {number}", work, variables) for number in range(1, self._num_workers + 1)]
        return api, workers

    def _watch(self, api: Child, workers: list[Child], port: int) -> int:
        """Start all, report when they answer, and restart those that end, until a signal comes."""
        for child in (api, *workers):
            child.start()
        if not self._await_api(api, port):
            if self._num_signals:
                return 0
            self._say(f"the API did not start (status {api.exit_status}); its log above says why")
            return 1
        self._say(f"Salem serves at http://{display_host(self._settings.host)}:{port}  (Ctrl-C ends it)")
        while not self._num_signals:
            self._keep_redis()
            for child in (api, *workers):
                self._keep(child)
            time.sleep(POLL_S)
        self._say("ending …")
        return 0

    def _await_api(self, api: Child, port: int) -> bool:
        """Whether the API answers before it ends, a signal comes, or the time is up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        url = f"http://{display_host(self._settings.host)}:{port}/healthz"
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            while api.runs and not self._num_signals and time.monotonic() < deadline:
                try:
                    if client.get(url).is_success:
                        return True
                except httpx.HTTPError:
                    time.sleep(POLL_S)
        return False

    def _keep(self, child: Child) -> None:
        if child.runs:
            return
        if child.restart_at is None:
            status = child.exit_status
            self._say(
                f"{child.name} ended with status {status}; starting it again in {child.plan_restart():.0f} s"
            )
        elif time.monotonic() >= child.restart_at:
            child.start()

    def _keep_redis(self) -> None:
        """Restart Redis if it ended. Meanwhile jobs wait in SQL, and predictions work."""
        if self._redis is None or self._redis.running or time.monotonic() < self._next_redis_at:
            return
        self._say("the private Redis ended; starting it again")
        try:
            self._redis = PrivateRedis.start(self._settings, until=lambda: self._num_signals > 0)
        except (SalemError, OSError) as error:
            why = f"{error.message} ({error.remedy})" if isinstance(error, SalemError) else str(error)
            self._next_redis_at = time.monotonic() + REDIS_DELAY_S
            self._say(f"{why}; trying again in {REDIS_DELAY_S:.0f} s")

    def _stop(self, api: Child, workers: list[Child]) -> None:
        """Stop all within 10 s: API and workers first, and Redis last, because workers sign off there."""
        children = [api, *workers]
        for child in children:
            child.signal(signal.SIGTERM)
        if not wait_for_end(children, 0 if self._num_signals > 1 else WARM_STOP_S):
            for child in workers:
                child.signal(signal.SIGTERM)  # RQ: the second one stops the job too
            if not wait_for_end(children, 0 if self._num_signals > 1 else COLD_STOP_S):
                for child in children:
                    child.signal(signal.SIGKILL)
                wait_for_end(children, 1.0)
        if self._redis is not None:
            self._redis.stop(REDIS_STOP_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1


def environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with variables that give a child the same settings."""
    variables = {**THREADS_SLEEP, **os.environ}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
        for variable in names or [f"SALEM_{name.upper()}"]:
            variables.pop(variable, None)
            if value is not None:
                variables[variable] = _as_text(value)
    return variables


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.resolve()) if isinstance(value, Path) else str(value)
