"""What is read off a tiny model and an edit dataset for the estimate of a job."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from recipe_cases import RECIPES, bare_recipe
from tiny_models import LABELS, build_network, first_task, tiny_network

from salem.errors import UnsupportedModel
from salem.models.batching import encode
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import EditBatch, Sample
from worker.pipeline.budget import _candidates, _deepest, _lengths, job_estimate
from worker.recipes.scoped.recipe import VALUE_COPIES
from worker.recipes.scoped.training_set import NEAR_SAMPLES
from worker.selection.trials import NUM_PASS, NUM_VALIDATION
from worker.training.loop import CHUNK, prepare_dataset

SCOPED = bare_recipe("scoped")
MEND = bare_recipe("mend")


def samples(network: Network, count: int, words: str = "where is my lamp") -> tuple[Sample, ...]:
    target = "Paris is in Peru" if network.task.generates else LABELS[0]
    return tuple(Sample(input=f"{words} {number % 7}", target=target) for number in range(count))


def batch(network: Network, num_pass: int = 30, held_out: Sequence[Sample] = ()) -> EditBatch:
    return EditBatch(
        edit_samples=samples(network, 3),
        adapt_samples=tuple(enumerate(samples(network, 2, "i want my money"))),
        pass_samples=samples(network, num_pass, "please send the parcel to the door and when will it"),
        held_out_paraphrases=(),
        held_out_pass_samples=tuple(held_out),
    )


def trunk_bytes(network: Network, edited: EditBatch) -> int:
    """What really enters the edited block, of all samples."""
    layer = network.layers[1]
    prepared = prepare_dataset(network, edited.corrections, edited.pass_samples, layer)
    sets = (prepared.corrections, prepared.keep, prepared.validation)
    return sum(chunk.trunk.state.nbytes for each in sets for chunk in each.chunks)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_trunks_are_counted_as_they_are_prepared(architecture: str) -> None:
    network = tiny_network(architecture)
    edited = batch(network)
    found, expected = job_estimate(network, edited, MEND).trunks, trunk_bytes(network, edited)
    assert expected <= found <= 1.5 * expected


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_lengths_are_those_of_encoded_samples(architecture: str) -> None:
    network = tiny_network(architecture)
    edited = batch(network, held_out=samples(network, 4))
    found = _lengths(network, edited, MEND)
    for sample, length in zip(edited.corrections, found.corrections, strict=True):
        inputs = encode(network, [sample]).inputs
        width = sum(inputs[name].shape[1] for name in ("input_ids", "decoder_input_ids") if name in inputs)
        assert width - 24 < length <= width  # a padded width is up to 16 and 8 tokens more
    asked = count_tokens(network.tokenizer, edited.held_out_pass_samples)
    written = MEND.options.max_new_tokens if first_task(architecture).generates else 0
    assert found.held_out == [min(length + written, network.max_input_tokens) for length in asked]
    assert 0 <= found.answer_share < 1 and (found.answer_share > 0) is (written > 0)


def test_scoped_entries_train_on_rewordings_and_on_the_nearest_pass_samples() -> None:
    network = tiny_network("bert")
    edited = batch(network)
    plain, scoped = (_lengths(network, edited, each) for each in (MEND, SCOPED))
    anchor_samples = SCOPED.options.anchor_samples * len(edited.edit_samples)
    assert list(scoped.corrections)[:-anchor_samples] == 2 * list(plain.corrections)
    pulled = bare_recipe("scoped", kl_weight=0.1)
    few, many, more = (
        job_estimate(network, batch(network, count), pulled).trunks
        for count in (NEAR_SAMPLES - CHUNK, NEAR_SAMPLES, 4 * NEAR_SAMPLES)
    )
    assert few < many == more
    assert job_estimate(network, batch(network, NEAR_SAMPLES), SCOPED).trunks < few, "without a pull, on none"
    few, more = (
        job_estimate(network, batch(network, count), MEND).trunks
        for count in (NEAR_SAMPLES, 4 * NEAR_SAMPLES)
    )
    assert more > 3 * few


def test_a_classifiers_entries_train_on_stand_ins() -> None:
    network = tiny_network("bert")
    edited = batch(network)

    def num_trained_on(**more: object) -> int:
        return len(_lengths(network, edited, bare_recipe("scoped", **more)).corrections)

    without = num_trained_on(anchor_samples=0)
    assert num_trained_on(anchor_samples=3) == without + 3 * len(edited.edit_samples)
    assert num_trained_on(anchor_samples=3, candidates="middle") == without
    asked_for_more = num_trained_on(anchor_samples=64)
    assert asked_for_more == without + len(edited.pass_samples) * len(edited.edit_samples)


def test_the_lowest_candidate_counts() -> None:
    network = tiny_network("bert")
    edited = batch(network)

    def step(name: str = "mend", **more: object) -> int:
        return job_estimate(network, edited, bare_recipe(name, **more)).step

    lowest, middle, highest = (step(layer=layer.path) for layer in network.layers)
    assert lowest > middle >= highest
    assert step() == middle and step(candidates="all") == step("paper") == lowest
    with pytest.raises(UnsupportedModel):
        step(layer="bert.encoder.layer.9.output.dense")


def test_trial_edits_are_counted_where_they_choose_the_layer() -> None:
    network = tiny_network("gpt2")
    edited = batch(network, 300)

    def trials(name: str = "scoped", **more: object) -> int:
        every = {} if name == "paper" else {"candidates": "all"}
        return job_estimate(network, edited, bare_recipe(name, **every, **more)).trials

    vocabulary = network.model.get_input_embeddings().num_embeddings
    assert trials() > 4 * vocabulary * 4 * (NUM_PASS + NUM_VALIDATION)
    assert trials() == trials("mend") > trials(trial_edits=2) > 0
    assert trials(trial_edits=1) == trials(layer=network.layers[0].path) == trials("paper") == 0


def test_behind_an_encoder_the_decoder_runs_for_answers() -> None:
    network = tiny_network("t5")  # three blocks, and two of the decoder's
    encoder, decoder = network.layers[0], network.layers[-1]
    assert _deepest(network, [encoder], 0.4) == (encoder, 4)
    assert _deepest(network, [encoder], 1.0) == (encoder, 5)
    assert _deepest(network, [decoder], 0.4) == (decoder, 2)
    assert _deepest(network, _candidates(network, bare_recipe("scoped", candidates="all")), 0.4)[0] == encoder


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_an_estimate_runs_nothing_and_counts_the_weights(architecture: str) -> None:
    network = build_network(architecture)
    network.model.forward = None  # type: ignore[assignment]
    for name in RECIPES:
        found = job_estimate(network, batch(network), bare_recipe(name))
        assert found.weights == sum(weight.nbytes for weight in network.model.parameters())
        assert found.num_bytes > found.weights


def test_a_job_without_pass_samples_has_an_estimate() -> None:
    network = tiny_network("bert")
    assert job_estimate(network, batch(network, 0), SCOPED).trunks > 0


def test_values_count_by_the_longest_answer_and_an_editor_needs_no_eigenvectors() -> None:
    network = tiny_network("gpt2")
    few = batch(network)
    longer = tuple(
        sample.model_copy(update={"target": "Paris is in Peru " * 4}) for sample in few.edit_samples
    )
    layer = network.layers[len(network.layers) // 2]
    width = SCOPED.parameter_bytes(network, few, layer)
    assert (
        SCOPED.parameter_bytes(network, few.model_copy(update={"edit_samples": longer}), layer) > 1.5 * width
    )
    assert width % (VALUE_COPIES * 4 * len(few.edit_samples) * layer.d_out) == 0
    assert MEND.parameter_bytes(network, few, layer) == 0
    ahead = bare_recipe("mend", editor="editor-" + "0" * 20, layer=layer.path)
    assert job_estimate(network, few, ahead).preparation < job_estimate(network, few, MEND).preparation
