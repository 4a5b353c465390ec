"""The trunk: everything below the edited block, run once and replayed.

An edit changes one layer, so the input of its block is the same for the base, every training step, and every
version. `capture` runs a batch up to that block and keeps what the block below it returned; `resume` runs the
same batch from there on. Both use the model's own forward: capturing stops it with a hook, and resuming puts
replay modules in place of the blocks below. No code here is specific to one architecture.

Must not know samples, editors, or versions. Deltas that are applied to the model act on both halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from salem.models.batching import Answers, Batch, forward
from salem.models.network import Network
from salem.models.prompt_cache import PromptCache, can_read_prompts, read_prompts
from salem.records import Layer


@dataclass(frozen=True)
class Trunk:
    """A batch stopped below the edited block; `state` is None if the block is the first of its stack."""

    layer: Layer
    batch: Batch
    state: Any  # what block l-1 returned: a tensor [n, t, d] or a tuple of such, position biases, None
    encoder_state: Tensor | None  # [n, t, d] the encoder's output, if the block is in a seq2seq decoder
    prompts: PromptCache | None = None  # the tokens before those of `batch`, if it does not hold all

    def rows(self, index: Tensor) -> Trunk:
        """The samples at `index` [k]."""
        n = len(self.batch)
        encoder = None if self.encoder_state is None else self.encoder_state[index]
        prompts = None if self.prompts is None else self.prompts.rows(index)
        return Trunk(self.layer, self.batch.rows(index), _rows(self.state, index, n), encoder, prompts)

    @property
    def num_bytes(self) -> int:
        encoder = 0 if self.encoder_state is None else self.encoder_state.nbytes
        prompts = 0 if self.prompts is None else self.prompts.num_bytes
        return encoder + prompts + sum(leaf.nbytes for leaf in _leaves(self.state))


class _Reached(Exception):
    """Stops a forward pass and carries what the block below the edited one returned."""

    def __init__(self, state: Any) -> None:
        self.state = state


class _Replay(nn.Module):
    """Replaces a block: returns a recorded state, whatever its arguments are."""

    def __init__(self, state: Any, block: nn.Module) -> None:
        super().__init__()
        self._state = state
        self._block = (block,)  # in a tuple, so that it is not registered as a submodule

    def __getattr__(self, name: str) -> Any:
        """Attributes of the replaced block: some models choose the mask by the block's kind of attention."""
        return getattr(self._block[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._state


@torch.no_grad()
def capture(network: Network, batch: Batch, layer: Layer) -> Trunk:
    """Run `batch` up to the block that holds `layer` and keep what enters it."""
    encoder_state = _encode(network, batch) if in_seq2seq_decoder(network, layer) else None
    return _stopped(network, Trunk(layer, batch, None, encoder_state))


@torch.no_grad()
def capture_answers(network: Network, batch: Batch, layer: Layer, tail: int) -> Trunk:
    """Like `capture`, for a change that acts only on the last `tail` tokens of each prompt and on the answer.

    The trunk then holds only these tokens, and a cache of the others. If the model is not a decoder, or no
    prompt is longer than `tail`, it is the trunk of `capture`.
    """
    found = read_prompts(network, batch, tail) if can_read_prompts(network) else None
    if found is None:
        return capture(network, batch, layer)
    prompts, answers = found
    trunk = _stopped(network, Trunk(layer, answers, None, None, prompts))
    return replace(trunk, prompts=prompts.from_block(layer.block))


def _stopped(network: Network, trunk: Trunk) -> Trunk:
    """The trunk with its state: the model runs until the block below the layer's returns."""
    layer = trunk.layer
    if layer.block == 0:
        return trunk
    below = network.module(f"{layer.stack}.{layer.block - 1}")

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = below.register_forward_hook(stop)
    try:
        forward(network, trunk.batch, **_given(trunk))
    except _Reached as reached:
        return replace(trunk, state=_detached(reached.state))
    finally:
        handle.remove()
    raise AssertionError(f"the model's forward did not run {layer.stack}.{layer.block - 1}")


@torch.no_grad()
def entering(network: Network, trunk: Trunk) -> Tensor:
    """The states [n, t, d] that enter the trunk's block."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    block = network.module(f"{trunk.layer.stack}.{trunk.layer.block}")
    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        resume(network, trunk)
    except _Reached as reached:
        state: Tensor = reached.state
        return state
    finally:
        handle.remove()
    raise AssertionError(f"the model's forward did not run {trunk.layer.stack}.{trunk.layer.block}")


def resume(network: Network, trunk: Trunk) -> Answers:
    """Run the rest of the model on a captured batch. Gradients flow to what is applied from `layer` up."""
    with _replaying(network, trunk):
        return forward(network, trunk.batch, **_given(trunk))


@contextmanager
def _replaying(network: Network, trunk: Trunk) -> Iterator[None]:
    """While active, replays of the state replace the blocks below.

    The number of blocks stays the same, because some models choose masks by a block's position in the stack.
    """
    blocks = network.module(trunk.layer.stack)
    assert isinstance(blocks, nn.ModuleList)
    below = list(blocks[: trunk.layer.block])
    try:
        for index, block in enumerate(below):
            blocks[index] = _Replay(trunk.state, block)
        yield
    finally:
        for index, block in enumerate(below):
            blocks[index] = block


def in_seq2seq_decoder(network: Network, layer: Layer) -> bool:
    """Whether `layer` is in the decoder of an encoder-decoder; then the encoder is part of the trunk."""
    if not network.model.config.is_encoder_decoder:
        return False
    encoder = network.model.get_encoder()
    return not any(module is network.module(layer.path) for module in encoder.modules())


def sees_answer_tokens(network: Network, layer: Layer) -> bool:
    """Whether the tokens of a generated answer pass through `layer`."""
    in_encoder = network.model.config.is_encoder_decoder and not in_seq2seq_decoder(network, layer)
    return network.task.generates and not in_encoder


def _encode(network: Network, batch: Batch) -> Tensor:
    encoder = network.model.get_encoder()
    mask = batch.inputs["attention_mask"]
    state: Tensor = encoder(input_ids=batch.inputs["input_ids"], attention_mask=mask).last_hidden_state
    return state


def _given(trunk: Trunk) -> dict[str, Any]:
    """What the model's forward gets besides the batch."""
    if trunk.encoder_state is not None:
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=trunk.encoder_state)}
    return {} if trunk.prompts is None else trunk.prompts.arguments()


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    return tuple(_detached(part) for part in state) if isinstance(state, tuple) else state


def _rows(state: Any, index: Tensor, n: int) -> Any:
    """Pick rows of every tensor that has one per sample; position biases that samples share stay whole."""
    if isinstance(state, Tensor):
        return state[index] if state.shape[0] == n else state
    return tuple(_rows(part, index, n) for part in state) if isinstance(state, tuple) else state


def _leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
