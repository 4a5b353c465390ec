"""Settings of one process, read once from the environment in an entry point and passed in.

Knows names, defaults and which settings exclude one another. Opens nothing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from salem.records import MOST_ITEMS

_MAX_SOCKET_PATH_BYTES = 100


class Settings(BaseSettings):
    """Every setting of Salem; docs/settings.md lists them (a test compares)."""

    model_config = SettingsConfigDict(env_prefix="SALEM_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Path.home() / ".salem"
    """Where the embedded database, blobs, Redis socket and models live when nothing else is configured."""
    models_root: Path | None = None
    """The folder under which `folder` sources are found; default `<home>/models`."""
    database_url: str | None = Field(
        None, validation_alias=AliasChoices("DATABASE_URL", "SALEM_DATABASE_URL")
    )
    """SQLAlchemy URL; default SQLite in `<home>/salem.db`."""
    redis_url: str | None = Field(None, validation_alias=AliasChoices("REDIS_URL", "SALEM_REDIS_URL"))
    """Redis URL; default a private server on a Unix socket under `<home>`."""
    blob_url: str | None = Field(None, validation_alias=AliasChoices("BLOB_URL", "SALEM_BLOB_URL"))
    """fsspec URL of the blob store; default `<home>/blobs`."""
    host: str = "127.0.0.1"
    """Address that the API binds."""
    port: int = Field(8321, ge=0, le=65535)
    """Port that the API binds; 0 takes a free one."""
    api_key: SecretStr | None = None
    """Bearer key asked of every request; required when `host` is not a loopback address."""
    queue: str = "salem"
    """Name of the RQ queue; one queue per worker."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda` or `cuda:N`: where models are loaded."""
    stream_weights: bool = False
    """Workers read blocks from the model's files as they run, and hold one: less memory, slower."""
    num_threads: int = Field(0, ge=0)
    """Torch threads per process; 0 leaves torch's own choice."""
    max_edits: int = Field(1_000, ge=1, le=MOST_ITEMS)
    """Most edits in one request."""
    max_body_bytes: int = Field(32 * 2**20, ge=1_024)
    """Largest request body."""
    max_predict_inputs: int = Field(256, ge=1, le=MOST_ITEMS)
    """Most inputs in one predict request."""
    max_queued_predictions: int = Field(32, ge=0)
    """Most predictions that wait for one model; more are refused with 429."""
    max_resident_models: int = Field(4, ge=1)
    """Hosted models that the API keeps in memory; the least recently used one goes first."""
    trunk_cache_bytes: int = Field(2 * 2**30, ge=0)
    """Most disk for what workers computed from pass samples, in `<home>/trunk-cache`; 0 keeps nothing."""
    memory_budget_bytes: int | None = Field(None, ge=1)
    """Most memory that an edit job may take on its device; default what it can get when it starts."""
    job_timeout_s: int = Field(3_600, ge=1)
    """Longest run of one job before it is stopped."""
    lease_s: float = Field(30.0, gt=0)
    """How long an attempt may stay silent before its job is given to another."""
    max_attempts: int = Field(3, ge=1)
    """Attempts of one job before it is failed for good."""
    reconcile_s: float = Field(5.0, gt=0)
    """Seconds between two looks for jobs that the queue has lost."""
    log_json: bool = False
    """JSON lines instead of readable ones."""

    @property
    def effective_models_root(self) -> Path:
        return self.models_root or self.home / "models"

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.home / 'salem.db').resolve()}"

    @property
    def effective_redis_url(self) -> str:
        return self.redis_url or f"unix://{self.redis_socket}"

    @property
    def effective_blob_url(self) -> str:
        return self.blob_url or str((self.home / "blobs").resolve())

    @property
    def trunk_cache_folder(self) -> Path:
        return self.home / "trunk-cache"

    @property
    def file_digests(self) -> Path:
        """Remembered sha256 of the model folders' files, so that workers do not hash weights for each job."""
        return self.home / "file-digests.json"

    @property
    def redis_socket(self) -> Path:
        """Socket of the private Redis; used when no `redis_url` is set.

        A socket's path has room for about 100 bytes. That of a deeper home lies in /tmp, in a folder whose
        name follows from the home alone, so that every process of the home finds it, whatever its TMPDIR is.
        """
        socket = (self.home / "redis" / "redis.sock").resolve()
        if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
        return Path(f"/tmp/salem-{os.getuid()}-{digest}/redis.sock")
