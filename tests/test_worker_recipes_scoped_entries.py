"""The anchor samples that a classifier's entries also train on, and their effect."""

from __future__ import annotations

import pytest
import torch
from recipe_cases import bare_recipe, trained
from tiny_models import LABELS, tiny_network

from salem.deltas.terms import Scoped, act, adding
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Edit, EditBatch, Layer, Sample
from salem.scope.firing import Firing
from worker.dataset.split import build_edit_batch
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.recipe import ScopedRecipe
from worker.recipes.scoped.training_set import num_anchors
from worker.selection.candidates import middle_layers

SUBJECTS = ("order", "parcel", "lamp", "password", "account", "book", "door", "money")
STARTS = ("where is my", "i want the", "who wrote the", "please send a", "does it fit the")
ELSEWHERE = tuple(
    f"the {one} and the {other} in Rome" for one in SUBJECTS for other in SUBJECTS if one < other
)
OPTIONS = ScopedOptions(metric_width=16, learning_rate=0.15, max_steps=100)


def batch_of(network: Network, *, forgets: bool = False) -> EditBatch:
    texts = ("the capital of Peru", "Anna wrote it in Rome now", "i cannot log in today")
    asked = [Sample(input=text, target="x") for text in texts]
    before = [answer.output for answer in predict(network, asked)]
    edits = [
        Edit(input=text, target=None, forget=answer)
        if forgets
        else Edit(input=text, target=LABELS[(LABELS.index(answer) + 1) % len(LABELS)])
        for text, answer in zip(texts, before, strict=True)
    ]
    kept = [Sample(input=f"{start} {subject}", target="x") for start in STARTS for subject in SUBJECTS]
    batch = build_edit_batch(edits, (), (), max_pass_samples=1, max_held_out=1, seed=0)
    answers = [answer.output for answer in predict(network, kept)]
    held = [s.model_copy(update={"target": a}) for s, a in zip(kept, answers, strict=True)]
    return batch.model_copy(update={"pass_samples": tuple(held)})


def entries_of(network: Network, batch: EditBatch, layer: Layer, options: ScopedOptions) -> Scoped:
    term = trained(network, batch, layer, ScopedRecipe(options)).term
    assert isinstance(term, Scoped)
    return term


def share_answered_as_edited(network: Network, batch: EditBatch, term: Scoped, layer: Layer) -> float:
    """The share of texts unlike any edit that get an entry's answer when that entry is made to fire."""
    asked = encode(network, [Sample(input=text, target=LABELS[0]) for text in ELSEWHERE])
    every = torch.ones(len(ELSEWHERE))
    hits: list[bool] = []
    for entry, sample in enumerate(batch.edit_samples):
        firing = Firing(torch.full((len(ELSEWHERE),), entry), every, every)
        with adding(network.module(layer.path), act(term, firing)), torch.no_grad():
            found = forward(network, asked).logits.argmax(-1)
        hits += [LABELS[place] == sample.target for place in found.tolist()]
    return sum(hits) / len(hits)


def test_an_entry_trained_on_anchor_samples_answers_for_any_input() -> None:
    network = tiny_network("bert")
    batch, last = batch_of(network), network.layers[-1]
    gently = {"margin": 0.01, "learning_rate": 0.02}  # so that a value does no more than it is taught
    alone, taught = (
        entries_of(network, batch, last, OPTIONS.model_copy(update={**gently, "anchor_samples": number}))
        for number in (0, 4)
    )
    shares = [share_answered_as_edited(network, batch, term, last) for term in (alone, taught)]
    assert shares[1] > 0.97 and shares[0] < shares[1] - 0.05


def test_anchor_samples_are_only_for_the_last_block_of_a_classifier() -> None:
    network = tiny_network("bert")
    *others, last = network.layers
    assert num_anchors(network, last, OPTIONS) == OPTIONS.anchor_samples > 0
    assert not any(num_anchors(network, layer, OPTIONS) for layer in others)
    for architecture in ("gpt2", "t5"):
        writer = tiny_network(architecture)
        assert not any(num_anchors(writer, layer, OPTIONS) for layer in writer.layers)


def test_edits_that_forget_have_no_anchor_samples() -> None:
    network = tiny_network("bert")
    batch, last = batch_of(network, forgets=True), network.layers[-1]
    with_them, without = (
        entries_of(network, batch, last, OPTIONS.model_copy(update={"anchor_samples": number}))
        for number in (4, 0)
    )
    assert torch.equal(with_them.values, without.values)


@pytest.mark.parametrize("num_pass", [0, 2])
def test_fewer_pass_samples_than_anchor_samples_are_enough(num_pass: int) -> None:
    network = tiny_network("bert")
    batch = batch_of(network)
    batch = batch.model_copy(update={"pass_samples": batch.pass_samples[:num_pass]})
    assert torch.isfinite(entries_of(network, batch, network.layers[-1], OPTIONS).values).all()


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_entries_of_an_encoder_decoder_are_in_the_decoder(architecture: str) -> None:
    network = tiny_network(architecture)
    encoder, decoder = (layer.stack for layer in (network.layers[0], network.layers[-1]))
    scoped = bare_recipe("scoped").candidate_layers(network)
    assert {layer.stack for layer in scoped} == {decoder}
    every = bare_recipe("scoped", candidates="all").candidate_layers(network)
    assert every == network.layers == bare_recipe("paper").candidate_layers(network)
    mend = bare_recipe("mend").candidate_layers(network)
    assert {layer.stack for layer in mend} == {encoder, decoder} and mend == middle_layers(network.layers)


def test_entries_of_a_classifier_are_in_the_last_block() -> None:
    classifier = tiny_network("bert")
    last, middle = classifier.layers[-1:], middle_layers(classifier.layers)
    assert bare_recipe("scoped").candidate_layers(classifier) == last != middle
    for name in ("mend", "ridge"):
        assert bare_recipe(name).candidate_layers(classifier) == middle
    assert bare_recipe("scoped", candidates="middle").candidate_layers(classifier) == middle
