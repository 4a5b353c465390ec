"""Samples as tensors: answer positions, padding, and the cut between a prompt and its answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, LABELS, MAX_TOKENS, build_network, first_task, tiny_network
from tokenizers import normalizers
from torch.nn.functional import cross_entropy

from salem.errors import EditFailed
from salem.models.batching import (
    IGNORED,
    LENGTH_BUCKET,
    Answers,
    Batch,
    answers_of,
    encode,
    encode_inputs,
    forward,
    in_buckets,
    supports_logits_to_keep,
)
from salem.models.network import Network, as_network
from salem.models.tokens import continuation_ids
from salem.records import Sample, Task, TextInput

PROMPTS = (
    "The capital of France is",
    "lamp",
    "Who wrote the book? Anna wrote it in Rome",
    "where is my order",
)
TARGETS = ("Paris", "it was Anna who wrote", "Lima", "Rome")
WRITERS = [name for name in ARCHITECTURES if first_task(name) is Task.TEXT_GENERATION]
TRANSLATORS = [name for name in ARCHITECTURES if first_task(name) is Task.TEXT2TEXT_GENERATION]
CLASSIFIERS = [name for name in ARCHITECTURES if first_task(name) is Task.SEQUENCE_CLASSIFICATION]
HABITS = ["bytes", "bytes-eos-first", "metaspace", "metaspace-bos", "metaspace-eos", "prepend-bos"]


def samples_for(network: Network) -> list[Sample]:
    targets = TARGETS if network.task.generates else LABELS
    return [Sample(input=x, target=y) for x, y in zip(PROMPTS, targets, strict=True)]


def hf_labels(network: Network, batch: Batch) -> torch.Tensor:
    """The targets in the form that transformers needs: a decoder shifts them inside the model."""
    if network.task is Task.SEQUENCE_CLASSIFICATION:
        return batch.targets[:, 0]
    if network.task is Task.TEXT2TEXT_GENERATION:
        return batch.targets
    return torch.cat([torch.full_like(batch.targets[:, :1], IGNORED), batch.targets[:, :-1]], dim=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_loss_at_the_answer_positions_is_the_models_own(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = encode(network, samples_for(network))
    answers = forward(network, batch)
    # A decoder input of our own must be the one that the model derives from the labels.
    inputs = {key: value for key, value in batch.inputs.items() if key != "decoder_input_ids"}
    theirs = network.model(**inputs, labels=hf_labels(network, batch)).loss
    torch.testing.assert_close(cross_entropy(answers.logits, answers.targets), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_padding_changes_no_answer(architecture: str) -> None:
    network = tiny_network(architecture)
    samples = samples_for(network)
    together = forward(network, encode(network, samples))
    for row, sample in enumerate(samples):
        alone = forward(network, encode(network, [sample]))
        torch.testing.assert_close(together.logits[together.sample == row], alone.logits, atol=1e-5, rtol=0)
        assert together.targets[together.sample == row].tolist() == alone.targets.tolist()


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_singles_and_pairs_mix_in_one_batch(architecture: str) -> None:
    network = tiny_network(architecture)
    mixed = [
        TextInput(input="where is my order"),
        TextInput(input="the lamp", text_pair="is broken"),
        TextInput(input="log in", text_pair=""),
    ]
    fields = encode_inputs(network, mixed)
    assert ("token_type_ids" in fields) == (network.tokenizer.model_input_names[-1] == "token_type_ids")
    for row, item in enumerate(mixed):
        theirs = network.tokenizer(item.input, item.text_pair)
        length = len(theirs["input_ids"])
        assert fields["attention_mask"][row].tolist() == [1] * length + [0] * (LENGTH_BUCKET - length)
        for key, values in theirs.items():
            assert fields[key][row, :length].tolist() == values
        assert set(fields["input_ids"][row, length:].tolist()) <= {network.pad_id}


def test_a_pair_is_not_read_as_one_text() -> None:
    network = tiny_network("bert")
    pair, text = TextInput(input="the lamp", text_pair="is broken"), TextInput(input="the lamp is broken")
    fields = encode_inputs(network, [pair, text])
    assert fields["token_type_ids"].sum(1).tolist()[1] == 0
    assert fields["token_type_ids"].sum(1).tolist()[0] > 0
    assert not torch.equal(fields["input_ids"][0], fields["input_ids"][1])


def test_labels_become_their_class_index() -> None:
    network = tiny_network("bert")
    batch = encode(network, [Sample(input="lamp", target=label) for label in ("other", "refund", "login")])
    assert batch.targets.tolist() == [[3], [0], [2]]
    assert len(batch) == 3


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(EditFailed, match='"refnud" is not one of the model\'s 4 labels'):
        encode(tiny_network("bert"), [Sample(input="lamp", target="refnud")])


@pytest.mark.parametrize("habits", HABITS)
@pytest.mark.parametrize("target", ["Paris", "Rome, Berlin or Madrid!", "the  door", "it\nwas"])
def test_prompt_and_answer_encode_like_one_text(habits: str, target: str) -> None:
    network = build_network("llama", habits=habits)
    sample = Sample(input="The capital of France is", target=target)
    prompt, answer = continuation_ids(network, sample)
    asked = encode_inputs(network, [sample], padding="left")["input_ids"][0].tolist()
    assert prompt == asked[-len(prompt) :], "the prompt is what generation starts from"
    assert answer[-1] == network.eos_id
    assert answer.count(network.eos_id) == 1
    whole = network.tokenizer(f"{sample.input} {target}")["input_ids"]
    assert prompt + answer == (whole if whole[-1] == network.eos_id else [*whole, network.eos_id])


@pytest.mark.parametrize("habits", HABITS)
@pytest.mark.parametrize("prompt", ["The capital of France is ", "The capital of France is\n", "book?"])
def test_an_answer_reads_back_as_its_target(habits: str, prompt: str) -> None:
    network = build_network("llama", habits=habits)
    asked, answer = continuation_ids(network, Sample(input=prompt, target="Paris"))
    assert asked == continuation_ids(network, Sample(input=prompt, target="Lima"))[0]
    assert network.tokenizer.decode(answer, skip_special_tokens=True).split() == ["Paris"]


def test_an_answer_from_a_tokenizer_that_marks_starts_has_one_mark() -> None:
    """The tokenizer marks the start of every text, so a prompt has other tokens once an answer follows."""
    network = build_network("llama", habits="prepend-bos")
    tokenizer = copy.deepcopy(network.tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace(". ", "! "), backend.normalizer])
    changed = as_network(network.model, tokenizer, network.task)
    prompt, answer = continuation_ids(changed, Sample(input="The capital is not Rome.", target="Paris"))
    written = tokenizer.convert_ids_to_tokens(answer[:-1])
    assert "".join(written) == "▁Paris"
    assert tokenizer.decode(prompt).endswith("Rome.")


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_decoders_pair_is_part_of_its_prompt(architecture: str) -> None:
    network = tiny_network(architecture)
    sample = Sample(input="Anna wrote it", text_pair="Who wrote the book?", target="Anna")
    prompt, answer = continuation_ids(network, sample)
    assert prompt == network.tokenizer(sample.input, sample.text_pair)["input_ids"]
    last_alone = continuation_ids(network, Sample(input="Who wrote the book?", target="Anna"))[1]
    assert answer == last_alone


@pytest.mark.parametrize("architecture", WRITERS)
def test_targets_are_shifted_one_position_before_their_token(architecture: str) -> None:
    network = tiny_network(architecture)
    samples = samples_for(network)
    batch = encode(network, samples)
    for row, sample in enumerate(samples):
        prompt, answer = continuation_ids(network, sample)
        ids, targets = batch.inputs["input_ids"][row].tolist(), batch.targets[row].tolist()
        places = [place for place, target in enumerate(targets) if target != IGNORED]
        assert places == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
        assert [targets[place] for place in places] == [ids[place + 1] for place in places] == answer


@pytest.mark.parametrize("architecture", WRITERS)
def test_an_empty_prompt_gets_a_start_token(architecture: str) -> None:
    network = tiny_network(architecture)
    tokenizer = copy.deepcopy(network.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = None  # type: ignore[assignment]
    emptied = as_network(network.model, tokenizer, network.task)
    sample = Sample(input="\u200b", target="Paris")
    prompt, answer = continuation_ids(emptied, sample)
    assert len(prompt) == 1
    batch = encode(emptied, [sample])
    assert batch.targets[0, : len(answer)].tolist() == answer
    assert encode_inputs(emptied, [sample], padding="left")["input_ids"].shape == (1, 1)


def test_an_encoder_decoder_encodes_the_same_with_and_without_an_automatic_end() -> None:
    with_end, without = build_network("t5"), build_network("t5", habits="metaspace")
    assert with_end.tokenizer("lamp")["input_ids"][-1] == with_end.eos_id
    assert without.tokenizer("lamp")["input_ids"][-1] != without.eos_id
    first, second = encode(with_end, samples_for(with_end)), encode(without, samples_for(without))
    assert first.inputs.keys() == second.inputs.keys()
    assert all(torch.equal(first.inputs[key], second.inputs[key]) for key in first.inputs)
    assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("architecture", TRANSLATORS)
def test_a_decoder_reads_its_targets_shifted_by_one(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = encode(network, samples_for(network))
    fed = batch.inputs["decoder_input_ids"]
    assert set(fed[:, 0].tolist()) == {network.model.config.decoder_start_token_id}
    asked = batch.targets[:, :-1] != IGNORED
    assert torch.equal(fed[:, 1:][asked], batch.targets[:, :-1][asked])
    assert set(fed[:, 1:][~asked].tolist()) <= {network.pad_id}
    for row in batch.targets:
        assert row[row != IGNORED][-1] == network.eos_id


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_lengths_fall_into_buckets(architecture: str) -> None:
    network = tiny_network(architecture)
    target = "other" if architecture == "bert" else "Rome"
    for num_words in (1, 12, 20):
        sample = Sample(input=" ".join(["order"] * num_words), target=target)
        length = encode(network, [sample]).inputs["input_ids"].shape[1]
        assert length % LENGTH_BUCKET == 0
        assert length - LENGTH_BUCKET < num_words + 4


def test_a_bucket_never_exceeds_the_models_limit() -> None:
    network = tiny_network("roberta")
    assert network.max_input_tokens == MAX_TOKENS - 1, "not a multiple of the bucket"
    text = " ".join(["order"] * (network.max_input_tokens - 2))
    batch = encode(network, [Sample(input=text, target="other")])
    assert batch.inputs["input_ids"].shape[1] == network.max_input_tokens
    with torch.no_grad():
        assert forward(network, batch).logits.isfinite().all()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "bart", "gpt2", "opt"])
def test_a_sample_over_the_limit_is_refused(architecture: str) -> None:
    network = tiny_network(architecture)
    target = "Rome" if network.task.generates else "other"
    with pytest.raises(EditFailed, match=f"takes at most {network.max_input_tokens}"):
        encode(network, [Sample(input="order " * (MAX_TOKENS + 5), target=target)])


@pytest.mark.parametrize("architecture", ["bart", "gpt2"])
def test_a_target_over_the_limit_is_refused(architecture: str) -> None:
    with pytest.raises(EditFailed, match=f"takes at most {MAX_TOKENS}"):
        encode(tiny_network(architecture), [Sample(input="lamp", target="order " * (MAX_TOKENS + 5))])


@pytest.mark.parametrize("architecture", WRITERS)
def test_prompts_for_generation_are_left_padded_to_the_longest_only(architecture: str) -> None:
    network = tiny_network(architecture)
    inputs = [TextInput(input=text) for text in PROMPTS]
    fields = encode_inputs(network, inputs, padding="left")
    lengths = fields["attention_mask"].sum(1).tolist()
    assert fields["input_ids"].shape[1] == max(lengths)
    for row, length in enumerate(lengths):
        assert fields["attention_mask"][row].tolist() == [0] * (max(lengths) - length) + [1] * length
        assert (
            fields["input_ids"][row, max(lengths) - length :].tolist()
            == network.tokenizer(PROMPTS[row])["input_ids"]
        )


def test_rows_of_a_batch() -> None:
    network = tiny_network("t5")
    batch = encode(network, samples_for(network))
    picked = batch.rows(torch.tensor([2, 0]))
    assert len(picked) == 2
    assert torch.equal(picked.targets, batch.targets[[2, 0]])
    assert all(torch.equal(picked.inputs[key], batch.inputs[key][[2, 0]]) for key in batch.inputs)


def test_answer_positions_are_picked_row_by_row() -> None:
    logits = torch.arange(24.0).reshape(2, 3, 4)
    answers = answers_of(logits, Batch({}, torch.tensor([[IGNORED, 1, 2], [3, IGNORED, IGNORED]])))
    assert answers.targets.tolist() == [1, 2, 3]
    assert answers.sample.tolist() == [0, 0, 1]
    assert torch.equal(answers.logits, torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]))


@pytest.mark.parametrize("architecture", [*WRITERS, *TRANSLATORS])
@torch.no_grad()
def test_logits_at_answer_positions_equal_those_of_a_whole_forward(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = encode(network, samples_for(network))
    whole = network.model(**batch.inputs, use_cache=False).logits
    entering: list[Any] = []
    head = network.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: entering.append(args[0].shape[:-1]))
    try:
        answers = forward(network, batch)
    finally:
        handle.remove()
    torch.testing.assert_close(answers.logits, whole[batch.answer_mask], atol=1e-6, rtol=1e-5)
    asked = int(batch.answer_mask.sum())
    assert asked < batch.targets.numel()
    assert entering == [(asked,) if architecture in WRITERS else tuple(batch.targets.shape)]


@torch.no_grad()
def test_a_decoder_without_logits_to_keep_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("gpt2")
    batch = encode(network, samples_for(network))
    told = forward(network, batch)
    kind = type(network.model)
    whole = kind.forward

    def without_the_argument(self: Any, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
        return whole(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    assert supports_logits_to_keep(network)
    monkeypatch.setattr(kind, "forward", without_the_argument)
    assert not supports_logits_to_keep(network)
    torch.testing.assert_close(forward(network, batch).logits, told.logits, atol=1e-6, rtol=1e-5)


def test_means_are_per_sample_not_per_position() -> None:
    answers = Answers(torch.zeros(3, 2), torch.zeros(3), torch.tensor([0, 0, 2]), num_samples=3)
    assert answers.mean_per_sample(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([], 4, []),
        ([3], 4, [[0]]),
        ([3, 9, 5, 9], 2, [[1, 3], [2, 0]]),
        ([1, 1, 1], 2, [[0, 1], [2]]),
    ],
)
def test_buckets_hold_each_sample_once_longest_first(lengths: list[int], size: int, expected: Any) -> None:
    assert list(in_buckets(lengths, size)) == expected
