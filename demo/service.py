"""Runs `salem serve` for the demo, with an empty home and a free port, and stops it afterward.

Must not know which requests the demo sends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salem import parent_death
from salem.errors import Unavailable

START_TIMEOUT_S = 180.0  # the first import of torch from a cold disk is slow
STOP_TIMEOUT_S = 15.0
POLL_S = 0.1
ADDRESS = re.compile(r"Salem serves at (http://\S+)")
KEPT_SETTINGS = ("SALEM_DEVICE", "SALEM_NUM_THREADS")


@contextmanager
def running_service(home: Path, models_root: Path) -> Iterator[str]:
    """Serve from an emptied home while the block runs; yield the service's URL.

    Raises:
        Unavailable: the service stopped or did not answer in time. Its log is next to the home.
    """
    shutil.rmtree(home, ignore_errors=True)
    log = home.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            parent_death.command([sys.executable, "-m", "app.cli", "serve"]),
            env=environment(home, models_root),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the demo, which stops the service
        )
    try:
        yield _await_address(process, log)
    finally:
        _end(process)


def environment(home: Path, models_root: Path) -> dict[str, str]:
    """Return this process's environment with the demo's settings in place of Salem's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_SETTINGS
        or (name not in ("DATABASE_URL", "REDIS_URL", "BLOB_URL") and not name.startswith("SALEM_"))
    }
    return kept | {
        "SALEM_HOME": str(home.resolve()),
        "SALEM_MODELS_ROOT": str(models_root.resolve()),
        "SALEM_PORT": "0",
    }


def _await_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if said := ADDRESS.search(log.read_text(errors="replace")):
            return said[1]
        time.sleep(POLL_S)
    raise Unavailable("The service did not start.", remedy=f"See {log}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
