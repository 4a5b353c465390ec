"""Loads a hosted model from a folder: first the checks of `salem.models.folders`, then tokenizer and weights.

Must not know SQL, HTTP, deltas, or samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from salem.errors import UnsupportedModel
from salem.models.devices import resolve_device
from salem.models.folders import check_folder
from salem.models.network import Network, as_network
from salem.models.streaming import build_on_meta, stream
from salem.records import Task

_LOADERS: dict[Task, Any] = {
    Task.SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    Task.TEXT2TEXT_GENERATION: AutoModelForSeq2SeqLM,
    Task.TEXT_GENERATION: AutoModelForCausalLM,
}
# What transformers raises when a folder is damaged or does not fit the task.
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


def load(
    folder: Path,
    task: Task,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    streamed: bool = False,
) -> Network:
    """Load a folder for a task.

    Args:
        dtype: type of the weights; by default float32 on a CPU and the stored type on a GPU.
        streamed: keep only one block in memory at a time, see `salem.models.streaming`.

    Raises:
        UnsupportedModel: see `check_folder`, `as_network`, and `stream`. Also if the architecture does not do
            the task, or the weights lack the task's head.
    """
    check_folder(folder)
    place = resolve_device(device)
    wanted = dtype or (torch.float32 if place.type == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if streamed:
            on_meta = build_on_meta(_LOADERS[task], folder, config, wanted)
            model, info = on_meta.model, on_meta.info
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
    weights = stream(on_meta, place) if streamed else None
    network = as_network(model if streamed else model.to(place), load_tokenizer(folder), task)
    return replace(network, streamed=weights)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        UnsupportedModel: the folder has none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise UnsupportedModel("The folder's tokenizer cannot be loaded.") from error


def copy_into_memory(network: Network) -> Network:
    """The same network, with its weights copied off the memory-mapped file (CPU only).

    While the weights are mapped, writing to the file changes them, and truncating it kills the process.
    """
    if network.device.type == "cpu":
        for tensor in (*network.model.parameters(), *network.model.buffers()):
            tensor.data = tensor.data.clone()
    return network
