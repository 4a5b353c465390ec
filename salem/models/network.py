"""A hosted model in memory: frozen weights, tokenizer, and what Salem needs to know about them.

Start here. Must not know folders, deltas, or samples with targets; `salem.models.loading` reads the folder.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from salem.errors import UnsupportedModel
from salem.models.chat import TurnFinder
from salem.models.layers import find_layers
from salem.models.streaming import BlockWeights
from salem.records import Layer, Task

_UNLIMITED_TOKENS = 4_096  # for models without positions (T5) whose tokenizer has no limit either


@dataclass(frozen=True)
class Network:
    """A hosted model on one device: frozen, in evaluation mode, in memory unless it is streamed."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]  # by class index; empty if the task generates
    layers: tuple[Layer, ...]
    max_input_tokens: int
    streamed: BlockWeights | None = None  # where the blocks read their weights from, if they hold none

    @property
    def device(self) -> torch.device:
        device: torch.device = self.streamed.device if self.streamed else self.model.device
        return device

    @property
    def pad_id(self) -> int:
        """A classifier's config decides: some read the label off the last token that is not padding."""
        configured = getattr(self.model.config, "pad_token_id", None)
        if not self.task.generates and isinstance(configured, int):
            return configured
        for candidate in (self.tokenizer.pad_token_id, configured, self.eos_id):
            if isinstance(candidate, int):
                return candidate
        return 0

    @property
    def eos_id(self) -> int | None:
        eos: int | list[int] | None = self.tokenizer.eos_token_id
        if eos is None:
            eos = getattr(self.model.config, "eos_token_id", None)
        return eos[0] if isinstance(eos, list) else eos

    @property
    def start_id(self) -> int:
        """The token before the first generated one: the decoder's start token, or the beginning of a text."""
        named = ("decoder_start_token_id", "bos_token_id")
        candidates = [getattr(self.model.config, name, None) for name in named]
        candidates += [self.tokenizer.bos_token_id, self.eos_id]
        return next((candidate for candidate in candidates if isinstance(candidate, int)), self.pad_id)

    @cached_property
    def turns(self) -> TurnFinder:
        """Finds the last user turn in a prompt of a chat model."""
        return TurnFinder.of(self.tokenizer)

    def module(self, path: str) -> nn.Module:
        found: nn.Module = self.model.get_submodule(path)
        return found

    def weight(self, path: str) -> Tensor:
        """A matrix as its module stores it: [d_out, d_in], or [d_in, d_out] if it is transposed."""
        module = self.module(path)
        with self.streamed.loaded(module) if self.streamed else nullcontext():
            weight: Tensor = module.get_parameter("weight").detach()
        return weight


def as_network(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> Network:
    """Freeze a model in memory and describe it.

    Raises:
        UnsupportedModel: no layer can be edited, or a classifier does not give exactly one label.
    """
    model.eval().requires_grad_(False)
    if task.generates:
        # Sampling, beams, or banned words from the checkpoint would fill gaps in a request's config.
        model.generation_config = GenerationConfig()
    network = Network(
        model=model,
        tokenizer=tokenizer,
        task=task,
        labels=() if task.generates else _labels(model),
        layers=find_layers(model),
        max_input_tokens=_max_input_tokens(model, tokenizer),
    )
    if not task.generates:
        model.config.pad_token_id = _valid_pad_id(network.pad_id, model, tokenizer)
    return network


def _valid_pad_id(pad_id: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """A classifier's padding token: its config's if the vocabulary has it, else the tokenizer's."""
    num_tokens = getattr(model.config, "vocab_size", None) or pad_id + 1  # CANINE reads characters
    candidates = (pad_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if isinstance(token, int) and 0 <= token < num_tokens), 0)


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the classes by index."""
    named: dict[int, str] = model.config.id2label
    labels = tuple(named[index] for index in sorted(named))
    if len(set(labels)) < max(2, len(labels)):
        raise UnsupportedModel(f"A classifier needs two or more labels, all different; it has {labels[:20]}.")
    if model.config.problem_type in ("regression", "multi_label_classification"):
        raise UnsupportedModel(
            f"The model does {model.config.problem_type}; an answer must be one of the labels.",
            remedy="Host a classifier that gives each text exactly one label.",
        )
    return labels


def _max_input_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest limit among the tokenizer's, the config's, and the position table's."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            # RoBERTa's positions start after the padding index.
            limits.append(module.num_embeddings - module.padding_idx - 1)
    sensible = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**7]
    return min(sensible, default=_UNLIMITED_TOKENS)
