"""The blob store, on a folder and on one of fsspec's other stores."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Set
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from salem.errors import BlobCorrupted, BlobMissing, Misconfigured, NotFound, SalemError, Unavailable
from salem.storage import blobs
from salem.storage.blobs import BlobStore

DATA = b"delta" * 100


def refused(code: str) -> PermissionError:
    """The error that the S3 driver raises for a refusal."""
    answer, error = ValueError(code), PermissionError(code)
    answer.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error.__cause__ = answer
    return error


DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    urls = {
        "folder": str(tmp_path / "a folder" / "blobs"),
        "file": f"file://{tmp_path}/blobs/",
        "memory": f"memory://{uuid.uuid4().hex}/blobs",
    }
    return BlobStore.connect(urls[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def in_folder(folder: Path) -> BlobStore:
    return BlobStore.connect(str(folder))


def test_a_blob_is_read_back_by_its_sha256(store: BlobStore) -> None:
    assert store.put(DATA) == DIGEST
    assert store.get(DIGEST) == DATA
    assert store.exists(DIGEST)


def test_an_empty_blob_can_be_stored(store: BlobStore) -> None:
    assert store.get(store.put(b"")) == b""


def test_storing_a_blob_twice_keeps_one(store: BlobStore) -> None:
    store.put(DATA)
    store.put(DATA)
    assert [digest for digest, _ in store.digests()] == [DIGEST]


def test_an_empty_store_lists_nothing(store: BlobStore) -> None:
    assert list(store.digests()) == []
    assert store.sweep(set(), older_than_s=0) == 0


def test_the_list_has_the_time_of_each_blob(store: BlobStore) -> None:
    store.put(DATA)
    store.put(b"other")
    listed = dict(store.digests())
    assert set(listed) == {DIGEST, hashlib.sha256(b"other").hexdigest()}
    assert all(abs(datetime.now(UTC) - moment) < timedelta(seconds=60) for moment in listed.values())


def test_delete_can_be_repeated(store: BlobStore) -> None:
    store.put(DATA)
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert not store.exists(DIGEST)
    with pytest.raises(BlobMissing, match=DIGEST[:12]):
        store.get(DIGEST)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", DIGEST.upper(), DIGEST + "\n", "a" * 63])
def test_only_a_digest_is_a_valid_name(store: BlobStore, name: str) -> None:
    for operation in (store.get, store.exists, store.delete):
        with pytest.raises(NotFound):
            operation(name)


def test_a_sweep_keeps_blobs_that_are_used_or_new(store: BlobStore) -> None:
    used, unused = store.put(DATA), store.put(b"unused")
    assert store.sweep({used}, older_than_s=60) == 0
    time.sleep(0.05)
    assert store.sweep({used}, older_than_s=0.01) == 1
    assert store.exists(used) and not store.exists(unused)


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA[:-1] + b"X", DATA + b"X"])
def test_a_damaged_blob_is_refused_and_can_be_stored_again(
    in_folder: BlobStore, folder: Path, damage: bytes
) -> None:
    in_folder.put(DATA)
    path = folder / DIGEST[:2] / DIGEST
    path.write_bytes(damage)
    with pytest.raises(BlobCorrupted) as caught:
        in_folder.get(DIGEST)
    assert caught.value.code == "blob_corrupted" and str(folder) not in caught.value.message
    in_folder.put(DATA)
    assert in_folder.get(DIGEST) == DATA


def test_a_sweep_removes_interrupted_writes_and_nothing_else(in_folder: BlobStore, folder: Path) -> None:
    in_folder.put(DATA)
    part = folder / DIGEST[:2] / f"{DIGEST}.{'0' * 16}.part"
    foreign = folder / "README"
    for path in (part, foreign):
        path.write_text("x")
        os.utime(path, (0, 0))
    assert [digest for digest, _ in in_folder.digests()] == [DIGEST]
    assert in_folder.sweep({DIGEST}, older_than_s=60) == 1
    assert foreign.exists() and not part.exists()


def test_files_outside_the_places_of_blobs_are_ignored(in_folder: BlobStore, folder: Path) -> None:
    in_folder.put(DATA)
    foreign = [folder / "lfs" / DIGEST[:2] / DIGEST, folder / DIGEST, folder / "00" / DIGEST]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA)
        os.utime(path, (0, 0))
    assert [digest for digest, _ in in_folder.digests()] == [DIGEST]
    assert in_folder.sweep(set(), older_than_s=60) == 0
    assert all(path.exists() for path in foreign)


def test_a_blob_that_is_written_again_during_a_sweep_stays(
    in_folder: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder.put(DATA)
    path = str(folder / DIGEST[:2] / DIGEST)
    listed = [(path, datetime.now(UTC) - timedelta(days=2))]  # as it was when the store was listed
    monkeypatch.setattr(in_folder, "_listing", lambda: listed)
    assert in_folder.sweep(set(), older_than_s=60) == 0
    assert in_folder.exists(DIGEST)
    os.utime(path, (0, 0))
    assert in_folder.sweep(set(), older_than_s=60) == 1
    assert in_folder.sweep(set(), older_than_s=60) == 0, "another process may have taken it away"


def stored_again_before_it_is_removed(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> list[threading.Thread]:
    """Let another thread store the blob right before `rm_file`, after the removal has decided."""
    remove, threads = store._files.rm_file, []

    def interrupted(path: str) -> None:
        if not path.endswith(DIGEST):
            return remove(path)
        written = threading.Event()
        write = store._write

        def write_and_tell(path: str, data: bytes) -> None:
            write(path, data)
            written.set()

        monkeypatch.setattr(store, "_write", write_and_tell)
        threads.append(threading.Thread(target=store.put, args=(DATA,)))
        threads[0].start()
        assert written.wait(10)
        return remove(path)

    monkeypatch.setattr(store._files, "rm_file", interrupted)
    return threads


def test_a_blob_that_is_stored_again_just_before_it_is_swept_is_there_afterwards(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(DATA)
    time.sleep(0.05)
    threads = stored_again_before_it_is_removed(store, monkeypatch)
    store.sweep(set(), older_than_s=0.01)
    threads[0].join(10)
    assert store.get(DIGEST) == DATA
    assert [digest for digest, _ in store.digests()] == [DIGEST], "and no mark is left"


def test_a_blob_that_is_stored_again_just_before_it_is_removed_is_there_afterwards(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(DATA)
    threads = stored_again_before_it_is_removed(store, monkeypatch)
    store.remove_unneeded({DIGEST}, lambda _: set())
    threads[0].join(10)
    assert store.get(DIGEST) == DATA


def test_removal_asks_which_blobs_are_needed_after_marking_them(store: BlobStore) -> None:
    kept, gone = store.put(DATA), store.put(b"other")
    seen = []

    def needed(digests: Set[str]) -> set[str]:
        seen.append([store._is_marked(store._path(digest)) for digest in digests])
        return {kept}

    store.remove_unneeded({kept, gone}, needed)
    assert seen == [[True, True]]
    assert store.exists(kept) and not store.exists(gone)
    assert not store._is_marked(store._path(kept))


def test_a_mark_left_by_a_dead_process_blocks_nobody(in_folder: BlobStore, folder: Path) -> None:
    in_folder.put(DATA)
    mark = folder / DIGEST[:2] / f"{DIGEST}.removing"
    mark.touch()
    os.utime(mark, (0, 0))
    began = time.monotonic()
    in_folder.put(DATA)
    assert time.monotonic() - began < 10
    assert in_folder.sweep({DIGEST}, older_than_s=60) == 1 and not mark.exists()


def test_a_store_belongs_to_its_first_owner(store: BlobStore) -> None:
    assert store.claim("ours", set())
    store.put(DATA)
    assert store.claim("ours", set()) and not store.claim("theirs", {DIGEST})
    assert [digest for digest, _ in store.digests()] == [DIGEST]


def test_an_unmarked_store_can_be_claimed_by_whoever_knows_its_blobs(store: BlobStore) -> None:
    store.put(DATA)
    assert not store.claim("stranger", {"0" * 64})
    assert store.claim("ours", {"0" * 64, DIGEST})
    assert not store.claim("stranger", {DIGEST})


def test_a_partly_written_blob_is_never_visible(in_folder: BlobStore, folder: Path) -> None:
    data = os.urandom(1) * 2_000_000
    digest = hashlib.sha256(data).hexdigest()
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            in_folder.put(data)

    in_folder.put(data)
    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    seen = [in_folder.get(digest) == data for _ in range(20)]
    enough.set()
    for writer in writers:
        writer.join()
    assert all(seen)
    assert [path.name for path in (folder / digest[:2]).iterdir()] == [digest]


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(Unavailable):
        BlobStore.connect(str(tmp_path / "blobs")).put(DATA)


@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Unavailable, "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Unavailable, "is full"),
        (OSError(errno.EROFS, "Read-only file system"), Misconfigured, "may not use"),
        (PermissionError("Forbidden"), Misconfigured, "may not use"),
        (FileNotFoundError("no such bucket"), Misconfigured, "does not exist"),
        (refused("AccessDenied"), Misconfigured, "may not use"),
        (refused("ExpiredToken"), Unavailable, "does not answer"),
        (refused("RequestTimeTooSkewed"), Unavailable, "does not answer"),
        (OSError(errno.EIO, "Input/output error"), Unavailable, "does not answer"),
        (RuntimeError("of a driver"), Unavailable, "does not answer"),
    ],
)
def test_each_cause_of_a_failing_store_has_its_own_error(
    in_folder: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
    kind: type[SalemError],
    said: str,
) -> None:
    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(blobs, "_write_by_rename", fail)
    with pytest.raises(kind, match=said) as caught:
        in_folder.put(DATA)
    assert str(trouble) in caught.value.reason and str(trouble) not in caught.value.message


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(Misconfigured):
        BlobStore.connect("nosuchstore://bucket/prefix")
