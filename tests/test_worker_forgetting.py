"""Forgetting on tiny models of every task, from an edit dataset to the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from labeled_texts import TEXTS
from recipe_cases import edit_context, measured, recipe
from tiny_models import LABELS, tiny_network

from salem.deltas.chain import Chain
from salem.deltas.files import term_tensors
from salem.deltas.terms import LayerDelta
from salem.inference.gate import fire
from salem.inference.predict import is_right, predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Edit, EditBatch, Sample, TextInput
from worker.dataset.split import build_edit_batch
from worker.evaluation.versions import EditedModel
from worker.numerics.losses import MAX_FORGETTING_KL
from worker.pipeline.context import EditContext
from worker.recipes.base import Recipe

# One that classifies, one that writes behind an encoder, one that goes on writing; with the layer to edit.
CASES = [
    ("bert", "bert.encoder.layer.1.output.dense"),
    ("t5", "decoder.block.1.layer.2.DenseReluDense.wo"),
    ("llama", "model.layers.1.mlp.down_proj"),
]
PAIR = ["scoped", "mend"]


def answered(network: Network, texts: Sequence[str], deltas: Sequence[LayerDelta] = ()) -> list[str]:
    found = predict(network, [TextInput(input=text) for text in texts], deltas)
    return [prediction.output for prediction in found]


@cache
def dataset(architecture: str) -> EditBatch:
    """Two edits that forget what the model answers, and one that corrects."""
    network = tiny_network(architecture)
    known = [(t, a) for t, a in zip(TEXTS, answered(network, TEXTS), strict=True) if a and len(a) < 40]
    (one, two, three), kept = [known[place] for place in (0, -1, len(known) // 2)], known[1:-1]
    target = "log" if network.task.generates else LABELS[LABELS.index(three[1]) - 1]
    edits = [
        Edit(input=one[0], forget=one[1], paraphrases=(f"{one[0]} please", f"well {one[0]}")),
        Edit(input=two[0], forget=two[1]),
        Edit(input=three[0], target=target),
    ]
    passes = [Sample(input=text, target=answer) for text, answer in kept if text != three[0]]
    return build_edit_batch(edits, (), passes, max_pass_samples=40, max_held_out=20, seed=0)


def forgetting(name: str, layer: str | None, **more: object) -> Recipe:
    return recipe(name, layer=layer, **{"max_steps": 80, "margin": 3.0, **more})


@cache
def made(architecture: str, name: str, layer: str) -> EditContext:
    network, batch = tiny_network(architecture), dataset(architecture)
    return measured(edit_context(network, batch, forgetting(name, layer)))


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize(("architecture", "layer"), CASES)
def test_one_job_corrects_and_forgets(architecture: str, layer: str, name: str) -> None:
    network, batch = tiny_network(architecture), dataset(architecture)
    found = made(architecture, name, layer)
    delta = found.delta
    assert found.num_failing == 3 and found.metrics.edit_accuracy.value == 1
    after = answered(network, [sample.input for sample in batch.edit_samples], [delta])
    assert all(is_right(output, sample) for output, sample in zip(after, batch.edit_samples, strict=True))
    assert after[0] != batch.edit_samples[0].forget and after[2] == batch.edit_samples[2].target
    outcomes = [outcome for outcome in found.metrics.outcomes if outcome.kind == "edit"]
    assert [outcome.after for outcome in outcomes] == after and outcomes[2].extent is None
    for outcome in outcomes[:2]:
        assert outcome.before == outcome.forget and outcome.target is None and outcome.extent
    extents = [outcome.extent for outcome in outcomes[:2] if outcome.extent]
    first = [each for each in extents if each.rank_before < 2]  # else it spells its answer in other tokens
    assert first
    for each in first:
        assert each.rank_after > each.rank_before >= 1
        assert each.probability_after < each.probability_before
    extent = found.metrics.forgetting
    assert extent is not None and (extent.edit.count, extent.adapt and extent.adapt.count) == (2, 1)
    assert extent.held_out_paraphrase is not None and extent.held_out_paraphrase.count == 1
    again = measured(edit_context(network, batch, forgetting(name, layer)))
    one, other = (term_tensors(each.terms[0]) for each in (delta, again.delta))
    assert one and all(torch.equal(value, other[field]) for field, value in one.items())


@pytest.mark.parametrize("name", PAIR)
def test_the_next_choice_of_the_base_replaces_a_forgotten_answer(name: str) -> None:
    network, batch = tiny_network("bert"), dataset("bert")
    delta = made("bert", name, CASES[0][1]).delta
    lost = [sample for sample in batch.edit_samples if sample.forgets]
    own = [LABELS.index(sample.answer) for sample in lost]
    with torch.no_grad():
        before = forward(network, encode(network, lost)).logits.softmax(-1)
        firing = fire(network, lost, [delta])
        with Chain.of([delta]).applied(network.model, lambda firing=firing: firing):
            after = forward(network, encode(network, lost)).logits.softmax(-1)
    for row, place in enumerate(own):
        old, new = before[row].clone(), after[row]
        old[place] = 0
        assert int(new.argmax()) == int(old.argmax())
        bound = (MAX_FORGETTING_KL / 2) ** 0.5  # on the total variation, by Pinsker's inequality
    assert 0.5 * float((new - old / old.sum()).abs().sum()) < bound


@pytest.mark.parametrize("architecture", ["bert", "t5", "llama"])
def test_every_layer_has_a_saliency_and_trials_choose_one(architecture: str) -> None:
    network, batch = tiny_network(architecture), dataset(architecture)
    only = batch.model_copy(update={"edit_samples": batch.edit_samples[:2]})
    own = forgetting("scoped", None, candidates="all", trial_edits=2)
    found = measured(edit_context(network, only, own))
    assert len(found.saliency) == len(network.layers)
    assert all(score.score > 0 for score in found.saliency)
    assert "trial edit" in found.reason


def test_a_note_says_that_an_answer_to_forget_was_not_given() -> None:
    network, batch = tiny_network("bert"), dataset("bert")
    given = batch.edit_samples[0].answer
    other = LABELS[LABELS.index(given) - 1]
    edits = (batch.edit_samples[0].model_copy(update={"forget": other}), *batch.edit_samples[1:])
    changed = batch.model_copy(
        update={"edit_samples": edits, "adapt_samples": (), "held_out_paraphrases": ()}
    )
    own = forgetting("scoped", CASES[0][1], max_steps=5)
    found = measured(edit_context(network, changed, own))
    (note,) = [note for note in found.metrics.notes if "which the edit forgets" in note]
    assert all(word in note for word in (edits[0].input, f'"{other}"', f'"{given}"'))
    assert found.num_failing == 2


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_rank_and_probability_are_those_of_the_answer_tokens(architecture: str) -> None:
    network = tiny_network(architecture)
    answer = "Rome is not" if network.task.generates else "login"
    samples = [Sample(input=text, forget=answer) for text in ("where is my order", "log in")]
    for sample, known in zip(samples, EditedModel(network, (), 4).answer_likelihoods(samples), strict=True):
        with torch.no_grad():
            answers = forward(network, encode(network, [sample]))
        rows = [row.softmax(-1).tolist() for row in answers.logits.double()]
        own = [row[int(target)] for row, target in zip(rows, answers.targets, strict=True)]
        ranks = [sum(share >= mine for share in row) for row, mine in zip(rows, own, strict=True)]
        assert known.rank == pytest.approx(sum(ranks) / len(ranks))
        product = torch.tensor(own).double().prod()
        assert known.probability == pytest.approx(float(product ** (1 / len(own))), rel=1e-3)


@pytest.mark.parametrize(("architecture", "layer"), CASES[:2])
def test_likelihoods_are_measured_through_the_scopes(architecture: str, layer: str) -> None:
    network, batch = tiny_network(architecture), dataset(architecture)
    delta = made(architecture, "scoped", layer).delta
    elsewhere = [Sample(input="the capital of Peru", forget=batch.edit_samples[0].answer)]
    assert fire(network, elsewhere, [delta]).gate.max() == 0
    assert EditedModel(network, [delta], 4).answer_likelihoods(elsewhere) == EditedModel(
        network, (), 4
    ).answer_likelihoods(elsewhere)
