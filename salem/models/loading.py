"""Loads a hosted model from a folder: checks first (`salem.models.folders`), then tokenizer and weights.

Does not know SQL, HTTP, deltas or samples with targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from salem.errors import UnsupportedModel
from salem.models.devices import resolve_device
from salem.models.folders import (
    check_descriptions,
    check_folder,
    check_registered,
    descriptions_sha256,
    locate,
    registered_folder,
    unwritten,
    weights_sha256,
)
from salem.models.layers import find_layers
from salem.models.streaming import BlockWeights, outline, stream
from salem.records import Layer, Task, TextInput

__all__ = [
    "Network",
    "PreTrainedTokenizerBase",
    "as_network",
    "check_descriptions",
    "check_folder",
    "check_registered",
    "count_tokens",
    "descriptions_sha256",
    "load",
    "load_tokenizer",
    "locate",
    "owned",
    "registered_folder",
    "tokenize",
    "unwritten",
    "weights_sha256",
]

_LOADERS: dict[Task, Any] = {
    Task.SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    Task.TEXT2TEXT_GENERATION: AutoModelForSeq2SeqLM,
    Task.TEXT_GENERATION: AutoModelForCausalLM,
}
# What transformers raises over a damaged or unfitting folder.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
_COUNTED_TOGETHER = 64  # texts: a tokenizer returns thirty bytes and more for each byte that it reads
_UNLIMITED_TOKENS = 4_096  # for position-free models (T5) whose tokenizer names no limit either


@dataclass(frozen=True)
class Network:
    """A hosted model: frozen weights, evaluation mode, on one device; in memory unless it is streamed."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]  # by class index; empty where the task generates
    layers: tuple[Layer, ...]
    max_input_tokens: int
    streamed: BlockWeights | None = None  # where the blocks read their weights, if they hold none

    @property
    def device(self) -> torch.device:
        device: torch.device = self.streamed.device if self.streamed else self.model.device
        return device

    @property
    def pad_id(self) -> int:
        """A classifier's own: some read the label off the last token that is not this one."""
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
        """The token before the first one that is written: a decoder's start, or the beginning of a text."""
        named = ("decoder_start_token_id", "bos_token_id")
        candidates = [getattr(self.model.config, name, None) for name in named]
        candidates += [self.tokenizer.bos_token_id, self.eos_id]
        return next((candidate for candidate in candidates if isinstance(candidate, int)), self.pad_id)

    def module(self, path: str) -> nn.Module:
        found: nn.Module = self.model.get_submodule(path)
        return found

    def weight(self, path: str) -> Tensor:
        """A matrix as its module stores it: [d_out, d_in], or [d_in, d_out] where it is transposed."""
        module = self.module(path)
        with self.streamed.lent(module) if self.streamed else nullcontext():
            weight: Tensor = module.get_parameter("weight").detach()
        return weight


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        UnsupportedModel: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise UnsupportedModel("The folder's tokenizer cannot be loaded.") from error


def count_tokens(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[TextInput]) -> list[int]:
    """Tokens of each input as the model would see it, special tokens included."""
    starts = range(0, len(inputs), _COUNTED_TOGETHER)
    parts = (inputs[start : start + _COUNTED_TOGETHER] for start in starts)
    return [len(ids) for part in parts for ids in tokenize(tokenizer, part)["input_ids"]]


def tokenize(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[TextInput]) -> dict[str, list[list[int]]]:
    """Unpadded token ids (and token types, where the tokenizer makes them) of each input.

    An empty pair is none, as in `TextInput.content_hash`; tokenizers disagree with themselves about it.
    """
    paired = [item for item in inputs if item.text_pair]
    if paired and len(paired) < len(inputs):
        rows = [tokenize(tokenizer, [item]) for item in inputs]
        return {key: [row[key][0] for row in rows] for key in rows[0]}
    first = [item.input for item in inputs]
    second = [item.text_pair for item in paired] if paired else None
    encoded = tokenizer(first, second, padding=False, truncation=False, verbose=False)
    return {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}


def load(
    folder: Path,
    task: Task,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    streamed: bool = False,
) -> Network:
    """Load a folder for a task: float32 on a CPU, the stored type on a GPU unless `dtype` says otherwise;
    `streamed` in the memory of one block instead of all, see `salem.models.streaming`.

    Raises:
        UnsupportedModel: see `check_folder`, `as_network` and `stream`; also an architecture that does not do
            the task, or weights that lack the task's head.
    """
    check_folder(folder)
    place = resolve_device(device)
    wanted = dtype or (torch.float32 if place.type == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if streamed:
            outlined = outline(_LOADERS[task], folder, config, wanted)
            model, info = outlined.model, outlined.info
        else:
            options = {"config": config, "dtype": wanted, "use_safetensors": True, "trust_remote_code": False}
            model, info = _LOADERS[task].from_pretrained(folder, **options, output_loading_info=True)
    except _LOADING_ERRORS as error:
        raise UnsupportedModel(
            f"The folder does not load as a model for {task}.",
            remedy="Check that its architecture does this task and that its weights are complete.",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"The weights lack {len(missing)} tensors that {task} needs, among them {missing[0]}.",
            remedy="Host a model that was fine-tuned for this task.",
        )
    weights = stream(outlined, place) if streamed else None
    network = as_network(model if streamed else model.to(place), load_tokenizer(folder), task)
    return replace(network, streamed=weights)


def owned(network: Network) -> Network:
    """The network with its weights in memory of its own: on a CPU they are the file, mapped, until then.

    Who writes into a mapped file changes the weights, and who cuts it short ends the process.
    """
    if network.device.type == "cpu":
        for tensor in (*network.model.parameters(), *network.model.buffers()):
            tensor.data = tensor.data.clone()
    return network


def as_network(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> Network:
    """Freeze a model in memory and describe it.

    Raises:
        UnsupportedModel: the module tree has no editable layers, or a classifier does not give one label.
    """
    model.eval().requires_grad_(False)
    if task.generates:
        # What a checkpoint asks for (sampling, beams, banned words) would fill gaps in a request's config.
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
        model.config.pad_token_id = _known(network.pad_id, model, tokenizer)
    return network


def _known(pad_id: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding that a classifier is to have: its config's, if that is a token that it knows."""
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
    """The smallest of what the tokenizer, the config and the position table allow."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            # RoBERTa counts positions from behind the padding's.
            limits.append(module.num_embeddings - module.padding_idx - 1)
    sensible = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**7]
    return min(sensible, default=_UNLIMITED_TOKENS)
