"""The folder of a hosted model: where it is, whether it may be loaded, and the identity of its content.

Knows Hugging Face folders and hub snapshots. Reads JSON and bytes only; it loads no weights and no tokenizer.
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
from salem.models.digests import FileDigests
from salem.records import FolderSource, HostedModel, HubSource

_INDEX = "model.safetensors.index.json"
# Files that define tokens and classes: hosted models may share weights and differ in these.
_DESCRIPTIONS = frozenset({".bpe", ".codes", ".json", ".model", ".spm", ".tiktoken", ".txt", ".vocab"})
_UNREMEMBERED = FileDigests()
_HUB_FILES = sorted(f"*{suffix}" for suffix in _DESCRIPTIONS | {".safetensors"})


def locate(source: FolderSource | HubSource, models_root: Path) -> Path:
    """The local folder of a source; a hub repository is downloaded at its pinned revision.

    Raises:
        UnsupportedModel: the path or a link in the folder leaves the models root, the folder is missing, or
            the hub cannot serve it.
    """
    if isinstance(source, HubSource):
        return downloaded(source)
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
            remedy="Give the user that runs Salem read access to the folder and its files.",
        ) from error
    if not within:
        raise UnsupportedModel(f'The folder "{source.path}" contains a link that leaves the models root.')
    return folder


def downloaded(source: HubSource) -> Path:
    """The local folder of a hub repository at its pinned revision.

    Raises:
        UnsupportedModel: the id is not valid, or the Hub does not serve the repository.
    """
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise UnsupportedModel(
            f'"{source.id}" is not a Hub id.', remedy="Write it as on its page: owner/name."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnsupportedModel(
            f"The Hub did not serve {source.id} at revision {source.revision[:12]}.",
            remedy="Check the id, the 40-digit commit, and the worker's network, or use a folder.",
        ) from error


def weights_sha256(folder: Path, digests: FileDigests = _UNREMEMBERED) -> str:
    """sha256 of a folder's weights: of its one safetensors file, or of all names and digests in order.

    Args:
        digests: remembers the digests of files that have not changed.
    """
    found = {path.name: _file_sha256(path, digests) for path in _files(folder, frozenset({".safetensors"}))}
    if len(found) == 1:
        return next(iter(found.values()))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def descriptions_sha256(folder: Path) -> str:
    """sha256 of the other files that are read: config, labels, tokenizer."""
    digest = hashlib.sha256()
    for path in _files(folder, _DESCRIPTIONS):
        digest.update(f"{path.name} {_file_sha256(path, _UNREMEMBERED)}\n".encode())
    return digest.hexdigest()


def registered_folder(model: HostedModel, models_root: Path) -> Path:
    """The local folder of a registered model.

    Raises:
        ModelNotReady: the folder is gone or cannot be read.
    """
    try:
        return locate(model.source, models_root)
    except UnsupportedModel as error:
        raise ModelNotReady(error.message, remedy=error.remedy) from error


def check_registered(folder: Path, model: HostedModel, digests: FileDigests = _UNREMEMBERED) -> None:
    """Refuse a folder whose weights, config, labels, or tokenizer have changed since registration.

    Raises:
        ModelNotReady: they have.
    """
    if weights_sha256(folder, digests) != model.sha256:
        raise not_as_registered(model, "weights")
    check_descriptions(folder, model)


def check_descriptions(folder: Path, model: HostedModel) -> None:
    """Refuse a folder whose config, labels, or tokenizer have changed since registration.

    Raises:
        ModelNotReady: they have.
    """
    if model.descriptions_sha256 not in (None, descriptions_sha256(folder)):
        kinds = ", ".join(f"*{suffix}" for suffix in sorted(_DESCRIPTIONS))
        raise not_as_registered(model, f"config or tokenizer files ({kinds})")


def not_as_registered(model: HostedModel, files: str) -> ModelNotReady:
    """The error for files that differ from the registered ones."""
    return ModelNotReady(
        f'the {files} of "{model.name}" are not the ones that were registered',
        remedy="Put the registered files back, or register the new ones under another name",
    )


@contextmanager
def ensure_unchanged(folder: Path, name: str) -> Iterator[None]:
    """Wrap work that reads a model's folder, including weights that are mapped from its files.

    Raises:
        ModelNotReady: a file changed during the work, so the result belongs to neither version of it.
    """
    before = _stamps(folder)
    yield
    if not folder.is_dir() or _stamps(folder) != before:
        raise ModelNotReady(
            f'the files of "{name}" changed while they were read',
            remedy="Send the request again when nothing writes to the model's folder",
        )


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size, and modification time of each file that is read: they tell a changed file."""
    found = [(path.name, path.stat()) for path in _files(folder, _DESCRIPTIONS | {".safetensors"})]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns) for name, at in found)


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and path.is_file()]


def _file_sha256(path: Path, digests: FileDigests) -> str:
    """Raises ModelNotReady: the file cannot be read."""
    try:
        return digests.sha256(path)
    except OSError as error:
        raise ModelNotReady(
            f"{path.name} of the model's folder cannot be read",
            remedy="Give the user that runs Salem read access to every file of the folder",
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that needs remote code, pickled weights, or weights from elsewhere.

    Raises:
        UnsupportedModel: the message says what was found and what is needed.
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
            "The folder holds an adapter, whose base weights may come from anywhere.",
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
    """Require every shard to be in the folder itself, where `weights_sha256` sees it."""
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
