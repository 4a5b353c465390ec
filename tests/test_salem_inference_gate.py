"""The gate inside the answering forward, against the gate from a separate forward of the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_salem_inference_predict import greedy_without_cache
from test_salem_scope_state_scope import TEXTS, metric_of, outputs, scoped_delta
from tiny_models import ARCHITECTURES, first_task, tiny_network

from salem.deltas.chain import Chain
from salem.deltas.terms import Dense, LayerDelta
from salem.inference import gate
from salem.inference import predict as predicting
from salem.inference.gate import Gate, fire, gated
from salem.inference.predict import predict
from salem.models.batching import encode_inputs, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.scope.features import captured_states

GENERATORS = [name for name in ARCHITECTURES if first_task(name).generates]


def in_order(network: Network) -> list[Any]:
    """The texts in the order in which one batch answers them."""
    return [TEXTS[row] for row in next(in_buckets(count_tokens(network.tokenizer, TEXTS), 64))]


def answered(network: Network, deltas: Sequence[LayerDelta], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The answers of a version, which entries fired, and how many separate forward passes the base ran."""
    seen: list[Gate] = []
    own: list[int] = []

    @contextmanager
    def watched(*given: Any) -> Iterator[Gate]:
        with gated(*given) as found:
            seen.append(found)
            yield found

    def counted(*given: Any) -> Any:
        own.append(1)
        return fire(*given)

    monkeypatch.setattr(predicting, "gated", watched)
    monkeypatch.setattr(gate, "fire", counted)
    found = predict(network, in_order(network), deltas, max_new_tokens=6)
    monkeypatch.undo()
    assert len(seen) == 1
    return found, seen[0].firing, len(own)


@torch.no_grad()
def slow_answer(network: Network, item: Any) -> tuple[str, list[float]]:
    """The answer to one input without a cache, and the score of each label."""
    if network.task.generates:
        return greedy_without_cache(network, item, 6), []
    scores = network.model(**encode_inputs(network, [item])).logits[0].softmax(-1)
    return network.labels[int(scores.argmax())], scores.tolist()


@pytest.mark.parametrize("place", [0, 1, -1], ids=["before", "at", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gate_in_the_answering_forward_equals_the_gate_of_the_base(
    architecture: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    layer = network.layers[place]
    deltas = [scoped_delta(network, layer, TEXTS[:2], size=5.0)]
    inputs = in_order(network)
    found, firing, own = answered(network, deltas, monkeypatch)
    assert own == (1 if place == 0 else 0), "only a delta below the features needs its own forward"
    expected = fire(network, inputs, deltas)
    assert expected is not None and torch.equal(firing.gate, expected.gate)
    assert torch.equal(firing.entry[:2], expected.entry[:2])
    torch.testing.assert_close(firing.margin, expected.margin, rtol=1e-3, atol=1e-3)
    assert firing.gate.any()
    for item, answer in zip(inputs, found, strict=True):
        alone = fire(network, [item], deltas)
        with Chain.of(deltas).applied(network.model, lambda alone=alone: alone):
            output, scores = slow_answer(network, item)
        assert answer.output == output
        assert list((answer.scores or {}).values()) == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_plain_delta_below_the_features_does_not_change_the_gate(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    first = network.layers[0]
    plain = LayerDelta(first.path, (Dense(torch.ones(first.d_out, first.d_in)),))
    scoped = scoped_delta(network, network.layers[-1], TEXTS[:2])
    _, firing, own = answered(network, [plain, scoped], monkeypatch)
    expected = fire(network, in_order(network), [plain, scoped])
    assert own == 1 and expected is not None
    assert torch.equal(firing.gate, expected.gate) and expected.gate.any()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart"])
def test_scopes_in_two_metrics_are_read_in_one_forward(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    layer = network.layers[-1]
    deltas = [
        scoped_delta(network, layer, TEXTS[:1], seed=1, metric=metric_of(network, 1)),
        scoped_delta(network, layer, TEXTS[1:2], seed=5, metric=metric_of(network, 2, seed=3)),
    ]
    found, firing, own = answered(network, deltas, monkeypatch)
    expected = fire(network, in_order(network), deltas)
    assert expected is not None and torch.equal(firing.gate, expected.gate)
    assert {answer.match.delta for answer in found if answer.match} == {0, 1} and own == 0


def hooks(network: Network) -> list[tuple[int, int]]:
    """The number of hooks of each module. Transformers keeps some of its own after returning states."""
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in network.model.modules()]


@pytest.mark.parametrize("architecture", ["bert", "t5", "llama"])
def test_nothing_stays_in_the_model_after_a_failure(architecture: str) -> None:
    network = tiny_network(architecture)
    deltas = [scoped_delta(network, network.layers[-1], TEXTS[:1])]
    fields = encode_inputs(network, TEXTS)
    before = hooks(network)
    with pytest.raises(RuntimeError, match="halfway"), gated(network, TEXTS, fields, deltas):
        raise RuntimeError("halfway")
    assert hooks(network) == before
    assert len(captured_states(network, fields, metric_of(network).feature_spec)) == 2


@pytest.mark.parametrize("architecture", GENERATORS)
def test_what_fires_is_decided_by_the_prompt_and_kept(architecture: str) -> None:
    network = tiny_network(architecture)
    deltas = [scoped_delta(network, network.layers[-1], TEXTS[:2], size=5.0)]
    longer, shorter = (outputs(predict(network, TEXTS, deltas, max_new_tokens=count)) for count in (8, 1))
    assert longer != shorter
    assert outputs(predict(network, TEXTS, deltas, max_new_tokens=8, batch_size=1)) == longer
