"""Generation settings: greedy decoding, whatever the checkpoint's own settings are."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from salem.models.network import Network


def greedy(network: Network, max_new_tokens: int, **more: Any) -> GenerationConfig:
    """Settings for greedy decoding; `more` selects what `generate` returns."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=network.eos_id,
        pad_token_id=network.pad_id,
        bos_token_id=getattr(network.model.config, "bos_token_id", None),
        decoder_start_token_id=network.start_id,
        **more,
    )
