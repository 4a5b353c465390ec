"""Ends a child process when its parent ends, however the parent ended (Linux).

`command` wraps a command line: the child runs this file, asks the kernel for a signal at its parent's death,
and then becomes the command. No Python of the parent runs between fork and exec.
Must not know what runs. Imports only the standard library, so that a child starts quickly.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, at_death: signal.Signals) -> None:
    """Ask the kernel to send this process `at_death` when its parent ends, or now if it has already ended.

    Read `parent_pid` before the fork: afterwards, the parent may already be another process. For the kernel,
    the parent is the *thread* that forked: if that thread ends, its children end too. On systems other than
    Linux, this does nothing.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_death)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), at_death)


def command(argv: Sequence[str], at_death: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command line that runs `argv` as a child that ends with this process."""
    isolated = ["-I", "-S"]  # without site packages and environment, Python starts faster
    return [sys.executable, *isolated, __file__, str(os.getpid()), str(int(at_death)), *argv]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execvp(sys.argv[3], sys.argv[3:])
