"""A child process that runs as long as its parent, and is restarted when it ends.

Knows processes and signals. Must not know what runs in the child.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from salem import parent_death

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
STEADY_AFTER_S = 60.0  # after running this long, a child restarts with the first delay again
POLL_S = 0.05


@dataclass
class Child:
    """A command that should run as long as its parent."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    restart_at: float | None = None

    def start(self) -> None:
        """Start the child in its own session, so that Ctrl-C reaches only the parent, which stops all.

        Call this from the main thread only: the child ends with the thread that forked it.
        """
        self.process = subprocess.Popen(
            parent_death.command(self.command, signal.SIGKILL),
            env=dict(self.environment),
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started_at = time.monotonic()
        self.restart_at = None

    @property
    def exit_status(self) -> int | None:
        """None while it runs, and before it starts."""
        return None if self.process is None else self.process.poll()

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the child still runs."""
        if self.process is not None and self.runs:
            self.process.send_signal(number)

    def plan_restart(self) -> float:
        """Plan the next start, and return the seconds until then.

        The delay doubles each time, until the child has run for a while.
        """
        now = time.monotonic()
        delay_s = FIRST_DELAY_S if now - self.started_at > STEADY_AFTER_S else self.delay_s
        self.delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        self.restart_at = now + delay_s
        return delay_s


def wait_for_end(children: Sequence[Child], timeout_s: float) -> bool:
    """Whether all children end within the time."""
    deadline = time.monotonic() + timeout_s
    while any(child.runs for child in children):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
