"""Digests are remembered while a file's stamp stays, and a changed file is noticed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from salem.models import digests
from salem.models.digests import FileDigests


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Has one item for each file that was read and hashed."""
    calls: list[None] = []
    plain = hashlib.file_digest

    def counting(file: object, algorithm: str) -> object:
        calls.append(None)
        return plain(file, algorithm)

    monkeypatch.setattr(digests.hashlib, "file_digest", counting)
    return calls


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written count as settled."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("settled")
def test_a_file_is_hashed_once_for_all_processes(tmp_path: Path, hashed: list[None]) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    for _ in range(3):
        assert FileDigests(tmp_path / "digests.json").sha256(file) == sha256(b"one")
    assert len(hashed) == 1


@pytest.mark.usefixtures("settled")
def test_a_changed_file_is_hashed_again_even_with_its_old_size_and_time(tmp_path: Path) -> None:
    file, known = tmp_path / "weights", FileDigests(tmp_path / "digests.json")
    file.write_bytes(b"one")
    assert known.sha256(file) == sha256(b"one")
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_ino == before.st_ino and file.stat().st_mtime_ns == before.st_mtime_ns
    assert known.sha256(file) == sha256(b"two")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, hashed: list[None]) -> None:
    file, known = tmp_path / "weights", FileDigests(tmp_path / "digests.json")
    file.write_bytes(b"one")
    assert time.time_ns() - file.stat().st_ctime_ns < digests._SETTLED_NS
    assert known.sha256(file) == known.sha256(file) == sha256(b"one")
    assert len(hashed) == 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [b"", b"not JSON", b"[]", b'{"weights": 3}'])
def test_a_damaged_digest_file_only_costs_time(tmp_path: Path, damage: bytes, hashed: list[None]) -> None:
    file, known = tmp_path / "weights", FileDigests(tmp_path / "digests.json")
    file.write_bytes(b"one")
    (tmp_path / "digests.json").write_bytes(damage)
    assert known.sha256(file) == known.sha256(file) == sha256(b"one")
    assert len(hashed) == 1


@pytest.mark.usefixtures("settled")
def test_without_a_writable_path_nothing_is_remembered(tmp_path: Path, hashed: list[None]) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    for known in (FileDigests(), FileDigests(tmp_path / "missing" / "digests.json")):
        assert known.sha256(file) == known.sha256(file) == sha256(b"one")
    assert len(hashed) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weights"):
        FileDigests(tmp_path / "digests.json").sha256(tmp_path / "weights")
