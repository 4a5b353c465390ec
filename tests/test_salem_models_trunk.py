"""Capture and resume against the plain forward, for every architecture and at every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, LABELS, tiny_network
from torch import Tensor, nn

from salem.deltas.terms import LayerDelta, LowRank, adding, applied
from salem.models.batching import Answers, Batch, encode, forward
from salem.models.network import Network
from salem.models.trunk import capture, capture_answers, entering, resume
from salem.records import Layer, Sample

TEXTS = (
    "where is my order",
    "the password does not work and i cannot log in to my account today",
    "lamp",
    "Who wrote the book? Anna wrote it in Rome",
)
TARGETS = ("Paris", "Rome is not", "Lima", "it was Anna who wrote")


def mixed_batch(network: Network) -> Batch:
    """Four samples of different length, one of them a pair where the model takes pairs."""
    if network.task.generates:
        return encode(network, [Sample(input=x, target=y) for x, y in zip(TEXTS, TARGETS, strict=True)])
    pairs = (None, None, "the parcel is here", None)
    return encode(
        network,
        [Sample(input=x, text_pair=y, target=z) for x, y, z in zip(TEXTS, pairs, LABELS, strict=True)],
    )


def random_delta(layer: Layer, *, seed: int = 0, rank: int = 2) -> LayerDelta:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, layer.d_in, generator=draw)
    b = torch.randn(layer.d_out, rank, generator=draw) / layer.d_in**0.5
    return LayerDelta(layer.path, (LowRank(a, b),))


def assert_same(found: Answers, expected: Answers, place: str) -> None:
    assert torch.equal(found.targets, expected.targets), place
    assert torch.equal(found.sample, expected.sample), place
    torch.testing.assert_close(
        found.logits, expected.logits, atol=1e-5, rtol=0, msg=lambda m: f"{place}: {m}"
    )


def counting(network: Network, calls: list[str]) -> Callable[[], None]:
    """Record every block that runs in `calls`; returns a function that removes the hooks."""
    blocks = {
        f"{layer.stack}.{layer.block}": network.module(f"{layer.stack}.{layer.block}")
        for layer in network.layers
    }
    handles = [
        block.register_forward_pre_hook(lambda _module, _args, path=path: calls.append(path))
        for path, block in blocks.items()
    ]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


@pytest.mark.parametrize("tail", [1, 3, 6])
@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
@torch.no_grad()
def test_a_decoder_without_its_prompts_equals_the_plain_forward(architecture: str, tail: int) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    expected = forward(network, batch)
    for layer in network.layers:
        trunk = capture_answers(network, batch, layer, tail)
        longest = int((batch.inputs["attention_mask"].sum(1) - batch.answer_starts).max())
        assert trunk.prompts and trunk.batch.targets.shape[1] <= longest + tail - 1, "only the end is left"
        assert_same(resume(network, trunk), expected, layer.path)
        assert_same(resume(network, trunk), expected, f"{layer.path}, again")
        some = torch.tensor([0, 3])
        part = forward(network, batch.rows(some))
        assert_same(resume(network, trunk.rows(some)), part, f"{layer.path}, two rows")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradients_without_prompts_are_those_of_a_plain_forward(architecture: str) -> None:
    """The addition acts on the last two tokens of a prompt and on the answer."""
    network, tail = tiny_network(architecture), 2
    batch, layer = mixed_batch(network), tiny_network(architecture).layers[1]
    found = []
    for trunk in (capture(network, batch, layer), capture_answers(network, batch, layer, tail)):
        value = torch.full((layer.d_out,), 0.1, requires_grad=True)
        first = trunk.batch.answer_starts - tail + 1
        acts = torch.arange(trunk.batch.targets.shape[1]) >= first[:, None]

        def add(x: Tensor, value: Tensor = value, acts: Tensor = acts) -> Tensor:
            return (acts[..., None] * value).reshape(*x.shape[:-1], -1)

        with adding(network.module(layer.path), add):
            answers = resume(network, trunk)
        (gradient,) = torch.autograd.grad(answers.logits.square().sum(), value)
        found.append((answers.logits.detach(), gradient))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_models_without_a_prompt_cache_keep_the_whole_trunk(architecture: str) -> None:
    network = tiny_network(architecture)
    batch, layer = mixed_batch(network), network.layers[-1]
    trunk = capture_answers(network, batch, layer, 2)
    assert trunk.prompts is None and trunk.batch is batch


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_what_enters_a_block_is_what_the_plain_forward_gives_it(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    for layer in network.layers:
        given: list[Tensor] = []

        def keep(_: Any, args: Any, kwargs: Any, given: list[Tensor] = given) -> None:
            given.append(args[0] if args else kwargs["hidden_states"])

        block = network.module(f"{layer.stack}.{layer.block}")
        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        forward(network, batch)
        handle.remove()
        found = entering(network, capture(network, batch, layer))
        torch.testing.assert_close(found, given[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_resuming_equals_the_plain_forward_at_every_block(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    expected = forward(network, batch)
    for layer in network.layers:
        assert_same(resume(network, capture(network, batch, layer)), expected, layer.path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_rows_of_a_trunk_are_rows_of_the_forward(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    for layer in network.layers:
        trunk = capture(network, batch, layer)
        for rows in ([3], [2, 0], [1, 1, 3, 2, 0]):
            index = torch.tensor(rows)
            assert_same(resume(network, trunk.rows(index)), forward(network, batch.rows(index)), layer.path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_rows_of_a_trunk_of_one_sample(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network).rows(torch.tensor([1]))
    twice = torch.tensor([0, 0])
    for layer in network.layers:
        trunk = capture(network, batch, layer)
        assert_same(resume(network, trunk), forward(network, batch), layer.path)
        assert_same(resume(network, trunk.rows(twice)), forward(network, batch.rows(twice)), layer.path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_delta_at_the_edited_layer_acts_after_resuming(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    base = forward(network, batch).logits
    for layer in network.layers:
        trunk = capture(network, batch, layer)  # without the delta: it is not part of the trunk
        with applied(network.model, [random_delta(layer)]):
            expected = forward(network, batch)
            found = resume(network, trunk)
        assert_same(found, expected, layer.path)
        assert (expected.logits - base).abs().max() > 0.01, layer.path
        assert_same(resume(network, trunk), forward(network, batch), f"{layer.path}, delta gone")


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
@torch.no_grad()
def test_a_delta_of_the_parent_below_is_part_of_the_trunk(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    low, high = network.layers[0], network.layers[-1]
    with applied(network.model, [random_delta(low, seed=1), random_delta(high, seed=2)]):
        assert_same(resume(network, capture(network, batch, high)), forward(network, batch), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_a_delta_are_those_of_the_plain_forward(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    for layer in network.layers:

        def gradient(run: Callable[[], Answers], layer: Layer = layer) -> Tensor:
            update = torch.zeros(layer.d_out, layer.d_in, requires_grad=True)
            with adding(network.module(layer.path), lambda x: x @ update.T):
                answers = run()
            loss = nn.functional.cross_entropy(answers.logits, answers.targets)
            return torch.autograd.grad(loss, update)[0]

        trunk = capture(network, batch, layer)
        found, expected = (
            gradient(lambda t=trunk: resume(network, t)),
            gradient(lambda: forward(network, batch)),
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_each_block_runs_only_once(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    for layer in network.layers:
        captured: list[str] = []
        resumed: list[str] = []
        stop = counting(network, captured)
        trunk = capture(network, batch, layer)
        stop()
        stop = counting(network, resumed)
        resume(network, trunk)
        stop()
        below = [f"{layer.stack}.{block}" for block in range(layer.block)]
        assert [path for path in captured if path.startswith(layer.stack)] == below
        assert not set(captured) & set(resumed)
        assert f"{layer.stack}.{layer.block}" in resumed


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "gpt2"])
@torch.no_grad()
def test_a_trunk_knows_its_size_in_bytes_and_has_no_graph(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    first, last = (capture(network, batch, layer) for layer in (network.layers[0], network.layers[-1]))
    assert first.state is None
    assert first.num_bytes == 0
    hidden = last.state[0] if isinstance(last.state, tuple) else last.state
    assert not hidden.requires_grad
    assert last.num_bytes >= hidden.nbytes
    assert (last.encoder_state is not None) == network.model.config.is_encoder_decoder


def tree(model: nn.Module) -> dict[str, Any]:
    """Every module by path and identity, with the number of its hooks."""
    return {
        path: (id(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    }


class Broken(Exception):
    pass


def break_down(*_: Any) -> None:
    raise Broken


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_module_tree_is_restored_even_if_a_forward_fails(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = mixed_batch(network)
    expected = forward(network, batch)
    before = tree(network.model)
    layer = network.layers[-1]
    trunk = capture(network, batch, layer)
    resume(network, trunk)
    assert tree(network.model) == before
    for path, run in (
        (layer.path, lambda: resume(network, trunk)),
        (network.layers[0].path, lambda: capture(network, batch, layer)),
    ):
        handle = network.module(path).register_forward_pre_hook(break_down)
        with pytest.raises(Broken):
            run()
        handle.remove()
        assert tree(network.model) == before
    assert_same(forward(network, batch), expected, "after failures")
