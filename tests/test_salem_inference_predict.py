"""Answering: labels with scores, greedy texts, with and without a delta, against slow references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, LABELS, MAX_TOKENS, first_task, tiny_model, tiny_network
from torch import Tensor
from transformers import GenerationConfig

from salem.deltas.terms import Dense, LayerDelta, LowRank, Term, applied
from salem.errors import InvalidRequest
from salem.inference.predict import predict, same_answer
from salem.models.batching import encode_inputs
from salem.models.network import Network, as_network
from salem.models.tokens import count_tokens
from salem.records import Layer, Task, TextInput

INPUTS = [
    TextInput(input="where is my order"),
    TextInput(input="the password does not work and i cannot log in to my account"),
    TextInput(input="lamp"),
    TextInput(input="Who wrote the book? Anna"),
]
GENERATORS = [name for name in ARCHITECTURES if first_task(name).generates]
CLASSIFIERS = [name for name in ARCHITECTURES if not first_task(name).generates]
WRITERS = [name for name in ARCHITECTURES if first_task(name) is Task.TEXT_GENERATION]


def outputs(network: Network, inputs: list[TextInput] = INPUTS, max_new_tokens: int = 6) -> list[str]:
    return [prediction.output for prediction in predict(network, inputs, max_new_tokens=max_new_tokens)]


def random_term(layer: Layer, kind: type[Term], seed: int) -> Term:
    draw = torch.Generator().manual_seed(seed)
    if kind is Dense:
        return Dense(torch.randn(layer.d_out, layer.d_in, generator=draw) / layer.d_in**0.5)
    a = torch.randn(2, layer.d_in, generator=draw)
    return LowRank(a, torch.randn(layer.d_out, 2, generator=draw) / layer.d_in**0.5)


def with_changed_weight(network: Network, layer: Layer, update: Tensor) -> Network:
    """The same model with `update` [d_out, d_in] added to the weight: the dense reference."""
    model = copy.deepcopy(network.model)
    weight = model.get_submodule(layer.path).weight
    with torch.no_grad():
        weight += update.T if layer.transposed else update
    return as_network(model, network.tokenizer, network.task)


def greedy_ids(network: Network, text: TextInput, max_new_tokens: int) -> list[int]:
    """One text at a time, no padding, no cache, one whole forward for each token, including the end."""
    decoder = network.task is Task.TEXT_GENERATION
    prompt = encode_inputs(network, [text], padding="left")
    read = {"input_ids": prompt["input_ids"][prompt["attention_mask"] == 1].unsqueeze(0)}
    written = read["input_ids"] if decoder else torch.tensor([[network.start_id]])
    start = written.shape[1]
    for _ in range(max_new_tokens):
        fields = {"input_ids": written} if decoder else {**read, "decoder_input_ids": written}
        with torch.no_grad():
            token = network.model(**fields, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        written = torch.cat([written, token], dim=1)
        if token.item() == network.eos_id:
            break
    ids: list[int] = written[0, start:].tolist()
    return ids


def greedy_without_cache(network: Network, text: TextInput, max_new_tokens: int) -> str:
    ids = greedy_ids(network, text, max_new_tokens)
    return network.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("architecture", GENERATORS)
def test_cached_batched_generation_equals_token_by_token(architecture: str) -> None:
    network = tiny_network(architecture)
    found = outputs(network, max_new_tokens=8)
    assert found == [greedy_without_cache(network, text, 8) for text in INPUTS]
    assert len(set(found)) > 1, "the tiny model answers everything alike: this test shows nothing"


@pytest.mark.parametrize("kind", [LowRank, Dense])
@pytest.mark.parametrize("architecture", GENERATORS)
def test_generating_with_a_delta_equals_a_model_with_changed_weights(
    architecture: str, kind: type[Term]
) -> None:
    network = tiny_network(architecture)
    base = outputs(network)
    changed = 0
    for seed, layer in enumerate({layer.stack: layer for layer in network.layers}.values()):
        term = random_term(layer, kind, seed)
        expected = outputs(with_changed_weight(network, layer, term.dense()))
        with applied(network.model, [LayerDelta(layer.path, (term,))]):
            assert outputs(network) == expected, layer.path
            assert [greedy_without_cache(network, text, 6) for text in INPUTS] == expected, layer.path
        changed += expected != base
    assert changed
    assert outputs(network) == base, "the delta is gone"


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_scores_with_a_delta_equal_those_of_a_model_with_changed_weights(architecture: str) -> None:
    network = tiny_network(architecture)
    base = predict(network, INPUTS)
    for layer in network.layers:
        term = random_term(layer, LowRank, layer.block)
        expected = predict(with_changed_weight(network, layer, term.dense()), INPUTS)
        with applied(network.model, [LayerDelta(layer.path, (term,))]):
            found = predict(network, INPUTS)
        for one, other, before in zip(found, expected, base, strict=True):
            assert one.scores is not None and other.scores is not None
            assert one.scores == pytest.approx(other.scores, abs=1e-5)
            assert one.scores != before.scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_inputs_in_the_batch_do_not_change_an_answer(architecture: str) -> None:
    network = tiny_network(architecture)
    alone = [predict(network, [text], max_new_tokens=6)[0] for text in INPUTS]
    for batch_size in (2, 64):
        together = predict(network, INPUTS, max_new_tokens=6, batch_size=batch_size)
        assert [answer.output for answer in together] == [answer.output for answer in alone]
        for one, other in zip(together, alone, strict=True):
            assert (one.scores or {}) == pytest.approx(other.scores or {}, abs=2e-6)


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_long_input_in_the_batch_does_not_shorten_another_answer(architecture: str) -> None:
    """Each answer may fill the window, whatever else is in the batch."""
    network = tiny_network(architecture)
    beside = [TextInput(input=" ".join(["order"] * size)) for size in (39, 40, 44, 46, 46)]
    asked = [*INPUTS, *beside, TextInput(input=" ".join(["lamp"] * 40))]
    alone = [predict(network, [text], max_new_tokens=20)[0] for text in asked]
    assert outputs(network, asked, max_new_tokens=20) == [answer.output for answer in alone]
    assert len(greedy_ids(network, INPUTS[0], 20)) > 2, "there is something to be cut short"


def test_only_prompts_near_the_limit_run_in_their_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("gpt2")
    asked: list[int] = []
    generate = network.model.generate

    def counting(**fields: Any) -> Any:
        asked.append(len(fields["input_ids"]))
        return generate(**fields)

    monkeypatch.setattr(network.model, "generate", counting)
    texts = [TextInput(input=" ".join(["a"] * size)) for size in (47, 10, 43, 42, 47, 48, 44)]
    assert count_tokens(network.tokenizer, texts) == [47, 10, 43, 42, 47, 48, 44]
    predict(network, texts, max_new_tokens=4)
    assert asked == [1, 2, 4], "48, both of 47, and all that have room for four tokens"
    asked.clear()
    predict(network, texts[1:4], max_new_tokens=4)
    assert asked == [3]


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_label_has_the_highest_score_and_scores_sum_to_one(architecture: str) -> None:
    network = tiny_network(architecture)
    for answer in predict(network, [*INPUTS, TextInput(input="the lamp", text_pair="is broken")]):
        assert answer.scores is not None
        assert tuple(answer.scores) == LABELS
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert answer.scores[answer.output] == max(answer.scores.values())


def test_no_inputs_give_no_answers() -> None:
    assert predict(tiny_network("bert"), []) == []


@pytest.mark.parametrize("architecture", GENERATORS)
def test_the_generation_config_of_a_checkpoint_is_ignored(architecture: str) -> None:
    model = tiny_model(architecture)
    model.generation_config = GenerationConfig(
        num_beams=3, do_sample=True, temperature=2.0, no_repeat_ngram_size=1, repetition_penalty=5.0,
        min_new_tokens=8, forced_bos_token_id=7, forced_eos_token_id=9, suppress_tokens=list(range(10, 120)),
    )  # fmt: skip
    network = tiny_network(architecture)
    assert outputs(as_network(model, network.tokenizer, network.task)) == outputs(network)


@pytest.mark.parametrize("architecture", GENERATORS)
def test_an_answer_ends_before_the_end_of_sequence(architecture: str) -> None:
    network = tiny_network(architecture)
    tokenizer = copy.deepcopy(network.tokenizer)
    words = greedy_ids(network, INPUTS[1], 6)
    end = words[2]  # as if the third token that is written were the end
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    ended = as_network(network.model, tokenizer, network.task)
    rows = [greedy_ids(ended, text, 6) for text in INPUTS]
    assert any(end in row for row in rows)
    before_end = [row[: row.index(end)] if end in row else row for row in rows]
    expected = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in before_end]
    assert outputs(ended) == expected


@pytest.mark.parametrize("architecture", [*WRITERS, "bart"])
@pytest.mark.parametrize("spare_tokens", [0, 1, 3])
def test_a_prompt_near_the_position_limit_is_answered(architecture: str, spare_tokens: int) -> None:
    network = tiny_network(architecture)
    text = TextInput(input="order")
    overhead = count_tokens(network.tokenizer, [text])[0] - 1
    words = " ".join(["order"] * (MAX_TOKENS - spare_tokens - overhead))
    full = TextInput(input=words)
    assert count_tokens(network.tokenizer, [full]) == [MAX_TOKENS - spare_tokens]
    answers = predict(network, [full, text], max_new_tokens=100)
    assert len(answers) == 2


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart"])
def test_an_input_over_the_limit_is_named(architecture: str) -> None:
    network = tiny_network(architecture)
    with pytest.raises(InvalidRequest, match=f"longer than {MAX_TOKENS} tokens") as caught:
        predict(network, [*INPUTS, TextInput(input="order " * (MAX_TOKENS + 1))])
    assert [error.pointer for error in caught.value.errors] == ["/inputs/4"]


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_blank_prompt_is_answered(architecture: str) -> None:
    assert len(outputs(tiny_network(architecture), [TextInput(input=" "), *INPUTS])) == 5


@pytest.mark.parametrize(
    ("output", "target", "same"),
    [
        ("Paris", "Paris", True),
        (" Paris\n", "Paris", True),
        ("New  York", "New York", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("", "Paris", False),
        ("NewYork", "New York", False),
    ],
)
def test_answers_are_compared_exactly_except_for_white_space(output: str, target: str, same: bool) -> None:
    assert same_answer(output, target) is same
