"""A lifeline: a child process that ends when its parent does, however the parent ended (Linux).

`command` wraps any command line: this file is run in the child, asks the kernel for a signal at the parent's
death, and becomes the command. Nothing stays in between, and no Python runs between fork and exec.
Knows the kernel's call. Does not know what runs. Imports the standard library alone, for a quick start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, at_death: signal.Signals) -> None:
    """Have the kernel send this process `at_death` when its parent ends; at once if it has ended already.

    The parent, for the kernel, is the *thread* that forked: a thread that ends takes its children along.
    Where the kernel has no such call nothing happens.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_death)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), at_death)


def command(argv: Sequence[str], at_death: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command line that runs `argv` as a child which ends with this process."""
    isolated = ["-I", "-S"]  # no site, no environment: it starts in hundredths of a second
    return [sys.executable, *isolated, __file__, str(os.getpid()), str(int(at_death)), *argv]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execvp(sys.argv[3], sys.argv[3:])
