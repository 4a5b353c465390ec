"""Blobs: bytes named by their sha256, in a folder or any store that fsspec knows (s3://, memory://, …).

A name says what the bytes are, so a blob is never changed, and reading one proves it.
Does not know what a blob means or who needs it: `sweep` is told. A forked child connects anew.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from salem.errors import BlobCorrupted, BlobMissing, Misconfigured, NotFound, SalemError, Unavailable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.part")
_OWNER = "installation"  # the file at the root that says whose the store is
# S3's codes for what is renewed by itself, though its driver speaks of permission
_PASSING = ("ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed")
_MOMENT_FIELDS = ("LastModified", "mtime", "modified", "updated", "created")  # each store has its own


class BlobStore:
    """A content-addressed store. A blob lies at `<root>/<first two digits>/<digest>`."""

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    @classmethod
    def connect(cls, url: str) -> BlobStore:
        """Name a store: a folder's path, or a URL of fsspec. Nothing is opened yet.

        Raises:
            Misconfigured: no such kind of store, or its driver is not installed.
        """
        try:
            files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise Misconfigured(
                "the blob URL cannot be used", remedy='for s3:// install it with: pip install "salem[s3]"'
            ) from error
        return cls(files, root)

    def put(self, data: bytes) -> str:
        """Keep bytes and return their sha256. Nobody ever sees a part of a blob.

        One that is there already is written again: that makes it young, out of reach of a sweep under way.
        """
        digest = hashlib.sha256(data).hexdigest()
        with self._reaching(digest):
            self._write(self._path(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            NotFound: no blob can have that name.
            BlobMissing: there is none of that name.
            BlobCorrupted: what is stored there is something else.
        """
        with self._reaching(digest):
            try:
                data: bytes = self._files.cat_file(self._path(digest))
            except FileNotFoundError as error:
                raise BlobMissing(
                    f"the stored file {digest[:12]}… is gone",
                    remedy="restore it from a backup, or see whether the blob store is the right one",
                ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise BlobCorrupted(
                f"the stored file {digest[:12]}… is damaged and was not used",
                remedy="restore it from a backup, or make what it held again",
            )
        return data

    def exists(self, digest: str) -> bool:
        with self._reaching(digest):
            return bool(self._files.isfile(self._path(digest)))

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not there is removed already."""
        with self._reaching(digest):
            path = self._path(digest)
            with suppress(FileNotFoundError):  # another process removes it, too
                if self._files.isfile(path):
                    self._files.rm_file(path)

    def digests(self) -> Iterator[tuple[str, datetime]]:
        """Every blob and when it was last written."""
        for path, modified_at in self._listing():
            name = path.rpartition("/")[2]
            if self._is_ours(path) and _DIGEST.fullmatch(name):
                yield name, modified_at

    def claim(self, owner: str, known: Set[str]) -> bool:
        """Whether the store is the owner's, to be swept by what it knows.

        A file at the root says whose it is. Where none says so, the store becomes the owner's if it is empty
        or holds a blob that is `known`: another's blobs would all seem unneeded.
        """
        path = f"{self._root}/{_OWNER}"
        with self._reaching(_OWNER):
            if self._files.isfile(path):
                return bool(self._files.cat_file(path).decode(errors="replace").strip() == owner)
        here = {digest for digest, _ in self.digests()}
        if here and not here & known:
            return False
        with self._reaching(_OWNER):
            self._write(path, owner.encode())
        return True

    def sweep(self, in_use: Set[str], older_than_s: float) -> int:
        """Remove blobs that nobody needs, and remains of writes cut short; returns how many.

        A blob is written before what needs it is recorded, so the young are spared, also one that was written
        again since the store was listed. Files that are not where blobs lie are none of ours.
        """
        oldest_kept = datetime.now(UTC) - timedelta(seconds=older_than_s)
        num_removed = 0
        for path, modified_at in self._listing():
            name = path.rpartition("/")[2]
            unneeded = _UNFINISHED.fullmatch(name) or (_DIGEST.fullmatch(name) and name not in in_use)
            if unneeded and self._is_ours(path) and modified_at < oldest_kept:
                num_removed += self._remove_if_old(path, oldest_kept)
        return num_removed

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            _write_by_rename(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def _is_ours(self, path: str) -> bool:
        """Whether a file lies where a blob of its name, or an unfinished one, would."""
        name = path.rpartition("/")[2]
        return path == f"{self._root}/{name[:2]}/{name}"

    def _remove_if_old(self, path: str, oldest_kept: datetime) -> bool:
        with self._reaching(path.rpartition("/")[2]):
            try:
                self._files.invalidate_cache()
                if _modified_at(self._files.info(path)) >= oldest_kept:
                    return False
                self._files.rm_file(path)
            except FileNotFoundError:
                return False  # another process sweeps, too
        return True

    def _listing(self) -> list[tuple[str, datetime]]:
        with self._reaching(self._root):
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
            return [(path, _modified_at(info)) for path, info in found.items()]

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise NotFound("there is no stored file of that name")
        return f"{self._root}/{digest[:2]}/{digest}"

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except SalemError:
            raise
        except Exception as error:  # each driver of fsspec raises what its own library raises
            raise _trouble(error) from error


def _trouble(error: Exception) -> SalemError:
    """What keeps a store from answering: what time heals, and what only a person can."""
    said = getattr(error.__cause__, "response", None) or {}
    if said.get("Error", {}).get("Code") in _PASSING:
        return Unavailable("the blob store does not answer", remedy="try again shortly")
    if isinstance(error, FileNotFoundError):
        return Misconfigured("the blob store is not there", remedy="make it, or set BLOB_URL")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return Misconfigured(
            "the blob store may not be used", remedy="let this process read and write there, or set BLOB_URL"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable("the blob store is full", remedy="free some space there")
    return Unavailable("the blob store does not answer", remedy="try again shortly")


def _write_by_rename(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all, also after a power cut."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified_at(info: dict[str, Any]) -> datetime:
    moment = next((info[field] for field in _MOMENT_FIELDS if info.get(field) is not None), None)
    if isinstance(moment, datetime):
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC)
    return datetime.now(UTC)  # a store that does not say: never old enough to be swept
