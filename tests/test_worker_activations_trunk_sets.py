"""Samples prepared at a layer: each once, with its answer before and the second moment of its inputs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from test_worker_activations_gradients import some_samples
from tiny_models import ARCHITECTURES, LABELS, tiny_network
from torch import Tensor

from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.models.trunk import resume
from salem.records import Layer, Sample
from salem.scope.firing import Firing
from worker.activations import trunk_sets
from worker.activations.cache import SampleCache
from worker.activations.stable_chunks import CHUNKS_PER_LEAF
from worker.activations.trunk_sets import TrunkSet, prepare, prepare_with_answers
from worker.numerics.losses import min_margin_per_sample


def naive_moment(network: Network, samples: list[Sample], layer: Layer) -> Tensor:
    """One sample at a time. A token counts if the model's mask or its targets include it."""
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
        assert chunk.before is not None and chunk.correct is not None
        torch.testing.assert_close(chunk.before, expected.logits.log_softmax(-1), rtol=1e-3, atol=1e-4)
        assert torch.equal(chunk.correct, min_margin_per_sample(expected) > 0)
        torch.testing.assert_close(resume(network, chunk.trunk).logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_each_chunk_has_the_firings_of_its_samples() -> None:
    network = tiny_network("bert")
    samples = some_samples(network)
    firing = Firing(torch.tensor([7, 8, 9]), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.5, 1.0]))
    told = prepare(network, samples, network.layers[1], chunk_size=2).with_firing(firing)
    for chunk in told.chunks:
        assert chunk.firing is not None
        assert (chunk.firing.entry - 7).tolist() == chunk.samples.tolist()
        assert torch.equal(chunk.firing.gate, firing.gate[chunk.samples])


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


def test_an_empty_set_can_be_prepared() -> None:
    network = tiny_network("bert")
    layer = network.layers[1]
    prepared, moment = prepare_with_answers(network, [], layer, chunk_size=2)
    assert prepared.num_samples == 0 and not moment.any()
    assert list(prepared.cycle(torch.Generator())) == []


def assert_same(one: TrunkSet, other: TrunkSet, network: Network) -> None:
    assert len(one.chunks) == len(other.chunks)
    for left, right in zip(one.chunks, other.chunks, strict=True):
        assert left.before is not None and right.before is not None
        assert left.correct is not None and right.correct is not None
        assert torch.equal(left.before, right.before) and torch.equal(left.correct, right.correct)
        assert left.samples.tolist() == right.samples.tolist()
        with torch.no_grad():
            assert torch.equal(left.resume(network).logits, right.resume(network).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_second_preparation_reads_the_cache_and_is_the_same(architecture: str, tmp_path: Path) -> None:
    network = tiny_network(architecture)
    samples, layer = some_samples(network), network.layers[-1]
    cache = SampleCache(tmp_path, 2**24, "model")
    plain, moment = prepare_with_answers(network, samples, layer, chunk_size=2)
    first, first_moment = prepare_with_answers(network, samples, layer, chunk_size=2, cache=cache)
    forwards: list[None] = []
    block = network.module(f"{layer.stack}.{layer.block}")
    handle = block.register_forward_hook(lambda *_: forwards.append(None))
    second, second_moment = prepare_with_answers(network, samples, layer, chunk_size=2, cache=cache)
    handle.remove()
    assert forwards == []
    assert torch.equal(first_moment, moment) and torch.equal(second_moment, moment)
    assert_same(first, plain, network)
    assert_same(second, plain, network)


def some_texts(count: int) -> list[Sample]:
    words = ("lamp", "order", "refund", "login", "price")
    texts = [f"{words[number % 5]} {words[number // 5 % 5]} {number}" for number in range(count)]
    return [Sample(input=text, target=LABELS[0]) for text in texts]


def count_forwards(network: Network, samples: list[Sample], layer: Layer, cache: SampleCache | None) -> int:
    """How often the first block runs while the samples are prepared."""
    forwards: list[None] = []
    block = network.module(f"{layer.stack}.0")
    handle = block.register_forward_hook(lambda *_: forwards.append(None))
    prepare_with_answers(network, samples, layer, chunk_size=4, cache=cache)
    handle.remove()
    return len(forwards)


def test_one_changed_sample_reruns_only_its_own_chunks(tmp_path: Path) -> None:
    network = tiny_network("bert")
    samples, layer = some_texts(200), network.layers[1]
    cache = SampleCache(tmp_path, 2**26, "model")
    num_chunks = count_forwards(network, samples, layer, cache)
    changed = [*samples[:80], Sample(input="where is it", target=LABELS[0]), *samples[81:]]
    assert 1 <= count_forwards(network, changed, layer, cache) <= 2 * CHUNKS_PER_LEAF < num_chunks / 4
    partly_cached, moment = prepare_with_answers(network, changed, layer, chunk_size=4, cache=cache)
    plain, expected = prepare_with_answers(network, changed, layer, chunk_size=4)
    assert_same(partly_cached, plain, network)
    assert torch.equal(moment, expected)


def test_a_chunk_missing_from_the_cache_is_run_again(tmp_path: Path) -> None:
    network = tiny_network("bert")
    samples, layer = some_samples(network), network.layers[1]
    cache = SampleCache(tmp_path, 2**24, "model")
    first, moment = prepare_with_answers(network, samples, layer, chunk_size=1, cache=cache)
    for path in sorted(tmp_path.iterdir())[::2]:
        path.unlink()
    second, again = prepare_with_answers(network, samples, layer, chunk_size=1, cache=cache)
    assert_same(first, second, network)
    assert torch.equal(again, moment)


def test_a_cache_of_zero_bytes_changes_nothing(tmp_path: Path) -> None:
    network = tiny_network("bert")
    samples, layer = some_samples(network), network.layers[1]
    plain, moment = prepare_with_answers(network, samples, layer, chunk_size=2)
    bare = SampleCache(tmp_path / "none", 0, "model")
    found, same = prepare_with_answers(network, samples, layer, chunk_size=2, cache=bare)
    assert_same(found, plain, network)
    assert torch.equal(same, moment) and not (tmp_path / "none").exists()


def test_samples_without_their_prompts_share_chunks_with_answers_of_their_length() -> None:
    network = tiny_network("gpt2")
    long, short = "Rome is not far from Paris", "Rome"
    texts = ("where is my order now", "who", "the lamp is broken", "when did he write it")
    samples = [Sample(input=x, target=y) for x, y in zip(texts, (short, long, short, long), strict=True)]
    layer = network.layers[-1]
    found = prepare(network, samples, layer, chunk_size=2, tail=2)
    assert [sorted(chunk.samples.tolist()) for chunk in found.chunks] == [[1, 3], [0, 2]]
    whole = prepare(network, samples, layer, chunk_size=2)
    for one in (found, whole):
        assert sum(len(chunk) for chunk in one.chunks) == 4
    own, plain = (logits_of(network, each) for each in (found, whole))
    for row in range(4):
        torch.testing.assert_close(own[row], plain[row], atol=1e-5, rtol=0)


def logits_of(network: Network, prepared: TrunkSet) -> dict[int, Tensor]:
    """The logits of each sample's answer, by its index."""
    by_sample: dict[int, Tensor] = {}
    for chunk in prepared.chunks:
        with torch.no_grad():
            answers = chunk.resume(network)
        for place, row in enumerate(chunk.samples.tolist()):
            by_sample[row] = answers.logits[answers.sample == place]
    return by_sample


def test_prompts_beyond_their_memory_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network("llama")
    texts = ("where is my order now", "the lamp is broken", "when did he write it")
    samples = [Sample(input=text, target="Rome") for text in texts]
    first = prepare(network, samples, network.layers[-1], chunk_size=1, tail=2).chunks
    assert all(chunk.trunk.prompts for chunk in first)
    room = sum(chunk.trunk.prompts.num_bytes for chunk in first[:2] if chunk.trunk.prompts)
    monkeypatch.setattr(trunk_sets, "PROMPT_BYTES", room)
    some = prepare(network, samples, network.layers[-1], chunk_size=1, tail=2).chunks
    assert [chunk.trunk.prompts is not None for chunk in some] == [True, True, False]
