"""The sizes that the estimate of a job reads from a tiny model and an edit dataset."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from recipe_cases import RECIPES, bare_recipe
from tiny_models import LABELS, build_network, tiny_network

from salem.errors import UnsupportedModel
from salem.models.batching import encode
from salem.models.network import Network
from salem.records import EditBatch, Sample
from worker.pipeline import budget
from worker.pipeline.budget import Passes, Size, job_estimate, sizes_of
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
    """The bytes that really enter the edited block, for all samples."""
    layer = network.layers[1]
    prepared = prepare_dataset(network, edited.corrections, edited.pass_samples, layer)
    sets = (prepared.corrections, prepared.keep, prepared.validation)
    return sum(chunk.trunk.state.nbytes for each in sets for chunk in each.chunks)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_samples_take_at_least_their_trunks(architecture: str) -> None:
    network = tiny_network(architecture)
    edited = batch(network)
    assert job_estimate(network, edited, MEND).samples >= trunk_bytes(network, edited)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_token_counts_are_those_of_encoded_samples(architecture: str) -> None:
    network = tiny_network(architecture)
    edited = batch(network)
    for sample in edited.corrections:
        (found,) = sizes_of(network, [sample])
        inputs = encode(network, [sample]).inputs
        width = sum(inputs[name].shape[1] for name in ("input_ids", "decoder_input_ids") if name in inputs)
        assert width - 24 < found.tokens <= width + 16  # a padded width is up to 16 and 8 tokens more
        assert (found.logits > 1) == network.task.generates
    found = sizes_of(network, [*edited.corrections, *edited.pass_samples])
    assert found == sorted(found, reverse=True)


def test_a_scoped_job_trains_on_augmentations_and_on_the_nearest_pass_samples() -> None:
    network = tiny_network("bert")

    def samples(num_pass: int, **options: object) -> int:
        return job_estimate(network, batch(network, num_pass), bare_recipe("scoped", **options)).samples

    assert samples(30, augmentations=0) < samples(30) < samples(30, augmentations=8)
    near = [
        samples(number, kl_weight=0.1) for number in (NEAR_SAMPLES - CHUNK, NEAR_SAMPLES, 4 * NEAR_SAMPLES)
    ]
    assert near[0] < near[1] == near[2]
    assert samples(NEAR_SAMPLES) < near[0], "without a pull, on none"
    assert samples(30, anchor_samples=0) < samples(30, anchor_samples=3)
    middle = [samples(30, anchor_samples=number, candidates="middle") for number in (0, 3)]
    assert middle[0] == middle[1], "only the last block has anchor samples"


def test_the_lowest_candidate_counts() -> None:
    network = tiny_network("bert")
    edited = batch(network)

    def step(name: str = "mend", **more: object) -> int:
        return job_estimate(network, edited, bare_recipe(name, **more)).step

    lowest, middle, highest = (step(layer=layer.path) for layer in network.layers)
    assert lowest >= middle >= highest and lowest > highest
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
    assert trials(trial_edits=3) > 4 * vocabulary * 4 * (NUM_PASS + NUM_VALIDATION)
    assert trials(trial_edits=3) == trials("mend") > trials(trial_edits=2) > 0
    assert trials(trial_edits=1) == trials("mend", layer=network.layers[0].path) == 0
    assert trials() == trials("paper") == 0
    assert trials("mend", editor="editor-" + "0" * 20) == 0


def test_the_decoder_of_an_encoder_layer_is_counted() -> None:
    network = tiny_network("t5")  # three blocks, and two of the decoder's
    edited = batch(network)
    steps = [
        job_estimate(network, edited, bare_recipe("mend", layer=each.path)).step for each in network.layers
    ]
    each_block = {lower - upper for lower, upper in pairwise(steps)}
    assert len(each_block) == 1 and min(each_block) > 0


def test_samples_are_padded_to_the_longest_of_their_chunk() -> None:
    passes = Passes(tiny_network("bert"))
    mixed = [Size(160, 1)] + [Size(16, 1)] * CHUNK
    assert passes.captured(mixed) == passes.captured([Size(160, 1)] * CHUNK + [Size(16, 1)])


def test_a_generating_model_is_charged_for_its_vocabulary_and_its_cache() -> None:
    label, writer = (Passes(tiny_network(name)) for name in ("bert", "gpt2"))
    vocabulary = tiny_network("gpt2").model.get_input_embeddings().num_embeddings
    short, long = [Size(16, 1)], [Size(16, 9)]
    assert writer.captured(long) - writer.captured(short) == 8 * 4 * vocabulary
    assert writer.training(long, 1) - writer.training(short, 1) == 5 * 8 * 4 * vocabulary
    assert writer.reading(30) > 1.5 * label.reading(30)


def test_cached_prompts_are_charged_up_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("gpt2")
    edited = batch(network)
    whole = job_estimate(network, edited, SCOPED).samples
    monkeypatch.setattr(budget, "PROMPT_BYTES", 1_000)
    assert whole > job_estimate(network, edited, SCOPED).samples
    label = job_estimate(tiny_network("bert"), batch(tiny_network("bert")), SCOPED).samples
    monkeypatch.setattr(budget, "PROMPT_BYTES", 0)
    assert label == job_estimate(tiny_network("bert"), batch(tiny_network("bert")), SCOPED).samples


def test_the_memory_of_preparation_depends_on_the_recipe() -> None:
    network = tiny_network("bert")
    edited = batch(network)
    mend = job_estimate(network, edited, MEND)
    ahead = job_estimate(network, edited, bare_recipe("mend", editor="editor-" + "0" * 20))
    assert mend.preparation >= 8 * network.layers[0].d_in ** 2, "eigenvectors in float64"
    assert ahead.preparation == 0 and ahead.samples < mend.samples
    more = batch(network, 60)
    assert job_estimate(network, edited, SCOPED).preparation < job_estimate(network, more, SCOPED).preparation


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
    assert job_estimate(network, batch(network, 0), SCOPED).samples > 0


def test_values_are_counted_by_the_longest_answer() -> None:
    network = tiny_network("gpt2")
    few = batch(network)
    longer = tuple(
        sample.model_copy(update={"target": "Paris is in Peru " * 4}) for sample in few.edit_samples
    )
    values = SCOPED.footprint(network, few).trained_bytes
    more = SCOPED.footprint(network, few.model_copy(update={"edit_samples": longer})).trained_bytes
    assert more > 1.5 * values
    assert values % (VALUE_COPIES * 4 * len(few.edit_samples) * network.layers[0].d_out) == 0
