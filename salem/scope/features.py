"""Features: a prompt's embeddings and states, pooled into one vector that a metric places on its sphere.

Plain means capture the kind of text. Means weighted by token rarity capture its topic, names above all (Arora
et al., "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", ICLR 2017, section 3). Hashed tokens
separate two rare names whose embeddings look alike (feature hashing, Weinberger et al., ICML 2009).
docs/log.md compares the pools. Must not know metrics, keys, or deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salem.models.batching import encode_inputs, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens, tokenize
from salem.records import Task, TextInput

FEATURE_BATCH = 64
COMMON = 1e-3  # a token with a larger share of all tokens counts as common
SLOTS = 256  # for hashed tokens
_MULTIPLIERS = (1_000_003, 7_368_787, 92_821_237, 179_424_673)  # primes: one hash each
_MODULUS = 2_147_483_647


@dataclass(frozen=True)
class FeatureSpec:
    """Which states are read, and how much each token counts."""

    stack: str  # path of the list of blocks that reads the prompt: the encoder's, if there is one
    block: int  # states are taken where they enter this block; the number of blocks means: leave the stack
    paired: bool  # whether inputs are pairs of texts
    rarity: Tensor  # [vocabulary] in (0, 1]: near 1 for rare tokens


def token_rarity(network: Network, inputs: Sequence[TextInput]) -> Tensor:
    """c / (c + the token's share of all tokens of these inputs) -> [vocabulary]."""
    counts = torch.zeros(network.model.get_input_embeddings().num_embeddings)
    for ids in tokenize(network.tokenizer, inputs)["input_ids"] if inputs else []:
        counts += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=len(counts))
    return (COMMON / (COMMON + counts / counts.sum().clamp(min=1))).to(network.device)


@torch.no_grad()
def features(network: Network, inputs: Sequence[TextInput], spec: FeatureSpec) -> Tensor:
    """The features of prompts -> [n, f] in float32. No delta may be applied while this runs."""
    pooled: Tensor | None = None
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), FEATURE_BATCH):
        fields = encode_inputs(network, [inputs[row] for row in rows])
        part = pool(network.task, *captured_states(network, fields, spec), fields, spec)
        if pooled is None:
            pooled = part.new_empty(len(inputs), part.shape[-1])
        pooled[rows] = part
    assert pooled is not None, "features of no inputs"
    return pooled


def pool(task: Task, embedded: Tensor, state: Tensor, fields: dict[str, Tensor], spec: FeatureSpec) -> Tensor:
    """Pool a padded batch -> [n, f] in float32.

    For each text of an input: mean embedding, mean state, the same weighted by rarity, and hashed tokens
    weighted by rarity. Then one state that sums up the whole input: an encoder's first, a decoder's last.

    Args:
        embedded: [n, t, d] what enters the stack.
        state: [n, t, d] what enters the block that the spec names.
        fields: the model's arguments, each [n, t]; padding on either side.
    """
    mask = fields["attention_mask"].bool()
    second = fields["token_type_ids"].bool() & mask if "token_type_ids" in fields else torch.zeros_like(mask)
    embedded, state = embedded.float(), state.float()
    rarity = spec.rarity[fields["input_ids"]]
    pools: list[Tensor] = []
    for segment in (mask & ~second, second) if spec.paired else (mask,):
        plain, rare = segment.float(), segment * rarity
        pools += [_mean(tokens, weights) for weights in (plain, rare) for tokens in (embedded, state)]
        pools.append(_hashed(fields["input_ids"], rare))
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    summed_up = (
        places.masked_fill(~mask, -1).amax(-1) if task is Task.TEXT_GENERATION else mask.int().argmax(-1)
    )
    return torch.cat([*pools, state[torch.arange(len(state), device=state.device), summed_up]], dim=-1)


def _mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """[n, t, d] weighted by [n, t] -> [n, d]; zero where nothing has weight."""
    return (weights.unsqueeze(1) @ tokens).squeeze(1) / weights.sum(1, keepdim=True).clamp(min=1e-6)


def _hashed(ids: Tensor, weights: Tensor) -> Tensor:
    """A weighted bag of tokens [n, t], each token spread with random signs over a few slots -> [n, SLOTS]."""
    mixed = (ids.unsqueeze(-1) + 1) * ids.new_tensor(_MULTIPLIERS) % _MODULUS  # [n, t, hashes]
    signs = 1.0 - 2.0 * (mixed // SLOTS % 2)
    shares = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    bag = shares.new_zeros(len(ids), SLOTS)
    return bag.scatter_add_(1, (mixed % SLOTS).flatten(1), (signs * shares.unsqueeze(-1)).flatten(1))


class _Captured(Exception):
    """Ends a forward pass early, at the block that was to be reached."""


class StateCapture:
    """Captures, while active, what enters a stack and one of its blocks in the model's own forward pass.

    Calls `captured` once per activation, with two tensors [n, t, d], as soon as both are known.
    """

    def __init__(
        self, network: Network, spec: FeatureSpec, captured: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._network, self._spec, self._captured = network, spec, captured
        self._embedded: Tensor | None = None
        self._done = False
        self._hooks = ExitStack()

    def __enter__(self) -> StateCapture:
        blocks = self._network.module(self._spec.stack)
        assert isinstance(blocks, nn.ModuleList)
        self._register(blocks[0].register_forward_pre_hook(self._enters_stack, with_kwargs=True))
        if self._spec.block < len(blocks):
            block = blocks[self._spec.block]
            self._register(block.register_forward_pre_hook(self._enters_block, with_kwargs=True))
        else:
            encoder = self._network.model.get_encoder()
            self._register(encoder.register_forward_hook(self._leaves_stack))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _register(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _enters_stack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._done:
            self._embedded = _hidden(args, kwargs)

    def _enters_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._report(_hidden(args, kwargs))

    def _leaves_stack(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._report(output.last_hidden_state)

    def _report(self, state: Tensor) -> None:
        if not self._done and self._embedded is not None:
            self._done = True
            self._captured(self._embedded, state)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    state: Tensor = args[0] if args else kwargs["hidden_states"]
    return state


@torch.no_grad()
def captured_states(network: Network, fields: dict[str, Tensor], spec: FeatureSpec) -> tuple[Tensor, Tensor]:
    """What enters the stack, and what enters the block, for these prompts -> two [n, t, d]."""
    found: list[tuple[Tensor, Tensor]] = []

    def stop(embedded: Tensor, state: Tensor) -> None:
        found.append((embedded, state))
        raise _Captured

    body = network.model.get_encoder() if network.model.config.is_encoder_decoder else network.model
    with StateCapture(network, spec, stop), suppress(_Captured):
        body(**fields)
    return found[0]
