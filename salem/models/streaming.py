"""Runs a model whose blocks hold no weights: each block reads its weights from the folder when it runs.

Weights stay in the folder's memory-mapped safetensors files. They are read before a block runs and freed
afterward. A backward pass runs the block again instead of keeping its activations (`torch.utils.checkpoint`;
Chen et al. 2016, "Training deep nets with sublinear memory cost"). The peak is one block plus the embeddings,
the head, and what the caller keeps. Weights are frozen: gradients flow to a block's inputs and to what is
added inside it.

transformers decides which stored tensor belongs where. Must not know tasks, tokenizers, deltas, or what is
trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PretrainedConfig, PreTrainedModel

from salem.errors import UnsupportedModel
from salem.models.layers import find_stacks

# Hooks of a module that run around its forward.
_KINDS = ("pre_hooks", "pre_hooks_with_kwargs", "hooks", "hooks_with_kwargs", "hooks_always_called")
_HOOKS = tuple(f"_forward_{kind}" for kind in _KINDS)
SavedHooks = list[tuple[nn.Module, dict[str, Any]]]  # modules with their hooks and replaced forwards


class StoredWeights:
    """The stored tensors of a folder, by key."""

    def __init__(self, folder: Path) -> None:
        self.files = _files(folder)  # by key

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors stored under these keys, memory-mapped: they take memory only when they are read."""
        with ExitStack() as stack:
            files = {self.files[key] for key in keys}
            opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
            return [opened[self.files[key]].get_tensor(key) for key in keys]


def _files(folder: Path) -> dict[str, Path]:
    """The file of each stored tensor; a single file takes precedence over an index, as in transformers."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        with safe_open(whole, framework="pt") as file:
            return dict.fromkeys(file.keys(), whole)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {key: folder / name for key, name in index["weight_map"].items()}


class _TensorStub:
    """Replaces a stored tensor while transformers assigns it: it has a shape and a dtype but no values."""

    def __init__(self, key: str, stored: Tensor, placed: dict[int, tuple[str, Tensor]]) -> None:
        self.key, self.dtype, self.shape = key, stored.dtype, stored.shape
        self._placed = placed

    def __getitem__(self, index: object) -> _TensorStub:
        return self

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        empty = torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")
        self._placed[_storage(empty)] = (self.key, empty)
        return empty


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor without memory; a parameter made from it shares it."""
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class MetaModel:
    """A model on the meta device, and the stored tensors that belong to its parameters."""

    model: PreTrainedModel
    info: Mapping[str, Any]  # loading info of transformers, such as `missing_keys`
    stored: StoredWeights
    placed: Mapping[int, tuple[str, Tensor]]  # storage of a parameter's tensor -> key, tensor

    def key(self, name: str, tensor: Tensor) -> str:
        """The key under which a parameter is stored unchanged.

        Raises:
            UnsupportedModel: the parameter is made from stored tensors by joining, splitting, or transposing.
        """
        key, whole = self.placed.get(_storage(tensor), (None, tensor))
        if key is None or tensor.shape != whole.shape or tensor.stride() != whole.stride():
            raise UnsupportedModel(
                f"The folder stores {name} in another form than the model uses; it cannot be streamed.",
                remedy="Load the whole model, without SALEM_STREAM_WEIGHTS.",
            )
        return key


def build_on_meta(loader: Any, folder: Path, config: PretrainedConfig, dtype: torch.dtype | str) -> MetaModel:
    """Build a folder's model without reading weights.

    Args:
        loader: an auto class of transformers.
        dtype: the type of the weights, or `auto`.

    Raises:
        Whatever transformers and safetensors raise for a damaged or unsuitable folder.
    """
    stored = StoredWeights(folder)
    placed: dict[int, tuple[str, Tensor]] = {}
    with torch.device("meta"):
        kind = type(loader.from_config(deepcopy(config), trust_remote_code=False))
    keys = list(stored.files)
    stubs = {
        key: _TensorStub(key, tensor, placed) for key, tensor in zip(keys, stored.read(keys), strict=True)
    }
    options = {"config": config, "state_dict": stubs, "dtype": dtype}
    model, info = kind.from_pretrained(None, **options, output_loading_info=True)
    return MetaModel(model, info, stored, placed)


@dataclass(frozen=True)
class _BlockParameter:
    """A parameter inside a block; it is on the meta device unless the block runs."""

    module: nn.Module
    name: str
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class BlockWeights:
    """The weights of all blocks, read from the folder when they are needed."""

    stored: StoredWeights
    parameters: Mapping[nn.Module, Sequence[_BlockParameter]]
    device: torch.device

    @contextmanager
    def loaded(self, module: nn.Module) -> Iterator[None]:
        """While active, all parameters in `module` have values. Parameters outside blocks always do."""
        parameters = [parameter for part in module.modules() for parameter in self.parameters.get(part, ())]
        before = [getattr(parameter.module, parameter.name) for parameter in parameters]
        try:
            for parameter, value in zip(
                parameters, self.stored.read([p.key for p in parameters]), strict=True
            ):
                value = value.to(self.device, parameter.dtype)
                setattr(parameter.module, parameter.name, nn.Parameter(value, requires_grad=False))
            yield
        finally:
            for parameter, held in zip(parameters, before, strict=True):
                setattr(parameter.module, parameter.name, held)


def stream(outlined: MetaModel, device: torch.device) -> BlockWeights:
    """Read everything outside the blocks now, and let every block read its weights when it runs.

    Buffers, and parameters that a block shares with a module outside, are also read now.

    Raises:
        UnsupportedModel: there is no stack of blocks, or a weight is stored in another form than the model
        uses.
    """
    model, stored = outlined.model, outlined.stored
    blocks = {block for stack in find_stacks(model).values() for block in stack}
    inside = {module for block in blocks for module in block.modules()}
    outside = {id(w) for m in model.modules() if m not in inside for w in m.parameters(recurse=False)}
    parameters: dict[nn.Module, list[_BlockParameter]] = {}
    read: dict[int, nn.Parameter] = {}

    def value(name: str, held: Tensor) -> Tensor:
        found = stored.read([outlined.key(name, held)])[0] if held.is_meta else held
        return found.to(device, held.dtype)

    for path, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, value(f"{path}.{name}", buffer))
        for name, held in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            at = f"{path}.{name}"
            if held.is_meta and id(held) not in outside:
                parameters.setdefault(module, []).append(
                    _BlockParameter(module, name, outlined.key(at, held), held.dtype)
                )
                continue
            if id(held) not in read:
                read[id(held)] = nn.Parameter(value(at, held), requires_grad=False)
            setattr(module, name, read[id(held)])
    # Only now can tensors that are stored twice be compared and tied.
    model.tie_weights(missing_keys=set(), recompute_mapping=False)
    weights = BlockWeights(stored, parameters, device)
    for block in blocks:
        block.forward = _Streamed(block, weights)
    return weights


class _Streamed:
    """The forward of a block that reads its weights when it runs."""

    def __init__(self, block: nn.Module, weights: BlockWeights) -> None:
        self._block, self._weights = block, weights
        self._forward: Callable[..., Any] = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A block that writes to a key-value cache cannot run twice, because the cache would grow twice.
        if not torch.is_grad_enabled() or any(isinstance(x, Cache) for x in (*args, *kwargs.values())):
            return self._run(*args, **kwargs)
        again = partial(self._run_with_hooks, _saved_hooks(self._block))
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with self._weights.loaded(self._block):
            return self._forward(*args, **kwargs)

    def _run_with_hooks(self, hooks: SavedHooks, *args: Any, **kwargs: Any) -> Any:
        """Run with the hooks of the first run; they may be gone when the backward pass needs the block."""
        before = [(module, {name: vars(module).get(name) for name in saved}) for module, saved in hooks]
        try:
            _restore_hooks(hooks)
            return self._run(*args, **kwargs)
        finally:
            _restore_hooks(before)


def _saved_hooks(block: nn.Module) -> SavedHooks:
    """The hooks of all modules inside a block. Hooks of the block itself run around its forward."""
    return [
        (
            module,
            {**{name: copy(vars(module)[name]) for name in _HOOKS}, "forward": vars(module).get("forward")},
        )
        for module in block.modules()
        if module is not block
    ]


def _restore_hooks(hooks: SavedHooks) -> None:
    for module, parts in hooks:
        for name, part in parts.items():
            if part is not None:
                vars(module)[name] = part
            else:
                vars(module).pop(name, None)
