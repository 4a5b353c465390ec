"""The features that a scope reads from a prompt, against a slow float64 reference for one text at a time."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_salem_scope_state_scope import SHORT, TEXTS, drawn, reading_of
from tiny_models import ARCHITECTURES, tiny_network
from tokenizers import normalizers
from torch import Tensor

from salem.models.batching import encode_inputs
from salem.models.network import Network
from salem.models.tokens import tokenize
from salem.records import Task, TextInput
from salem.scope.features import COMMON, SLOTS, FeatureSpec, captured_states, features, pool, token_rarity

PRIMES = (1_000_003, 7_368_787, 92_821_237, 179_424_673)


def slow_pool(
    embedded: Tensor,  # [t, d]
    state: Tensor,  # [t, d]
    ids: list[int],
    second: list[bool],
    reading: FeatureSpec,
    task: Task,
) -> Tensor:
    """One text without padding -> [f] in float64, token by token."""
    found: list[Tensor] = []
    for part in (False, True) if reading.paired else (None,):
        places = [place for place in range(len(ids)) if part is None or second[place] is part]
        rare = {place: float(reading.rarity[ids[place]]) for place in places}
        for weights in (dict.fromkeys(places, 1.0), rare):
            for tokens in (embedded.double(), state.double()):
                total = sum((weights[p] * tokens[p] for p in places), torch.zeros_like(tokens[0]))
                found.append(total / max(sum(weights.values()), 1e-6))
        bag = torch.zeros(SLOTS, dtype=torch.float64)
        for place in places:
            for prime in PRIMES:
                mixed = (ids[place] + 1) * prime % (2**31 - 1)
                bag[mixed % SLOTS] += (-1) ** (mixed // SLOTS) * rare[place] / sum(rare.values())
        found.append(bag)
    return torch.cat([*found, state[-1 if task is Task.TEXT_GENERATION else 0].double()])


def slow_features(network: Network, item: TextInput, reading: FeatureSpec) -> Tensor:
    fields = encode_inputs(network, [item])
    length = int(fields["attention_mask"].sum())
    fields = {name: value[:, :length] for name, value in fields.items()}
    body = network.model.get_encoder() if network.task is Task.TEXT2TEXT_GENERATION else network.model
    with torch.no_grad():
        states = body(**fields, output_hidden_states=True).hidden_states
    kinds = fields.get("token_type_ids", torch.zeros(1, length, dtype=torch.long))[0]
    ids, second = fields["input_ids"][0].tolist(), kinds.bool().tolist()
    return slow_pool(states[0][0], states[reading.block][0], ids, second, reading, network.task)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_those_of_each_text_alone(architecture: str, block: int) -> None:
    network = tiny_network(architecture)
    reading = reading_of(network, block)
    found = features(network, TEXTS, reading)
    assert found.dtype == torch.float32
    for row, item in zip(found, TEXTS, strict=True):
        torch.testing.assert_close(row.double(), slow_features(network, item, reading), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_after_its_last_block_an_encoder_is_read_at_its_output(architecture: str) -> None:
    network = tiny_network(architecture)
    reading = reading_of(network, 3)
    found = features(network, TEXTS, reading)
    for row, item in zip(found, TEXTS, strict=True):
        torch.testing.assert_close(row.double(), slow_features(network, item, reading), rtol=1e-3, atol=1e-4)


def test_the_texts_of_a_pair_are_pooled_separately() -> None:
    network, reading = tiny_network("bert"), reading_of(tiny_network("bert"), paired=True)
    pairs = [TextInput(input=SHORT, text_pair="the parcel is here"), TextInput(input="lamp", text_pair=SHORT)]
    found = features(network, [*pairs, TEXTS[0]], reading)
    for row, item in zip(found, [*pairs, TEXTS[0]], strict=True):
        torch.testing.assert_close(row.double(), slow_features(network, item, reading), rtol=1e-3, atol=1e-4)
    width = (found.shape[1] - 16) // 2
    assert not found[2, width : 2 * width].any(), "a text alone has no second text"
    swapped = features(network, [TextInput(input="the parcel is here", text_pair=SHORT)], reading)[0]
    assert not torch.allclose(swapped[:width], found[0, :width], atol=0.1)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_read_on_either_side(side: str, paired: bool, task: Task) -> None:
    lengths, width, d = (5, 9, 2), 9, 4
    ids = torch.randint(0, 50, (3, width), generator=torch.Generator().manual_seed(1))
    embedded, state = drawn(3, width, d, seed=2), drawn(3, width, d, seed=3)
    mask, kinds = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    reading = FeatureSpec(
        "blocks", 1, paired, torch.rand(50, generator=torch.Generator().manual_seed(4)) + 0.01
    )
    spans = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        mask[row, span] = 1
        kinds[row, span.start + 1 :] = 1  # padding on the right is marked as well: it must not count
    fields = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    found = pool(task, embedded, state, fields, reading)
    for row, span in enumerate(spans):
        second = kinds[row, span].bool().tolist()
        expected = slow_pool(
            embedded[row, span], state[row, span], ids[row, span].tolist(), second, reading, task
        )
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_rare_tokens_get_the_published_weight() -> None:
    network = tiny_network("gpt2")
    counts = Counter(token for ids in tokenize(network.tokenizer, TEXTS)["input_ids"] for token in ids)
    total = sum(counts.values())
    found = token_rarity(network, TEXTS)
    assert len(found) == network.model.get_input_embeddings().num_embeddings
    for token, rarity in enumerate(found.tolist()):
        assert rarity == pytest.approx(COMMON / (COMMON + counts[token] / total), rel=1e-5)
    assert found.max() == 1 and found.min() < 0.1
    assert torch.equal(token_rarity(network, []), torch.ones(len(found))), (
        "without any text, all tokens are rare"
    )


def test_a_text_without_tokens_has_zero_features() -> None:
    tokenizer = copy.deepcopy(tiny_network("gpt2").tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    network = replace(tiny_network("gpt2"), tokenizer=tokenizer)
    empty = TextInput(input="\u200b")
    assert tokenize(network.tokenizer, [empty])["input_ids"] == [[]]
    assert torch.equal(token_rarity(network, [empty, *TEXTS]), token_rarity(network, TEXTS))


def test_a_rare_token_moves_the_weighted_pools_most() -> None:
    network = tiny_network("bert")
    reading = reading_of(network)
    even = replace(reading, rarity=torch.full_like(reading.rarity, 0.3))
    plain, plain_state, rare, rare_state = features(network, TEXTS, even)[:, :64].chunk(4, dim=-1)
    torch.testing.assert_close(rare, plain)
    torch.testing.assert_close(rare_state, plain_state)
    plain, _, rare, _ = features(network, TEXTS, reading)[:, :64].chunk(4, dim=-1)
    assert not torch.allclose(rare, plain, atol=1e-2)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_reading_leaves_no_hook_and_stops_at_the_block(architecture: str) -> None:
    network = tiny_network(architecture)
    reached: list[int] = []
    handle = network.module(f"{network.layers[0].stack}.1").register_forward_hook(
        lambda *_: reached.append(1)
    )
    try:
        embedded, state = captured_states(network, encode_inputs(network, TEXTS), reading_of(network, 1))
    finally:
        handle.remove()
    assert not reached, "the block that is read does not run"
    assert embedded.shape == state.shape and not torch.equal(embedded, state)
    assert not any(module._forward_pre_hooks for module in network.model.modules())
