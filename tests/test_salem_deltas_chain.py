"""Chains: joined deltas act like the deltas one after the other, which are the slow reference here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from test_salem_inference_predict import greedy_ids
from test_salem_scope_state_scope import TEXTS, drawn, metric_of, scoped_delta
from tiny_models import tiny_network
from torch import Tensor

from salem.deltas.chain import Chain, EntryMatch
from salem.deltas.terms import DecodingPosition, Dense, LayerDelta, Scoped, act, adding
from salem.inference.predict import Answer, predict
from salem.models.batching import encode_inputs
from salem.models.network import Network
from salem.records import TextInput
from salem.scope.firing import Reading
from salem.scope.lookups import BatchLookups
from worker.jobs.removal_plan import cut

WORDS = 6  # new tokens


def some_deltas(network: Network) -> list[LayerDelta]:
    """Deltas with two metrics and at three layers: a plain one, overlaps, and entries of every shape."""
    first, middle, last = network.layers[0], network.layers[1], network.layers[-1]
    other = metric_of(network, 2, seed=3)
    return [
        scoped_delta(network, last, TEXTS[:2], size=3.0, seed=1, num_positions=3),
        scoped_delta(network, middle, TEXTS[1:3], size=2.0, seed=2, rank=0),
        LayerDelta(middle.path, (Dense(0.1 * drawn(middle.d_out, middle.d_in, seed=8)),)),
        scoped_delta(network, last, TEXTS[2:3], size=3.0, seed=3, rank=2, metric=other),
        scoped_delta(network, first, TEXTS[:1], size=1.0, seed=4, metric=other),
        scoped_delta(network, last, TEXTS[1:2], size=3.0, seed=5, rank=0, num_positions=2),
    ]


def acting(network: Network, text: TextInput, deltas: Sequence[LayerDelta]) -> tuple[ExitStack, object]:
    """Hooks of the deltas one after the other for one text, and the match; every scope decides by itself."""
    lookups, match = BatchLookups(network, [text]), None
    firings = {}
    for place, delta in enumerate(deltas):
        if delta.scoped:
            scope = delta.scoped.scope
            firings[place] = scope.fire_at(scope.metric.embed(network, [text]), lookups)
            if firings[place].margin > 0:
                match = EntryMatch(place, int(firings[place].entry), float(firings[place].margin))
    stack = ExitStack()
    for place, delta in enumerate(deltas):
        module, position = network.module(delta.layer), DecodingPosition()
        for term in delta.terms:
            if not isinstance(term, Scoped):
                stack.enter_context(adding(module, term))
            elif match and match.delta == place:
                stack.enter_context(adding(module, act(term, firings[place], position)))
    return stack, match


def one_after_the_other(network: Network, text: TextInput, deltas: Sequence[LayerDelta]) -> Answer:
    """The answers of a version, without a chain, a batch, or a cache."""
    stack, match = acting(network, text, deltas)
    with stack, torch.no_grad():
        if network.task.generates:
            ids = greedy_ids(network, text, WORDS)
            output = network.tokenizer.decode(ids, skip_special_tokens=True).strip()
            return Answer(output, match=match)
        scores = network.model(**encode_inputs(network, [text])).logits[0].softmax(-1).tolist()
    named = dict(zip(network.labels, scores, strict=True))
    return Answer(max(named, key=lambda label: named[label]), named, match)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_chain_answers_like_its_deltas_one_after_the_other(architecture: str) -> None:
    network = tiny_network(architecture)
    deltas = some_deltas(network)
    found = predict(network, TEXTS, deltas, max_new_tokens=WORDS)
    expected = [one_after_the_other(network, text, deltas) for text in TEXTS]
    assert [each.output for each in found] == [each.output for each in expected]
    matched = [each.match and (each.match.delta, each.match.entry) for each in expected]
    assert [each.match and (each.match.delta, each.match.entry) for each in found] == matched
    assert matched[:3] == [(4, 0), (5, 0), (3, 0)] and None in matched, "the newest prevails"
    for one, other in zip(found, expected, strict=True):
        margins = [each.match.margin if each.match else 0.0 for each in (one, other)]
        assert margins[0] == pytest.approx(margins[1], abs=1e-4)
        assert (one.scores or {}) == pytest.approx(other.scores or {}, abs=1e-5)


def tensors(chain: Chain) -> list[Tensor]:
    holders = [*chain.scopes, *chain.layers, chain]
    return [each for holder in holders for each in vars(holder).values() if isinstance(each, Tensor)]


@pytest.mark.parametrize("split", [0, 1, 3, 6])
def test_chains_join_as_deltas_do(split: int) -> None:
    deltas = some_deltas(tiny_network("bert"))
    whole, parts = Chain.of(deltas), [Chain.of(deltas[:split]), Chain.of(deltas[split:])]
    again = Chain.concat(parts)
    assert again.num_deltas == whole.num_deltas == 6 and again.num_bytes == whole.num_bytes
    assert [scope.metric for scope in again.scopes] == [scope.metric for scope in whole.scopes]
    assert all(torch.equal(one, other) for one, other in zip(tensors(again), tensors(whole), strict=True))


def test_joining_adds_no_more_than_padding() -> None:
    network = tiny_network("bert")
    layer = network.layers[-1]
    deltas = [scoped_delta(network, layer, TEXTS[:1], seed=seed, rank=0) for seed in range(50)]
    chain = Chain.of(deltas)
    assert len(chain.scopes) == len(chain.layers) == 1
    (entries,) = chain.layers
    assert entries.values.shape == (50, layer.d_out) and not entries.down.numel()
    assert chain.scopes[0].metric is deltas[0].scoped.scope.metric  # type: ignore[union-attr]


def test_a_chain_without_an_edit_equals_one_that_never_had_it() -> None:
    network = tiny_network("gpt2")
    layer = network.layers[-1]
    below = scoped_delta(network, layer, TEXTS[2:3], size=5.0, seed=3)
    with_edit = scoped_delta(network, layer, TEXTS[:2], size=5.0, num_positions=3)
    above = scoped_delta(network, layer, TEXTS[3:], size=5.0, seed=4, rank=0)
    assert with_edit.scoped is not None
    scope, of_second = with_edit.scoped.scope, torch.tensor([1])
    names = ("keys", "radii", "token_ids", "token_probabilities", "first_token_weights", "words")
    kept = {name: getattr(scope, name)[of_second] for name in (*names, "lexical_weights")}
    values = {name: getattr(with_edit.scoped, name)[of_second] for name in ("values", "down", "up")}
    never = Scoped(replace(scope, **kept, owners=torch.zeros(1)), **values)
    removed = Chain.of([below, cut(with_edit, [0]), above])
    expected = Chain.of([below, LayerDelta(layer.path, (never,)), above])
    assert all(torch.equal(a, b) for a, b in zip(tensors(removed), tensors(expected), strict=True))
    found = predict(network, TEXTS, removed, max_new_tokens=WORDS)
    assert found == predict(network, TEXTS, expected, max_new_tokens=WORDS)
    whole = predict(network, TEXTS, [below, with_edit, above], max_new_tokens=WORDS)
    assert [each.output for each in found[1:]] == [each.output for each in whole[1:]]
    assert found[0].match is None and whole[0].match == EntryMatch(1, 0, pytest.approx(0.1, abs=1e-3))


def test_a_chain_of_plain_deltas_has_no_entries_that_fire() -> None:
    network = tiny_network("bert")
    layer = network.layers[0]
    plain = LayerDelta(layer.path, (Dense(drawn(layer.d_out, layer.d_in)),))
    found = predict(network, TEXTS, [plain, plain])
    assert [each.match for each in found] == [None] * len(TEXTS)
    assert Chain.of([plain]).fire(Reading([], BatchLookups(network, TEXTS))) is None
    assert predict(network, TEXTS, Chain.of([])) == predict(network, TEXTS)
