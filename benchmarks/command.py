"""What every benchmark command shares: how it starts, its quick mode, and its progress lines.

A benchmark that does not find its models and data ends with one sentence and exit status 2. `QUICK=1` in
the environment makes every benchmark measure a small slice, in less than 8 minutes on two cores. Progress
goes to stderr and results go to stdout. Does not know what a benchmark measures.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from salem.errors import Misconfigured

NOT_FOUND = 2  # exit status when the models and data are missing


def exit_status(main: Callable[[], int]) -> int:
    """Run a benchmark's `main` and return its exit status, or 2 with one sentence if its data is missing."""
    try:
        return main()
    except Misconfigured as error:
        print(error.message, file=sys.stderr)
        return NOT_FOUND


def quick() -> bool:
    """Whether QUICK=1 asks for a small slice."""
    return os.environ.get("QUICK", "") not in ("", "0")


class Progress:
    """Prints one line on stderr for each step, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {step}", file=sys.stderr, flush=True)
