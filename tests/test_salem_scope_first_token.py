"""FirstTokens: how the base starts its answers, the distance of two, and the effect on scopes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_salem_inference_predict import greedy_ids
from test_salem_scope_state_scope import TEXTS, metric_of, scoped_delta
from tiny_models import ARCHITECTURES, first_task, save_tiny, tiny_network
from torch import Tensor

from salem.deltas.terms import Dense, LayerDelta, applied
from salem.inference.gate import fire, gated
from salem.inference.predict import predict
from salem.models.batching import encode_inputs
from salem.models.loading import load
from salem.models.network import Network
from salem.records import TextInput
from salem.scope import lookups
from salem.scope import state_scope as scopes
from salem.scope.first_token import KEPT, FirstTokens, first_tokens
from salem.scope.lexical import WordCounts
from salem.scope.lookups import BatchLookups, KnownLookups


def some_shares(num: int, width: int, *, seed: int = 0, spread: float = 3.0) -> Tensor:
    return (spread * torch.randn(num, width, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def kept(token_probabilities: Tensor, num_tokens: int) -> FirstTokens:
    likeliest = token_probabilities.topk(num_tokens, dim=-1)
    return FirstTokens(likeliest.indices.float(), likeliest.values)


def hellinger(one: Tensor, other: Tensor) -> Tensor:
    """The squared distance of complete distributions, in float64."""
    return 1 - (one.double() * other.double()).sqrt().sum(-1)


@pytest.mark.parametrize("width", [2, 5, 40])
def test_the_distance_of_complete_distributions_is_the_squared_hellinger_distance(width: int) -> None:
    one, other = some_shares(30, width), some_shares(30, width, seed=1)
    found = kept(one, width).distance(kept(other, width))
    torch.testing.assert_close(found.double(), hellinger(one, other), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 3, KEPT])
def test_a_few_tokens_approximate_the_distance(num_tokens: int) -> None:
    one, other = some_shares(50, 60, spread=4.0), some_shares(50, 60, seed=1, spread=4.0)
    other[::2] = (one[::2].log() + 0.5 * some_shares(25, 60, seed=2).log()).softmax(-1)
    found = kept(one, num_tokens).distance(kept(other, num_tokens))
    error = (found.double() - hellinger(one, other)).abs()
    assert error.max() < {1: 0.6, 3: 0.4, KEPT: 0.1}[num_tokens]
    back = kept(other, num_tokens).distance(kept(one, num_tokens))
    torch.testing.assert_close(back, found, rtol=0, atol=1e-6)
    itself = kept(one, num_tokens)
    torch.testing.assert_close(itself.distance(itself), torch.zeros(50), rtol=0, atol=1e-6)


def test_confident_distributions_on_different_tokens_have_distance_one() -> None:
    one, other = (FirstTokens(torch.tensor([[float(t), 9.0]]), torch.tensor([[1.0, 0.0]])) for t in (3, 4))
    assert one.distance(other).tolist() == [1.0]


def first_choice(network: Network, text: TextInput) -> int:
    """The first token that the base generates, or its label."""
    if network.task.generates:
        return greedy_ids(network, text, 1)[0]
    return int(network.model(**encode_inputs(network, [text])).logits[0].argmax())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_first_tokens_are_what_the_base_would_start_with(architecture: str) -> None:
    network = tiny_network(architecture)
    found = first_tokens(network, TEXTS)
    for row, text in enumerate(TEXTS):
        assert int(found.token_ids[row, 0]) == first_choice(network, text)
        alone, own = first_tokens(network, [text]), found.token_probabilities[row]
        assert torch.equal(alone.token_ids[0, :1], found.token_ids[row, :1])
        torch.testing.assert_close(alone.token_probabilities[0], own, rtol=1e-3, atol=1e-5)
    probabilities = found.token_probabilities
    assert (probabilities.sum(-1) <= 1 + 1e-5).all() and (probabilities.diff(dim=-1) <= 0).all()
    assert first_tokens(network, []).token_ids.shape == (0, 0)


def test_the_base_is_asked_about_each_input_once_and_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("gpt2")
    asked: list[list[str]] = []

    def watched(network: Network, inputs: list[TextInput]) -> FirstTokens:
        asked.append([item.input for item in inputs])
        return first_tokens(network, inputs)

    monkeypatch.setattr(lookups, "first_tokens", watched)
    asking = BatchLookups(network, TEXTS)
    first = asking.first_tokens(torch.tensor([2, 0]))
    second = asking.first_tokens(torch.tensor([0, 1, 2]))
    assert asked == [[TEXTS[2].input, TEXTS[0].input], [TEXTS[1].input]]
    assert torch.equal(second.token_ids[[2, 0]], first.token_ids) and torch.equal(
        second.token_probabilities[[2, 0]], first.token_probabilities
    )


def doubtful(network: Network, size: float = 5.0) -> LayerDelta:
    """An entry whose scope contains every text by cosine, but only those with the same first token."""
    delta = scoped_delta(network, network.layers[-1], TEXTS[:1], size=size)
    assert delta.scoped is not None
    weights = {"first_token_weights": torch.tensor([1e4]), "lexical_weights": torch.zeros(1)}
    wide = replace(delta.scoped.scope, radii=torch.tensor([-1.1]), **weights)
    return LayerDelta(delta.layer, (replace(delta.scoped, scope=wide),))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_entry_acts_only_if_the_base_starts_its_answer_as_for_the_key(architecture: str) -> None:
    network = tiny_network(architecture)
    delta = doubtful(network)
    firing = fire(network, TEXTS, [delta])
    assert firing is not None and delta.scoped is not None
    points = metric_of(network).embed(network, TEXTS)
    worded = [WordCounts.of(text) for text in TEXTS]
    likeness = delta.scoped.scope.likeness(points, KnownLookups(worded, first_tokens(network, TEXTS)))
    expected = (likeness > delta.scoped.scope.radii).any(-1)
    assert torch.equal(firing.gate > 0, expected)
    assert expected[0] and not expected.all(), "tiny models answer differently"
    outside = (~expected).nonzero().flatten().tolist()
    base = predict(network, TEXTS, max_new_tokens=6)
    edited = predict(network, TEXTS, [delta], max_new_tokens=6)
    assert [edited[row].output for row in outside] == [base[row].output for row in outside]


def test_many_pairs_are_compared_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded even if a whole batch lies inside the scopes of many keys."""
    network = tiny_network("bert")
    scope = scoped_delta(network, network.layers[-1], TEXTS, size=5.0).scoped
    assert scope is not None
    wide = replace(scope.scope, radii=torch.full((len(TEXTS),), -1.1))
    points, heard = metric_of(network).embed(network, TEXTS), first_tokens(network, TEXTS)
    worded = [WordCounts.of(text) for text in TEXTS]
    expected = points @ wide.keys.T
    for row in range(len(TEXTS)):
        for key in range(len(TEXTS)):
            one, other = (heard.rows(torch.tensor([place])) for place in (row, key))
            expected[row, key] -= wide.first_token_weights[key] * one.distance(other)[0]
            expected[row, key] -= wide.lexical_weights[key] * worded[row].exchanged_weight(
                worded[key], wide.metric.word_weights
            )
    for size in (1, 3, 4_096):
        monkeypatch.setattr(scopes, "PAIRS", size)
        torch.testing.assert_close(
            wide.likeness(points, KnownLookups(worded, heard)), expected, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5", "bart"])
def test_the_base_is_asked_without_any_delta(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain delta of the same version changes the answer, but not what the base is asked."""
    network = tiny_network(architecture)
    last = network.layers[-1]
    weight = torch.randn(last.d_out, last.d_in, generator=torch.Generator().manual_seed(0))
    plain = LayerDelta(last.path, (Dense(weight),))
    heard: list[FirstTokens] = []

    def watched(network: Network, inputs: list[TextInput]) -> FirstTokens:
        heard.append(first_tokens(network, inputs))
        return heard[-1]

    fields = encode_inputs(network, TEXTS)
    expected = first_tokens(network, TEXTS)
    monkeypatch.setattr(lookups, "first_tokens", watched)
    with gated(network, TEXTS, fields, [plain, doubtful(network)]), torch.no_grad():
        ran = network.model.get_encoder() if network.model.config.is_encoder_decoder else network.model
        ran(**fields)
    (found,) = heard
    assert torch.equal(found.token_ids[:, 0], expected.token_ids[:, 0])
    torch.testing.assert_close(found.token_probabilities, expected.token_probabilities, rtol=1e-3, atol=1e-5)
    with applied(network.model, [plain]):
        moved = first_tokens(network, TEXTS)
    assert not torch.allclose(moved.token_probabilities, expected.token_probabilities, atol=1e-3), (
        "the plain delta would have changed this"
    )


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_streamed_model_gives_the_same_first_tokens(architecture: str, tmp_path: Path) -> None:
    folder, task = save_tiny(tmp_path / "model", architecture), first_task(architecture)
    whole, streamed = (load(folder, task, device="cpu", streamed=way) for way in (False, True))
    deltas = [doubtful(whole)]
    found, expected = (predict(network, TEXTS, deltas, max_new_tokens=4) for network in (streamed, whole))
    assert [each.output for each in found] == [each.output for each in expected]
