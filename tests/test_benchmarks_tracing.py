"""Causal tracing against a slow reference that corrupts and restores by hand, and its edge cases."""

from __future__ import annotations

import pytest
import torch
from test_worker_activations_gradients import in_double, some_samples
from tiny_models import tiny_network
from torch import Tensor, nn

from benchmarks.tracing import NOISE, own_answers, trace_batch, trace_layer
from salem.models.batching import answers_of, encode, forward
from salem.models.network import Network
from worker.numerics.losses import nll_per_sample


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_effect(network: Network, index: int, restored: str) -> tuple[Tensor, Tensor]:
    """(probability lost, effect of restoring one module's clean output), from explicit embeddings."""
    batch = encode(network, some_samples(network)[index : index + 1])
    clean = network.model.get_input_embeddings()(batch.inputs["input_ids"])
    asked = batch.inputs["attention_mask"].bool()
    if network.task.generates:
        asked = asked & (torch.arange(asked.shape[1]) <= int((batch.targets != -100).int().argmax()))
    noise = torch.randn(clean.shape, generator=drawn()).to(clean)
    noisy = clean + NOISE * clean[asked].std() * noise * asked.unsqueeze(-1)
    fields = {key: value for key, value in batch.inputs.items() if key != "input_ids"}

    def probability(embedded: Tensor) -> Tensor:
        logits = network.model(inputs_embeds=embedded, **fields).logits
        return (-nll_per_sample(answers_of(logits, batch))).exp()

    kept: list[Tensor] = []
    module: nn.Module = network.module(restored)
    reader = module.register_forward_hook(lambda m, a, output: kept.append(output))
    right = probability(clean)
    reader.remove()
    wrong = probability(noisy)
    writer = module.register_forward_hook(lambda m, a, output: kept[0])
    back = probability(noisy)
    writer.remove()
    return right - wrong, back - wrong


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_an_effect_is_what_restoring_a_matrix_output_recovers(architecture: str) -> None:
    network = in_double(architecture)
    batch = encode(network, some_samples(network)[:1])
    found = trace_batch(network, batch, network.layers, drawn(), num_draws=1)
    for layer in network.layers:
        lost, expected = slow_effect(network, 0, layer.path)
        assert float(lost.abs()) > 1e-6, "the noise changes nothing: this test shows nothing"
        # Losses are float32 whatever the model is.
        torch.testing.assert_close(found[layer.path], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "gpt2", "deberta-v2", "modernbert"])
def test_every_stack_is_traced_and_no_hook_stays(architecture: str) -> None:
    network = tiny_network(architecture)
    samples = some_samples(network)
    before = forward(network, encode(network, samples)).logits
    hooks = [len(module._forward_hooks) for module in network.model.modules()]
    found = trace_layer(network, samples, network.layers, drawn(), num_draws=2)
    assert set(found) == {layer.path for layer in network.layers}
    assert all(abs(effect) <= 1 for effect in found.values()) and any(found.values())
    assert hooks == [len(module._forward_hooks) for module in network.model.modules()]
    torch.testing.assert_close(forward(network, encode(network, samples)).logits, before)


def test_restoring_the_state_that_the_answer_is_read_from_recovers_everything() -> None:
    network = in_double("bert")
    batch = encode(network, some_samples(network)[2:])
    length = int(batch.inputs["attention_mask"].sum())
    found = trace_batch(network, batch, network.layers, drawn(), restored="state", num_draws=1)
    last = network.layers[-1].path
    lost, _ = slow_effect(network, 2, last)
    # A classifier reads its first token alone, so of the last block's tokens only that one counts.
    torch.testing.assert_close(found[last] * length, lost, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_trace() -> None:
    network = tiny_network("gpt2")
    samples = some_samples(network)
    one, two = (trace_layer(network, samples, network.layers, drawn(3), num_draws=2) for _ in range(2))
    assert one == two


def test_the_traced_answer_is_the_networks_own() -> None:
    network = tiny_network("bert")
    samples = some_samples(network)
    known = own_answers(network, samples)
    right = forward(network, encode(network, known)).logits.argmax(-1)
    assert [network.labels[int(index)] for index in right] == [sample.target for sample in known]
