"""The benchmark of layer selection: what its passes compute, and its arithmetic."""

from __future__ import annotations

import pytest
import torch
from test_worker_activations_gradients import autograd_gradients, in_double, some_samples
from test_worker_training_ridge import pass_samples, wrong_samples
from tiny_models import tiny_network

from benchmarks.quality.data import Material
from benchmarks.quality.facts import Correction
from benchmarks.quality.jobs import DrawnJob
from benchmarks.selection.choices import PAPER, choices, compared, rankings
from benchmarks.selection.costs import (
    inference,
    memory_ratios,
    passes,
    peak_bytes,
    plain_backward,
    time_ratios,
    within,
)
from benchmarks.selection.gradient_sizes import Measure, gradient_sizes
from salem.models.batching import encode, forward
from salem.records import Edit, EditBatch
from worker.numerics.losses import nll_per_sample


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_plain_backward_reaches_the_embeddings(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = encode(network, some_samples(network))
    embedded = network.model.get_input_embeddings()(batch.inputs["input_ids"]).requires_grad_()
    fields = {key: value for key, value in batch.inputs.items() if key != "input_ids"}
    logits = network.model(inputs_embeds=embedded, **fields).logits
    asked = batch.targets != -100
    flat = logits.unsqueeze(1)[asked] if logits.dim() == 2 else logits[asked]
    losses = torch.nn.functional.cross_entropy(flat, batch.targets[asked], reduction="none")
    weights = (1 / asked.sum(-1, keepdim=True)).expand_as(asked)[asked]
    (expected,) = torch.autograd.grad((losses * weights).sum(), embedded)
    torch.testing.assert_close(plain_backward(network, batch), expected, rtol=1e-3, atol=1e-6)


def test_every_kind_of_pass_is_timed_against_the_plain_one() -> None:
    network = tiny_network("bert")
    batch = encode(network, some_samples(network))
    ratios = time_ratios(network, batch, rounds=2)
    assert ratios["plain"] == 1 and set(ratios) == set(passes(network, batch))
    assert not inference(network, batch).requires_grad
    assert nll_per_sample(forward(network, batch)).shape == (3,)


def test_memory_is_the_peak() -> None:
    def run() -> None:
        first = torch.zeros(1_000_000)
        del first
        second = torch.zeros(500_000)
        third = torch.zeros(750_000)
        del second, third

    assert peak_bytes(run) == pytest.approx(5_000_000, rel=0.01)


def test_a_pass_that_keeps_its_activations_takes_more_memory_than_inference() -> None:
    network = tiny_network("bert")
    ratios = memory_ratios(network, encode(network, some_samples(network) * 3))
    assert ratios["inference"] == 1 < ratios["absolute"] < ratios["absolute_whole"]


def test_regret_and_hit_are_measured_against_the_best_layer() -> None:
    scores = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1}
    assert compared(scores, ["b", "a", "c", "d"]) == {"first": "b", "regret_at_1": 0.0, "hit_at_3": True}
    assert compared(scores, ["a", "c", "d", "b"]) == {"first": "a", "regret_at_1": 0.4, "hit_at_3": False}


def test_the_bounds_are_the_documented_ones() -> None:
    good = {
        "cost_over_forward_backward": 1.3,
        "causal_tracing_over_selection": 20,
        "memory_over_inference": 1.2,
    }
    assert all(within(good).values())
    bad = {
        "cost_over_forward_backward": 1.31,
        "causal_tracing_over_selection": 19,
        "memory_over_inference": 1.21,
    }
    assert not any(within(bad).values())


def test_every_way_to_select_ranks_layers_that_can_be_edited() -> None:
    network = tiny_network("bert")
    wrong, kept = wrong_samples(network), pass_samples(network)
    batch = EditBatch(
        edit_samples=tuple(wrong),
        adapt_samples=(),
        pass_samples=tuple(kept[:20]),
        held_out_paraphrases=(),
        held_out_pass_samples=tuple(kept[20:]),
    )
    ranked, seconds, saliency = rankings(network, batch, seed=0)
    everything = {layer.path for layer in network.layers}
    assert set(ranked) == set(seconds) and len(ranked) == 6
    assert ranked[PAPER] == sorted(everything, key=lambda path: -saliency[path])
    assert all(set(order) == everything for way, order in ranked.items() if way != "trial edits")
    assert set(ranked["trial edits"]) == set(ranked["absolute sample"][:3])


def test_every_layer_is_scored_by_editing_it() -> None:
    network = tiny_network("bert")
    kept = pass_samples(network)
    corrections = tuple(
        Correction(
            edit=Edit(**sample.model_dump()),
            held_out_paraphrases=(sample.model_copy(update={"input": sample.input + " please"}),),
        )
        for sample in wrong_samples(network)
    )
    material = Material(
        name="some", task=network.task, folder="", model_sha256="", paraphrase_source="rules",
        perplexity=False, corrections=corrections, num_hard=len(corrections), kept=tuple(kept),
    )  # fmt: skip
    job = DrawnJob(material, corrections, tuple(kept[:20]), tuple(kept[20:]), ())
    found = choices(network, job, seed=0)
    assert [layer["path"] for layer in found["layers"]] == [layer.path for layer in network.layers]
    assert all(-1 <= layer["score"] <= 1 and layer["saliency"] > 0 for layer in found["layers"])
    best = max(layer["score"] for layer in found["layers"])
    firsts = {layer["path"]: layer["score"] for layer in found["layers"]}
    for way in found["selection"].values():
        assert way["regret_at_1"] == pytest.approx(best - firsts[way["first"]], abs=1e-3)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "opt", "llama"])
def test_a_norm_is_that_of_each_samples_dense_gradient(architecture: str) -> None:
    network = in_double(architecture)
    samples = some_samples(network)
    alone = [autograd_gradients(network, [sample]) for sample in samples]
    found = gradient_sizes(network, samples, network.layers, "frobenius", "sample", 2)
    for layer in network.layers:
        expected = sum(float(gradients[layer.path].norm()) for gradients in alone) / len(samples)
        assert found[layer.path] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "opt"])
@pytest.mark.parametrize("measure", ["absolute", "frobenius"])
def test_the_mean_gradient_is_measured_across_batches(architecture: str, measure: Measure) -> None:
    network = in_double(architecture)
    samples = some_samples(network)
    together = autograd_gradients(network, samples)  # of the summed loss
    found = gradient_sizes(network, samples, network.layers, measure, "mean", 2)
    per_sample = gradient_sizes(network, samples, network.layers, measure, "sample", 2)
    for layer in network.layers:
        mean = together[layer.path] / len(samples)
        expected = float(mean.abs().mean() if measure == "absolute" else mean.norm())
        assert found[layer.path] == pytest.approx(expected, rel=1e-8)
        assert found[layer.path] < per_sample[layer.path], "gradients of different samples cancel in part"
