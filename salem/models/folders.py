"""The folder of a hosted model: where it is, whether it may be loaded, and the identity of what it holds.

Knows Hugging Face folders and hub snapshots. Reads JSON and bytes only: it loads no weights and no tokenizer.
A folder is refused before any of its code or pickles could run: safetensors only, no remote code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from salem.errors import ModelNotReady, UnsupportedModel
from salem.records import FolderSource, HostedModel, HubSource

_INDEX = "model.safetensors.index.json"
# Of a model's folder, what settles tokens and classes: hosted models may share weights and differ here.
_DESCRIPTIONS = frozenset({".bpe", ".codes", ".json", ".model", ".spm", ".tiktoken", ".txt", ".vocab"})
_HUB_FILES = sorted(f"*{suffix}" for suffix in _DESCRIPTIONS | {".safetensors"})


def locate(source: FolderSource | HubSource, models_root: Path) -> Path:
    """The local folder of a source; a hub repository is downloaded at its pinned revision.

    Raises:
        UnsupportedModel: the path or a link in the folder leaves the models root, the folder is missing, or
            the hub cannot serve it.
    """
    if isinstance(source, HubSource):
        return _downloaded(source)
    parts = source.path.split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in parts):
        raise UnsupportedModel(f'"{source.path}" is not a plain relative path under the models root.')
    root = models_root.resolve()
    folder = root.joinpath(*parts).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise UnsupportedModel(
            f'There is no folder "{source.path}" under the models root.',
            remedy="Put the model's folder (config.json, tokenizer, *.safetensors) there, or set "
            "SALEM_MODELS_ROOT.",
        )
    try:
        within = all(path.resolve().is_relative_to(root) for path in folder.iterdir())
    except OSError as error:
        raise UnsupportedModel(
            f'The folder "{source.path}" cannot be read.',
            remedy="Let the user that Salem runs as read it and what it holds.",
        ) from error
    if not within:
        raise UnsupportedModel(f'The folder "{source.path}" holds a link that leaves the models root.')
    return folder


def _downloaded(source: HubSource) -> Path:
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise UnsupportedModel(
            f'"{source.id}" is not an id of the hub.', remedy="Write it as its page does: owner/name."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnsupportedModel(
            f"The hub did not give {source.id} at revision {source.revision[:12]}.",
            remedy="Check the id, the 40-digit commit and the worker's network, or use a folder.",
        ) from error


def weights_sha256(folder: Path) -> str:
    """sha256 of a folder's weights: of its one safetensors file, or of all names and digests in order."""
    digests = {path.name: _file_sha256(path) for path in _files(folder, frozenset({".safetensors"}))}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def descriptions_sha256(folder: Path) -> str:
    """sha256 of the rest of a folder that is read: config, labels, tokenizer."""
    digest = hashlib.sha256()
    for path in _files(folder, _DESCRIPTIONS):
        digest.update(f"{path.name} {_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def registered_folder(model: HostedModel, models_root: Path) -> Path:
    """The local folder of a model that was registered.

    Raises:
        ModelNotReady: it is not there any more, or cannot be read.
    """
    try:
        return locate(model.source, models_root)
    except UnsupportedModel as error:
        raise ModelNotReady(error.message, remedy=error.remedy) from error


def check_registered(folder: Path, model: HostedModel) -> None:
    """Refuse a folder that no longer holds what was registered.

    Raises:
        ModelNotReady: its weights, config, labels or tokenizer are other ones.
    """
    if weights_sha256(folder) != model.sha256:
        raise not_as_registered(model, "weights")
    check_descriptions(folder, model)


def check_descriptions(folder: Path, model: HostedModel) -> None:
    """Refuse other labels or another tokenizer; what a model of before they were noted had is not known.

    Raises:
        ModelNotReady: config, labels or tokenizer are not those that were registered.
    """
    if model.descriptions_sha256 not in (None, descriptions_sha256(folder)):
        kinds = ", ".join(f"*{suffix}" for suffix in sorted(_DESCRIPTIONS))
        raise not_as_registered(model, f"config or tokenizer files ({kinds})")


def not_as_registered(model: HostedModel, files: str) -> ModelNotReady:
    """What to raise over files of a model's folder that are not the ones that were registered."""
    return ModelNotReady(
        f'the {files} of "{model.name}" are not the ones that were registered',
        remedy="Put the registered files back, or register the new ones under another name",
    )


@contextmanager
def ensure_unchanged(folder: Path, name: str) -> Iterator[None]:
    """Stand over work that reads a model's folder, weights mapped from its files included.

    Raises:
        ModelNotReady: when the work is done, a file is not the one that it was before: what came of it is of
            neither.
    """
    before = _stamps(folder)
    yield
    if not folder.is_dir() or _stamps(folder) != before:
        raise ModelNotReady(
            f'the files of "{name}" were written to while they were read',
            remedy="Send the request again when nothing writes to the model's folder any more",
        )


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and time of change of each file that is read: other ones tell of another file."""
    found = [(path.name, path.stat()) for path in _files(folder, _DESCRIPTIONS | {".safetensors"})]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found)


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and path.is_file()]


def _file_sha256(path: Path) -> str:
    """Raises ModelNotReady: the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotReady(
            f"{path.name} of the model's folder cannot be read",
            remedy="Let the user that Salem runs as read every file of the folder",
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that would need remote code, pickled weights or weights from elsewhere.

    Raises:
        UnsupportedModel: with what was found and what is needed.
    """
    configs = [_read_json(folder, "config.json")]
    if _holds(folder, "tokenizer_config.json"):
        configs.append(_read_json(folder, "tokenizer_config.json"))
    if any("auto_map" in config for config in configs):
        raise UnsupportedModel(
            "The model's config has an auto_map: it would run code from its repository.",
            remedy="Host a model whose architecture ships with transformers.",
        )
    if _holds(folder, "adapter_config.json"):
        raise UnsupportedModel(
            "The folder holds an adapter: the weights it stands on may come from anywhere.",
            remedy="Merge the adapter into its base model and host the result.",
        )
    if not any(folder.glob("*.safetensors")):
        raise UnsupportedModel(
            "The folder holds no *.safetensors file; pickled weights are never loaded.",
            remedy="Convert the weights: model.save_pretrained(folder) writes safetensors.",
        )
    if _holds(folder, _INDEX):
        _check_index(folder)


def _check_index(folder: Path) -> None:
    """Every shard lies in the folder itself, where `weights_sha256` sees it."""
    shards = _read_json(folder, _INDEX).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {""}
    if not names <= {path.name for path in folder.glob("*.safetensors")}:
        raise UnsupportedModel(f"{_INDEX} names a file that is not in the folder.")


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"The folder has no readable {name}.") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"The folder's {name} is not a JSON object.")
    return content
