"""Augmentations at the limit of the model's window: what does not fit is replaced by its sample."""

from __future__ import annotations

import random

import pytest
import torch
from recipe_cases import edit_context, measured, recipe
from test_worker_recipes_terms import case
from tiny_models import ARCHITECTURES, LABELS, MAX_TOKENS, tiny_network

from salem.errors import EditFailed
from salem.inference.predict import predict
from salem.models.batching import encode, encode_inputs
from salem.models.network import Network
from salem.models.tokens import sample_lengths
from salem.records import Edit, EditBatch, Sample
from salem.scope.lexical import WordCounts
from worker.dataset.augmentation import TYPING, augment_all
from worker.dataset.token_limits import augmented, prompts_fit, replace_too_long, samples_fit
from worker.hypernetworks import meta_training as editor_training
from worker.hypernetworks.meta_training import meta_batches
from worker.selection.trials import trial_edits
from worker.training.options import MARGIN

WORDS = ("order", "parcel", "lamp", "password", "account", "book", "door", "money", "Rome", "refund")


def of_length(network: Network, num_tokens: int, target: str, number: int) -> Sample:
    """A sample with this number of tokens."""
    words = [WORDS[number % len(WORDS)], WORDS[number // len(WORDS) % len(WORDS)]]
    while True:
        sample = Sample(input=" ".join(words), target=target)
        missing = num_tokens - sample_lengths(network, [sample])[0]
        if missing == 0:
            return sample
        assert missing > 0, "it cannot be made that long"
        words.insert(1, "lamp" if missing > 6 else "a")


def encodable(network: Network, sample: Sample) -> bool:
    try:
        encode(network, [sample])
    except EditFailed:
        return False
    return True


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_fit_exactly_if_they_can_be_encoded(architecture: str) -> None:
    network = tiny_network(architecture)
    target = "Rome now" if network.task.generates else LABELS[0]
    samples = [Sample(input="a" + " a" * size, target=target) for size in range(30, 60)]
    samples += [Sample(input="a", text_pair="a" + " a" * size, target=target) for size in range(30, 60)]
    if network.task.generates:
        samples += [Sample(input="a", target="a" + " a" * size) for size in range(30, 60)]
    fits = samples_fit(network, samples)
    assert fits == [encodable(network, sample) for sample in samples]
    assert all(fits) == (network.max_input_tokens > MAX_TOKENS)
    asked = [int(encode_inputs(network, [sample])["attention_mask"].sum()) for sample in samples]
    assert prompts_fit(network, samples, 3) == [length + 3 <= network.max_input_tokens for length in asked]
    assert samples_fit(network, []) == prompts_fit(network, []) == []


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart"])
def test_only_augmentations_that_do_not_fit_are_replaced(architecture: str) -> None:
    network = tiny_network(architecture)
    target = "now" if network.task.generates else LABELS[0]
    samples = [of_length(network, MAX_TOKENS - number % 6, target, number) for number in range(40)]
    drawn = augment_all(samples, random.Random(0), TYPING)
    rng = random.Random(0)
    found = augmented(network, samples, rng, TYPING)
    assert all(samples_fit(network, found))
    fits = samples_fit(network, drawn)
    assert found == [other if fit else own for own, other, fit in zip(samples, drawn, fits, strict=True)]
    assert 2 < sum(fits) < 38, "some fit and some do not"
    assert sum(one != own for one, own in zip(found, samples, strict=True)) > 5
    same = random.Random(0)
    augment_all(samples, same, TYPING)
    assert rng.random() == same.random(), "later draws do not change"


def test_held_out_texts_are_never_augmentations() -> None:
    network = tiny_network("bert")
    samples = [Sample(input="where is my order", target=LABELS[0])] * 300
    freely = augmented(network, samples, random.Random(0))
    apart = freely[0].model_copy(update={"input": freely[0].input.replace(" ", "  ")})
    assert freely[0] != samples[0]
    found = augmented(network, samples, random.Random(0), held_out={apart.words_hash})
    assert all(sample.words_hash != apart.words_hash for sample in found)
    assert [a for a, b in zip(found, freely, strict=True) if b.words_hash != apart.words_hash] == [
        sample for sample in freely if sample.words_hash != apart.words_hash
    ]


def test_an_augmentation_without_an_answer_needs_no_tokens_for_one() -> None:
    network = tiny_network("gpt2")
    own = of_length(network, MAX_TOKENS, "Rome now and then", 0)
    longer = own.model_copy(update={"input": f"{own.input} a"})
    assert replace_too_long(network, [own], [longer]) == [own]
    assert replace_too_long(network, [own], [longer], prompts_fit) == [longer]


def full(architecture: str) -> EditBatch:
    """Edits and pass samples that fill the window."""
    network = tiny_network(architecture)
    targets = [edit.answer for edit in case(architecture).batch.edit_samples]
    kept = [of_length(network, MAX_TOKENS, "Rome", number) for number in range(10, 40)]
    if not network.task.generates:
        answers = predict(network, kept)
        kept = [s.model_copy(update={"target": a.output}) for s, a in zip(kept, answers, strict=True)]
    return EditBatch(
        edit_samples=tuple(of_length(network, MAX_TOKENS, target, n) for n, target in enumerate(targets)),
        adapt_samples=(),
        pass_samples=tuple(kept),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_job_with_samples_that_fill_the_window_succeeds(architecture: str) -> None:
    batch = full(architecture)
    network = tiny_network(architecture)
    assert max(sample_lengths(network, batch.pass_samples)) == MAX_TOKENS
    found = measured(edit_context(network, batch, recipe("scoped", augmentations=3)))
    assert found.metrics.edit_accuracy.value > 0


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_edits_that_fill_the_window_can_have_trials(architecture: str) -> None:
    network = tiny_network(architecture)
    for seed in range(3):
        drawn = torch.Generator().manual_seed(seed)
        tried = trial_edits(network, full(architecture), network.layers[:2], MARGIN, drawn)
        assert len(tried.trials) == 2


def test_an_editor_is_not_trained_on_texts_with_other_negations() -> None:
    edit = Edit(input="my card is not working in the shop today", target=LABELS[0])
    own, rng = WordCounts.of(edit), random.Random(0)
    found = [editor_training._in_other_words(edit, rng) for _ in range(300)]
    assert len({sample.input for sample in found}) > 50
    assert not any(WordCounts.of(sample).negation_difference(own) for sample in found)


def test_edits_of_a_corpus_may_fill_the_window() -> None:
    network = tiny_network("bert")
    edits = [Edit(**sample.model_dump()) for sample in full("bert").edit_samples]
    for seed in range(8):
        made = meta_batches(network, edits, network.layers[:1], random.Random(seed))
        assert sum(len(batch.questions.batch) for batch in made) == len(edits)
