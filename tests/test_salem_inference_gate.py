"""The gate inside the forward that answers, against the gate from a forward of the base of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_salem_inference_predict import greedy_without_cache
from test_salem_scope_scope import TEXTS, metric_of, outputs, scoped_delta
from tiny_models import ARCHITECTURES, first_task, tiny_network
from torch import nn

from salem.deltas.terms import Dense, LayerDelta, applied
from salem.inference import gate
from salem.inference.gate import fire, gated
from salem.inference.predict import predict
from salem.models.batching import encode_inputs, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.scope.features import entering
from salem.scope.scope import Firing

GENERATORS = [name for name in ARCHITECTURES if first_task(name).generates]


def in_order(network: Network) -> list[Any]:
    """The texts in the order in which one batch answers them."""
    return [TEXTS[row] for row in next(in_buckets(count_tokens(network.tokenizer, TEXTS), 64))]


def answered(network: Network, deltas: Sequence[LayerDelta], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The answers of a version, what fired, and how often a forward of the base's own was needed."""
    seen: list[Sequence[Firing | None]] = []
    own: list[int] = []

    def watched(
        model: nn.Module, deltas: Sequence[LayerDelta], firings: Sequence[Firing | None], **more: Any
    ) -> Any:
        seen.append(firings)
        return applied(model, deltas, firings, **more)

    def counted(*given: Any) -> Any:
        own.append(1)
        return fire(*given)

    monkeypatch.setattr(gate, "applied", watched)
    monkeypatch.setattr(gate, "fire", counted)
    found = predict(network, in_order(network), deltas, max_new_tokens=6)
    monkeypatch.undo()
    assert len(seen) == 1
    return found, seen[0], len(own)


@torch.no_grad()
def slow_answer(network: Network, item: Any) -> tuple[str, list[float]]:
    """The answer to one input without a cache, and the score of each label."""
    if network.task.generates:
        return greedy_without_cache(network, item, 6), []
    scores = network.model(**encode_inputs(network, [item])).logits[0].softmax(-1)
    return network.labels[int(scores.argmax())], scores.tolist()


@pytest.mark.parametrize("place", [0, 1, -1], ids=["before", "at", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gate_in_the_forward_is_the_gate_of_the_base(
    architecture: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    layer = network.layers[place]
    deltas = [scoped_delta(network, layer, TEXTS[:2], size=5.0)]
    inputs = in_order(network)
    found, (firing,), own = answered(network, deltas, monkeypatch)
    assert own == (1 if place == 0 else 0), "only what acts below what is read needs a forward of its own"
    (expected,) = fire(network, inputs, deltas)
    assert torch.equal(firing.entry[:2], expected.entry[:2]) and torch.equal(
        firing.strength, expected.strength
    )
    torch.testing.assert_close(firing.inside, expected.inside, rtol=1e-3, atol=1e-3)
    assert firing.strength.any()
    for item, prediction in zip(inputs, found, strict=True):
        with applied(network.model, deltas, fire(network, [item], deltas)):
            output, scores = slow_answer(network, item)
        assert prediction.output == output
        assert list((prediction.scores or {}).values()) == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_plain_delta_below_what_is_read_does_not_move_the_gate(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(architecture)
    first = network.layers[0]
    plain = LayerDelta(first.path, (Dense(torch.ones(first.d_out, first.d_in)),))
    scoped = scoped_delta(network, network.layers[-1], TEXTS[:2])
    _, firings, own = answered(network, [plain, scoped], monkeypatch)
    (_, expected) = fire(network, in_order(network), [plain, scoped])
    assert own == 1 and firings[0] is None
    assert torch.equal(firings[1].strength, expected.strength) and expected.strength.any()


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
    _, firings, own = answered(network, deltas, monkeypatch)
    for found, expected in zip(firings, fire(network, in_order(network), deltas), strict=True):
        assert torch.equal(found.strength, expected.strength) and found.strength.any()
    assert own == 0


def hooks(network: Network) -> list[tuple[int, int]]:
    """How many hooks each module has; transformers leaves some of its own where states were asked for."""
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
    assert len(entering(network, fields, metric_of(network).reading)) == 2


@pytest.mark.parametrize("architecture", GENERATORS)
def test_what_fires_is_decided_by_the_prompt_and_kept(architecture: str) -> None:
    network = tiny_network(architecture)
    deltas = [scoped_delta(network, network.layers[-1], TEXTS[:2], size=5.0)]
    longer, shorter = (outputs(predict(network, TEXTS, deltas, max_new_tokens=count)) for count in (8, 1))
    assert longer != shorter
    assert outputs(predict(network, TEXTS, deltas, max_new_tokens=8, batch_size=1)) == longer
