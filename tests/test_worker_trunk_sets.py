"""Samples prepared at a layer: every one once, its answer before, and the second moment of its inputs."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from test_worker_gradients import some_samples
from tiny_models import ARCHITECTURES, LABELS, tiny_network
from torch import Tensor

from salem.encoding import encode, forward
from salem.hosting import Network
from salem.records import Layer, Sample
from salem.scopes import Firing
from salem.trunk import resume
from worker.losses import worst_margin_per_sample
from worker.trunk_sets import prepare, prepare_with_answers


def naive_moment(network: Network, samples: list[Sample], layer: Layer) -> Tensor:
    """One sample at a time; a token counts if the model's mask or its targets say that it is there."""
    seen: list[Tensor] = []
    handle = network.module(layer.path).register_forward_hook(lambda _, args, output: seen.append(args[0]))
    rows = []
    for sample in samples:
        batch = encode(network, [sample])
        seen.clear()
        with torch.no_grad():
            forward(network, batch)
        beside = network.model.config.is_encoder_decoder and "decoder" in layer.stack
        length = int((batch.targets != -100).sum()) if beside else int(batch.inputs["attention_mask"].sum())
        rows.append(seen[0].reshape(-1, layer.d_in)[:length])
    handle.remove()
    u = torch.cat(rows)
    return u.T @ u / len(u)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_second_moment_counts_every_real_token_once(architecture: str) -> None:
    network = tiny_network(architecture)
    samples = some_samples(network)
    for layer in (network.layers[1], network.layers[-1]):
        _, moment = prepare_with_answers(network, samples, layer, chunk_size=2)
        torch.testing.assert_close(moment, naive_moment(network, samples, layer), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_answers_before_are_the_models_own(architecture: str) -> None:
    network = tiny_network(architecture)
    samples, layer = some_samples(network), network.layers[1]
    prepared, _ = prepare_with_answers(network, samples, layer, chunk_size=2)
    assert prepared.num_samples == len(samples)
    assert sorted(torch.cat([chunk.samples for chunk in prepared.chunks]).tolist()) == [0, 1, 2]
    for chunk in prepared.chunks:
        with torch.no_grad():
            expected = forward(network, encode(network, [samples[i] for i in chunk.samples.tolist()]))
        assert chunk.before is not None and chunk.held is not None
        torch.testing.assert_close(chunk.before, expected.logits.log_softmax(-1), rtol=1e-3, atol=1e-4)
        assert torch.equal(chunk.held, worst_margin_per_sample(expected) > 0)
        torch.testing.assert_close(resume(network, chunk.trunk).logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_firings_follow_their_samples_into_the_chunks() -> None:
    network = tiny_network("bert")
    samples = some_samples(network)
    firing = Firing(torch.tensor([7, 8, 9]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.5, 1.0]))
    told = prepare(network, samples, network.layers[1], chunk_size=2).with_firing(firing)
    for chunk in told.chunks:
        assert chunk.firing is not None
        assert (chunk.firing.entry - 7).tolist() == chunk.samples.tolist()
        assert torch.equal(chunk.firing.strength, firing.strength[chunk.samples])


def test_a_cycle_visits_every_chunk_once_a_round_and_follows_its_seed() -> None:
    network = tiny_network("bert")
    texts = ["lamp " * (number + 1) for number in range(6)]
    samples = [Sample(input=text, target=LABELS[0]) for text in texts]
    prepared = prepare(network, samples, network.layers[1], chunk_size=1)

    def visits(seed: int) -> list[int]:
        cycle = prepared.cycle(torch.Generator().manual_seed(seed))
        return [int(chunk.samples) for chunk in islice(cycle, 18)]

    order = visits(0)
    assert [sorted(order[start : start + 6]) for start in (0, 6, 12)] == [list(range(6))] * 3
    assert order[:6] != order[6:12] and visits(0) == order != visits(1)


def test_no_samples_are_prepared_to_nothing() -> None:
    network = tiny_network("bert")
    layer = network.layers[1]
    prepared, moment = prepare_with_answers(network, [], layer, chunk_size=2)
    assert prepared.num_samples == 0 and not moment.any()
    assert list(prepared.cycle(torch.Generator())) == []
