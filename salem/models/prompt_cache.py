"""Keys and values of prompts, so that a decoder runs only for the tokens around an answer.

A change that acts only at the end of a prompt leaves the earlier tokens as they are: their keys and values
are the same in every training step. `read_prompts` computes them once and returns the rest of the batch,
which is a few tokens long. The model's own cache class does the work, as in generation.

Must not know layers, deltas, or why only answers change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import Task

_CACHED = frozenset({"full_attention", "sliding_attention"})  # kinds of attention that keep keys and values


@dataclass(frozen=True)
class PromptCache:
    """Keys and values [n, heads, p, d] of n prompts without their ends, for each block of a decoder.

    Prompts are padded on the left to p tokens.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def from_block(self, block: int) -> PromptCache:
        """The same for a pass that starts at a block: those below keep only the length."""
        return PromptCache(_emptied(self.keys, block), _emptied(self.values, block))

    def rows(self, index: Tensor) -> PromptCache:
        """The prompts at `index` [k]."""
        return PromptCache(
            tuple(each[index] for each in self.keys), tuple(each[index] for each in self.values)
        )

    @property
    def num_bytes(self) -> int:
        return sum(each.untyped_storage().nbytes() for each in (*self.keys, *self.values))

    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's forward. Each pass needs new ones, because it writes to the cache."""
        return {"past_key_values": DynamicCache(zip(self.keys, self.values, strict=True)), "use_cache": True}


def can_read_prompts(network: Network) -> bool:
    """Whether the model is a decoder that keeps keys and values, and takes the positions of its tokens."""
    if network.task is not Task.TEXT_GENERATION:
        return False
    accepted = signature(type(network.model).forward).parameters
    kinds = getattr(network.model.config, "layer_types", None) or _CACHED
    return {"past_key_values", "position_ids"} <= accepted.keys() and _CACHED.issuperset(kinds)


@torch.no_grad()
def read_prompts(network: Network, batch: Batch, tail: int) -> tuple[PromptCache, Batch] | None:
    """The cache of a batch's prompts, and the batch of what follows.

    Args:
        batch: prompts with answers, padded on the right.
        tail: how many tokens at the end of each prompt stay in the batch that follows.

    Returns:
        None if no prompt has more tokens than `tail`.
    """
    starts = (batch.answer_starts - tail + 1).clamp(min=0)  # [n]
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    width = int(starts.max())
    if not width:
        return None
    before = _window(starts - width, width, ids.device)  # [n, p] columns; below 0 where there is no token
    prompt_mask = (before >= 0).to(mask.dtype)
    prompts = {
        "input_ids": ids.gather(1, before.clamp(min=0)).masked_fill(before < 0, network.pad_id),
        "attention_mask": prompt_mask,
        "position_ids": before.clamp(min=0),
    }
    cache = DynamicCache()
    network.model(**prompts, past_key_values=cache, use_cache=True, **_without_logits(network))
    keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
    after = _window(starts, int((mask.sum(1) - starts).max()), ids.device)  # [n, s]
    places = after.clamp(max=ids.shape[1] - 1)
    inputs = {
        "input_ids": ids.gather(1, places),
        "attention_mask": torch.cat([prompt_mask, (after < mask.sum(1)[:, None]).to(mask.dtype)], dim=1),
        "position_ids": places,
    }
    directions = None if batch.directions is None else batch.directions.gather(1, places)
    return PromptCache(keys, values), Batch(inputs, batch.targets.gather(1, places), directions)


def _window(first: Tensor, width: int, device: torch.device) -> Tensor:
    """`width` columns from `first` [n] on -> [n, width]."""
    return first[:, None] + torch.arange(width, device=device)


def _without_logits(network: Network) -> dict[str, int]:
    """Arguments for a pass whose logits nobody reads."""
    accepted = signature(type(network.model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def _emptied(tensors: Sequence[Tensor], block: int) -> tuple[Tensor, ...]:
    n, _, length, _ = tensors[0].shape
    return tuple(
        each if place >= block else each.new_zeros(1).expand(n, 1, length, 1)
        for place, each in enumerate(tensors)
    )
