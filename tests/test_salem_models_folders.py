"""The folder of a hosted model: where it may be, what is refused, and the identity of its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

from salem.errors import UnsupportedModel
from salem.models.folders import check_folder, descriptions_sha256, locate, weights_sha256
from salem.records import FolderSource, HubSource

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of a model's folder for one test."""
    return save_tiny(tmp_path / "copied", "bert")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, message: str) -> UnsupportedModel:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        check_folder(folder)
    assert str(folder) not in f"{caught.value.message} {caught.value.remedy}", "messages hold no path"
    return caught.value


# Where a folder may lie.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A models root with one model in it and one next to it."""
    for name in ("root/intents", "root/team/intents", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path / "root"


def test_an_unreadable_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbid)
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        locate(FolderSource(path="intents"), root)


@pytest.mark.parametrize("id_", ["org/a--b", "org/a.git", "org/x..y"])
def test_a_malformed_hub_id_is_refused(root: Path, id_: str) -> None:
    with pytest.raises(UnsupportedModel, match="is not a Hub id"):
        locate(HubSource(id=id_, revision="0" * 40), root)


@pytest.mark.parametrize("path", ["intents", "team/intents"])
def test_a_folder_under_the_root_is_found(root: Path, path: str) -> None:
    assert locate(FolderSource(path=path), root) == root / path


@pytest.mark.parametrize(
    "path",
    [
        "..", ".", "../outside", "intents/../../outside", "intents/..", "/etc", "//etc", "intents/", "~",
        "./intents", "team//intents", "team\\intents", "intents\x00", "intents\n", ".hidden", "$HOME",
        "file://x", "in tents",
    ],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_refused(root: Path, path: str) -> None:
    with pytest.raises(UnsupportedModel, match="not a plain relative path"):
        locate(FolderSource(path=path), root)


@pytest.mark.parametrize("path", ["absent", "intents/config.json", "team/absent"])
def test_a_missing_folder_is_refused_without_naming_the_root(root: Path, path: str) -> None:
    with pytest.raises(UnsupportedModel, match="no folder") as caught:
        locate(FolderSource(path=path), root)
    assert str(root) not in caught.value.message


def test_links_out_of_the_root_are_refused(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    (root / "nested").symlink_to(root.parent)
    (root / "dangling").symlink_to(root / "absent")
    for path in ("link", "nested/outside", "dangling"):
        with pytest.raises(UnsupportedModel, match="no folder"):
            locate(FolderSource(path=path), root)
    (root / "intents" / WEIGHTS).symlink_to(root.parent / "outside" / "config.json")
    with pytest.raises(UnsupportedModel, match="contains a link that leaves the models root"):
        locate(FolderSource(path="intents"), root)


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "latest").symlink_to(root / "intents")
    (root / "team" / "intents" / WEIGHTS).symlink_to(root / "intents" / "config.json")
    assert locate(FolderSource(path="latest"), root) == root / "intents"
    assert locate(FolderSource(path="team/intents"), root) == root / "team" / "intents"


def test_a_root_that_is_itself_a_link_is_followed(root: Path) -> None:
    (root.parent / "linked").symlink_to(root)
    assert locate(FolderSource(path="intents"), root.parent / "linked") == root / "intents"


def test_a_hub_that_cannot_be_reached_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UnsupportedModel, match="did not serve someone/model at revision aaaaaaaaaaaa"
    ) as caught:
        locate(HubSource(id="someone/model", revision="a" * 40), tmp_path)
    assert "network" in str(caught.value.remedy)


# What is refused.


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_an_auto_map_is_refused(copied: Path, file: str) -> None:
    change_json(copied / file, auto_map={"AutoModel": "modeling_evil.Evil"})
    assert "ships with transformers" in str(refused(copied, "auto_map").remedy)


def test_an_adapter_is_refused(copied: Path) -> None:
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "Merge" in str(refused(copied, "adapter").remedy)


def test_missing_weights_are_refused(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    refused(copied, r"no \*\.safetensors file")


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../copied/model.safetensors"},
        {"a": "sub/model.safetensors"},
        {"a": 5},
        {"a": "gone.safetensors"},
        [],
        None,
    ],
    ids=str,
)
def test_an_index_that_leads_elsewhere_is_refused(copied: Path, weight_map: Any) -> None:
    (copied / "sub").mkdir()
    shutil.copy(copied / WEIGHTS, copied / "sub")
    (copied / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    refused(copied, "names a file that is not in the folder")


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", "\ufeff{}", "[" * 100_000])
def test_an_unreadable_config_is_refused(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    refused(copied, r"config\.json")


def test_checking_a_folder_loads_nothing(copied: Path) -> None:
    (copied / WEIGHTS).write_bytes(b"no weights, but the right name")
    check_folder(copied)


# The identity of the weights.


def test_the_sha256_of_a_single_file_is_that_of_its_bytes(copied: Path) -> None:
    expected = hashlib.sha256((copied / WEIGHTS).read_bytes()).hexdigest()
    assert weights_sha256(copied) == expected == weights_sha256(copied)


def test_the_sha256_changes_with_one_bit_of_the_weights_only(copied: Path) -> None:
    before = weights_sha256(copied)
    change_json(copied / "config.json", note="not a weight")
    assert weights_sha256(copied) == before
    data = bytearray((copied / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / WEIGHTS).write_bytes(data)
    assert weights_sha256(copied) != before


def test_the_sha256_of_shards_covers_each_and_its_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one", "llama", max_shard_size="8KB")
    before = weights_sha256(folder)
    assert before == weights_sha256(Path(shutil.copytree(folder, tmp_path / "two")))
    shards = sorted(folder.glob("*.safetensors"))
    data = bytearray(shards[-1].read_bytes())
    data[-1] ^= 1
    shards[-1].write_bytes(data)
    changed = weights_sha256(folder)
    shards[0].rename(folder / "renamed.safetensors")
    assert len({before, changed, weights_sha256(folder)}) == 3


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "vocab.txt", "source.spm", "bpe.codes"])
def test_the_sha256_of_the_descriptions_changes_with_any_of_them_only(copied: Path, file: str) -> None:
    before = descriptions_sha256(copied)
    assert before == descriptions_sha256(Path(shutil.copytree(copied, copied.parent / "twin")))
    (copied / WEIGHTS).write_bytes(b"other weights")
    (copied / "README.md").write_text("not read by anyone")
    assert descriptions_sha256(copied) == before
    (copied / file).write_text("{}")
    assert descriptions_sha256(copied) != before
