"""Runs a model whose blocks hold no weights: each block reads its own from the folder when it runs.

Weights stay in the folder's memory-mapped safetensors files. A block's are read before it runs and let go
afterwards. A backward runs the block once more instead of keeping what it computed (`torch.utils.checkpoint`;
Chen et al. 2016, "Training deep nets with sublinear memory cost"). So the peak is one block beside the
embeddings, the head and what the caller keeps. Weights are frozen: gradients flow to what enters a block and
to what is added inside it.

Knows safetensors files and the module tree, and lets transformers say which stored tensor belongs where. Does
not know tasks, tokenizers, deltas or what is trained.
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

# What hangs on a module besides its own forward.
_KINDS = ("pre_hooks", "pre_hooks_with_kwargs", "hooks", "hooks_with_kwargs", "hooks_always_called")
_HOOKS = tuple(f"_forward_{kind}" for kind in _KINDS)
Hung = list[tuple[nn.Module, dict[str, Any]]]  # modules with their hooks, and with a forward put in its place


class StoredWeights:
    """The tensors of a folder, read by the key under which each is stored."""

    def __init__(self, folder: Path) -> None:
        self.files = _files(folder)  # by key

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors stored under these keys, memory-mapped: they take memory as far as they are touched."""
        with ExitStack() as stack:
            files = {self.files[key] for key in keys}
            opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
            return [opened[self.files[key]].get_tensor(key) for key in keys]


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds each stored tensor; one file goes before an index of several, as in transformers."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        with safe_open(whole, framework="pt") as file:
            return dict.fromkeys(file.keys(), whole)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return {key: folder / name for key, name in index["weight_map"].items()}


class _Slot:
    """Stands for a stored tensor while transformers finds its place: it has shape and type and no values."""

    def __init__(self, key: str, stored: Tensor, placed: dict[int, tuple[str, Tensor]]) -> None:
        self.key, self.dtype, self.shape = key, stored.dtype, stored.shape
        self._placed = placed

    def __getitem__(self, index: object) -> _Slot:
        return self

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        empty = torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")
        self._placed[_storage(empty)] = (self.key, empty)
        return empty


def _storage(tensor: Tensor) -> int:
    """What tells apart tensors without memory: a parameter made of one shares it."""
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Outline:
    """A model on the meta device, and the stored tensors that belong to its parameters."""

    model: PreTrainedModel
    info: Mapping[str, Any]  # what transformers says of the loading, such as `missing_keys`
    stored: StoredWeights
    placed: Mapping[int, tuple[str, Tensor]]  # storage of a parameter's tensor -> key, the tensor itself

    def key(self, name: str, tensor: Tensor) -> str:
        """Under which key a parameter is stored as it is.

        Raises:
            UnsupportedModel: it is made from what is stored by joining, cutting or turning.
        """
        key, whole = self.placed.get(_storage(tensor), (None, tensor))
        if key is None or tensor.shape != whole.shape or tensor.stride() != whole.stride():
            raise UnsupportedModel(
                f"The folder stores {name} in another form than the model uses it; such a model cannot be "
                "streamed.",
                remedy="Load it as a whole, without SALEM_STREAM_WEIGHTS.",
            )
        return key


def outline(loader: Any, folder: Path, config: PretrainedConfig, dtype: torch.dtype | str) -> Outline:
    """Build a folder's model without reading a weight.

    Args:
        loader: an auto class of transformers.
        dtype: the type that the weights will have, or `auto`.

    Raises:
        what transformers and safetensors raise over a damaged or unfitting folder.
    """
    stored = StoredWeights(folder)
    placed: dict[int, tuple[str, Tensor]] = {}
    with torch.device("meta"):
        kind = type(loader.from_config(deepcopy(config), trust_remote_code=False))
    keys = list(stored.files)
    slots = {key: _Slot(key, tensor, placed) for key, tensor in zip(keys, stored.read(keys), strict=True)}
    options = {"config": config, "state_dict": slots, "dtype": dtype}
    model, info = kind.from_pretrained(None, **options, output_loading_info=True)
    return Outline(model, info, stored, placed)


@dataclass(frozen=True)
class _Place:
    """A parameter inside a block, on the meta device while the block does not run."""

    module: nn.Module
    name: str
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class BlockWeights:
    """The weights of all blocks of a model, read from the folder when they are needed."""

    stored: StoredWeights
    places: Mapping[nn.Module, Sequence[_Place]]
    device: torch.device

    @contextmanager
    def lent(self, module: nn.Module) -> Iterator[None]:
        """While active, all parameters in `module` have values; outside of blocks they always do."""
        places = [place for part in module.modules() for place in self.places.get(part, ())]
        before = [getattr(place.module, place.name) for place in places]
        try:
            for place, value in zip(places, self.stored.read([p.key for p in places]), strict=True):
                value = value.to(self.device, place.dtype)
                setattr(place.module, place.name, nn.Parameter(value, requires_grad=False))
            yield
        finally:
            for place, held in zip(places, before, strict=True):
                setattr(place.module, place.name, held)


def stream(outlined: Outline, device: torch.device) -> BlockWeights:
    """Read all that lies outside of the blocks, and let every block read its own weights when it runs.

    A parameter that a block shares with a module outside, and all buffers, are read now, too.

    Raises:
        UnsupportedModel: no stack of blocks was found, or a weight is stored in another form than it is used.
    """
    model, stored = outlined.model, outlined.stored
    blocks = {block for stack in find_stacks(model).values() for block in stack}
    inside = {module for block in blocks for module in block.modules()}
    outside = {id(w) for m in model.modules() if m not in inside for w in m.parameters(recurse=False)}
    places: dict[nn.Module, list[_Place]] = {}
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
                places.setdefault(module, []).append(_Place(module, name, outlined.key(at, held), held.dtype))
                continue
            if id(held) not in read:
                read[id(held)] = nn.Parameter(value(at, held), requires_grad=False)
            setattr(module, name, read[id(held)])
    # Tensors that are stored twice and may be one could not be compared before.
    model.tie_weights(missing_keys=set(), recompute_mapping=False)
    weights = BlockWeights(stored, places, device)
    for block in blocks:
        block.forward = _Streamed(block, weights)
    return weights


class _Streamed:
    """The forward of a block that holds no weights."""

    def __init__(self, block: nn.Module, weights: BlockWeights) -> None:
        self._block, self._weights = block, weights
        self._forward: Callable[..., Any] = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A cache grows when a block runs, so a block that writes to one cannot run once more.
        if not torch.is_grad_enabled() or any(isinstance(x, Cache) for x in (*args, *kwargs.values())):
            return self._run(*args, **kwargs)
        again = partial(self._run_hung, _hung(self._block))
        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with self._weights.lent(self._block):
            return self._forward(*args, **kwargs)

    def _run_hung(self, hung: Hung, *args: Any, **kwargs: Any) -> Any:
        """Run with the hooks of the first run: when the backward comes, what was added may be gone."""
        before = [(module, {name: vars(module).get(name) for name in then}) for module, then in hung]
        try:
            _hang(hung)
            return self._run(*args, **kwargs)
        finally:
            _hang(before)


def _hung(block: nn.Module) -> Hung:
    """What hangs on the modules inside a block now. Hooks of the block itself run around its forward."""
    return [
        (
            module,
            {**{name: copy(vars(module)[name]) for name in _HOOKS}, "forward": vars(module).get("forward")},
        )
        for module in block.modules()
        if module is not block
    ]


def _hang(hung: Hung) -> None:
    for module, parts in hung:
        for name, part in parts.items():
            if part is not None:
                vars(module)[name] = part
            else:
                vars(module).pop(name, None)
