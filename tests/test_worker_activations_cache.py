"""The disk cache: entries come back bit for bit, old ones are removed, and damaged ones count as missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from salem.records import Sample, TextInput
from worker.activations.cache import SampleCache

SAMPLES = (Sample(input="a", target="x"), Sample(input="b", text_pair="c", target="y"))


def cache(folder: Path, max_bytes: int = 2**20, model: str = "m") -> SampleCache:
    return SampleCache(folder / "cache", max_bytes, model)


def tensors(seed: int = 0, size: int = 100) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"states/0": torch.randn(size, generator=draw), "held": torch.tensor([True, False])}


def test_a_stored_entry_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    key, given = kept.key("trunk", SAMPLES, "layer"), tensors()
    assert kept.get(key) is None
    kept.put(key, given)
    found = cache(tmp_path).get(key)
    assert found is not None and set(found) == set(given)
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_views_and_shared_memory_can_be_kept(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    kept = cache(tmp_path)
    kept.put("k", {"a": whole.T, "b": whole[:, 1], "c": whole, "d": torch.ones(1).expand(3)})
    found = kept.get("k")
    assert found is not None
    assert torch.equal(found["a"], whole.T) and torch.equal(found["b"], whole[:, 1])
    assert found["d"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: cache(folder, model="n").key("trunk", SAMPLES, "layer"),
        lambda folder: cache(folder).key("features", SAMPLES, "layer"),
        lambda folder: cache(folder).key("trunk", SAMPLES, "other layer"),
        lambda folder: cache(folder).key("trunk", SAMPLES, "layer", 1),
        lambda folder: cache(folder).key("trunk", SAMPLES[::-1], "layer"),
        lambda folder: cache(folder).key("trunk", SAMPLES[:1], "layer"),
        lambda folder: cache(folder).key("trunk", [*SAMPLES[:1], TextInput(input="b")], "layer"),
    ],
)
def test_a_key_depends_on_everything_that_determines_the_entry(tmp_path: Path, other: object) -> None:
    assert callable(other)
    assert other(tmp_path) != cache(tmp_path).key("trunk", SAMPLES, "layer")


def test_the_least_recently_used_entry_is_removed_first(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=20_000)
    for number, key in enumerate("abc"):
        kept.put(key, tensors(number, 1_000))  # about 4 kB each, and as much again for its header
        os.utime(kept.folder / f"{key}.safetensors", ns=(number, number))
    assert kept.get("a") is not None  # and thereby the newest
    kept.put("d", tensors(3, 2_000))
    assert kept.get("b") is None and kept.get("a") is not None and kept.get("d") is not None
    assert kept.num_bytes <= 20_000


def test_an_entry_over_the_limit_is_not_stored_and_removes_no_other(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=20_000)
    kept.put("small", tensors())
    kept.put("large", tensors(size=10_000))
    assert kept.get("large") is None and kept.get("small") is not None
    cache(tmp_path / "none", max_bytes=0).put("k", tensors())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("keep", [0, 5, 60, 300])
def test_a_damaged_entry_is_removed_and_counts_as_missing(tmp_path: Path, keep: int) -> None:
    kept = cache(tmp_path)
    kept.put("k", tensors())
    path = kept.folder / "k.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert kept.get("k") is None and not path.exists()
    kept.put("k", tensors())
    assert kept.get("k") is not None


def test_a_loaded_entry_survives_the_removal_of_its_file(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("k", tensors())
    found = kept.get("k")
    (kept.folder / "k.safetensors").unlink()
    assert found is not None and torch.equal(found["states/0"], tensors()["states/0"])


def test_an_unwritable_folder_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = SampleCache(tmp_path / "file" / "cache", 2**20, "m")
    kept.put("k", tensors())
    assert kept.get("k") is None


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    kept = cache(tmp_path)
    monkeypatch.setattr("worker.activations.cache.save_file", fail)
    kept.put("k", tensors())
    assert kept.get("k") is None and list(kept.folder.iterdir()) == []
