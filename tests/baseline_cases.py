"""A tiny model with corrections, pass samples, and other edits, for tests of the benchmark's methods."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache

import torch
from tiny_models import LABELS, tiny_network

from benchmarks.baselines.interface import EditedNetwork, Editing
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Edit, EditBatch, Sample, TextInput
from worker.numerics.losses import nll_per_sample

_OPENINGS = ("where is my", "i want the", "who wrote the", "please send a")
_THINGS = ("order", "parcel", "lamp", "password")
KEPT_TEXTS = tuple(f"{opening} {thing}" for opening in _OPENINGS for thing in _THINGS)
EDIT_TEXTS = ("the capital of Peru", "Anna wrote it in Rome now")
LATER_TEXTS = ("i cannot log in today", "the broken lamp")
CORPUS_TEXTS = ("the book is Berlin", "will it arrive at the door", "Madrid is my account", "send a refund")
ANSWERS = ("order", "the", "now", "lamp")


def own_answers(network: Network, texts: Sequence[str]) -> list[str]:
    asked = [TextInput(input=text) for text in texts]
    return [prediction.output for prediction in predict(network, asked, max_new_tokens=4)]


def wrong_for(network: Network, texts: Sequence[str]) -> tuple[Edit, ...]:
    """Each text with an answer that the network does not give."""
    targets: Sequence[str] = ANSWERS
    if not network.task.generates:
        before = own_answers(network, texts)
        targets = [LABELS[(LABELS.index(answer) + 1) % len(LABELS)] for answer in before]
    return tuple(Edit(input=t, target=a) for t, a in zip(texts, targets, strict=False))


@cache
def kept(architecture: str) -> tuple[Sample, ...]:
    network = tiny_network(architecture)
    answers = own_answers(network, KEPT_TEXTS)
    return tuple(Sample(input=t, target=a) for t, a in zip(KEPT_TEXTS, answers, strict=True) if a)


def editing_of(
    architecture: str,
    setting: float,
    *,
    texts: Sequence[str] = EDIT_TEXTS,
    corpus: bool = True,
    before: EditedNetwork | None = None,
) -> Editing:
    network = tiny_network(architecture)
    edits = wrong_for(network, texts)
    batch = EditBatch(
        edit_samples=tuple(edit.sample for edit in edits),
        adapt_samples=((0, edits[0].sample.model_copy(update={"input": f"{texts[0]} please"})),),
        pass_samples=kept(architecture),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )
    others = wrong_for(network, CORPUS_TEXTS) if corpus else ()
    return Editing(network, batch, others, seed=0, setting=setting, before=before)


@torch.no_grad()
def loss_of(editing: Editing, edited: EditedNetwork | None) -> float:
    """Mean likelihood loss of the edit samples, with the edit or for the base."""
    samples = editing.batch.edit_samples
    batch = encode(editing.network, samples)
    with edited.answering(samples, batch) if edited else nullcontext():
        return float(nll_per_sample(forward(editing.network, batch)).mean())


def contents(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.model.state_dict().items()}


def assert_untouched(network: Network, before: dict[str, torch.Tensor]) -> None:
    """The weights are the same bit for bit, frozen, in the same modules, without hooks."""
    after = network.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in network.model.parameters())
    for module in network.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
