"""The baselines' arithmetic against slow, dense references and against the libraries that they use."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from baseline_cases import CORPUS_TEXTS, assert_untouched, contents, editing_of, kept, wrong_for
from tiny_models import build_network, tiny_network
from torch import Tensor

from benchmarks.baselines.alphaedit import free_projection, null_space_update
from benchmarks.baselines.codebook import Codebook, empty_codebook
from benchmarks.baselines.enn import EditableLayer, outer_loss
from benchmarks.baselines.grace import NetworkWithCodebook
from benchmarks.baselines.hidden_values import KeyValues
from benchmarks.baselines.lora import ADAPTER, lora_adapters
from benchmarks.baselines.malmen import RidgeLearner
from benchmarks.baselines.mend_ahead import one_pass
from benchmarks.baselines.prompt_tokens import key_states
from benchmarks.baselines.ridge import ridge_update
from benchmarks.baselines.temporary_weights import replaced_weights, trainable_copies
from benchmarks.baselines.ultraedit import merged_statistics
from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.models.trunk import capture
from salem.records import Sample, TextInput
from worker.hypernetworks.mend import Factors, MendEditor
from worker.hypernetworks.meta_training import GroupedUpdate, grouped_updates, meta_batches


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(network: Network, samples: Sequence[Sample]) -> Tensor:
    with torch.no_grad():
        return forward(network, encode(network, samples)).logits


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
def test_extracted_adapters_answer_like_peft(architecture: str) -> None:
    network, samples = build_network(architecture), kept(architecture)
    before, modules = contents(network), [id(module) for module in network.model.modules()]
    plain = logits(network, samples)
    with lora_adapters(network, torch.Generator().manual_seed(0)) as adapters:
        assert torch.equal(logits(network, samples), plain)  # B starts at zero
        for index, module in enumerate(adapters.modules.values()):
            weight = module.lora_B[ADAPTER].weight
            weight.data.copy_(0.1 * drawn(*weight.shape, seed=index))
        by_peft, deltas = logits(network, samples), adapters.state()
        merged = {
            path + ".weight": module.get_base_layer().weight + module.get_delta_weight(ADAPTER)
            for path, module in adapters.modules.items()
        }
    assert_untouched(network, before)
    assert [id(module) for module in network.model.modules()] == modules
    assert (by_peft - plain).abs().max() > 0.1
    with NetworkWithDeltas(network, deltas).answering(samples):
        assert torch.allclose(logits(network, samples), by_peft, atol=1e-4)
    with replaced_weights(network.model, {name: value.detach() for name, value in merged.items()}):
        assert torch.allclose(logits(network, samples), by_peft, atol=1e-4)


def test_trainable_copies_leave_the_weights_bit_identical() -> None:
    network = build_network("gpt2")
    before = contents(network)
    names = [name for name, _ in network.model.named_parameters()]
    with pytest.raises(RuntimeError, match="stop"), trainable_copies(network.model, names) as weights:
        assert set(weights) == set(names)
        for weight in weights.values():
            weight.data.mul_(1.1)
        raise RuntimeError("stop")
    assert_untouched(network, before)


@pytest.mark.parametrize("num_rows", [3, 40])
def test_the_ridge_solve_fits_the_normal_equations(num_rows: int) -> None:
    u, shifts = drawn(num_rows, 12), drawn(num_rows, 5, seed=1)
    rows, targets = u.double(), shifts.double()
    added = 0.1 * rows.square().sum(-1).mean() * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.inv(rows.T @ rows + added) @ rows.T @ targets
    assert torch.allclose(ridge_update(u, shifts, 0.1), expected.T.float(), atol=1e-5)


def test_one_edit_without_a_penalty_moves_the_output_by_its_shift() -> None:
    u, shifts = drawn(1, 12), drawn(1, 5, seed=1)
    assert torch.allclose(u @ ridge_update(u, shifts, 1e-9).T, shifts, atol=1e-5)
    editor = MendEditor(12, 5, 4, torch.Generator().manual_seed(0))
    learner = RidgeLearner(editor, Factors(u, shifts), 1e-9)
    gradient_step = -shifts * u.square().sum()  # an untrained editor takes a gradient step of size one
    assert torch.allclose(learner.wanted_shifts(), gradient_step, atol=1e-4)
    assert torch.allclose(learner.term()(u), gradient_step, atol=1e-4)


def test_lifelong_statistics_cover_all_rows() -> None:
    rows = drawn(30, 4) * 3 + 2
    known = None
    for part in rows.split([1, 9, 20]):
        known = merged_statistics(known, part)
    assert known is not None and known.count == 30
    assert torch.allclose(known.mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(known.deviation, rows.std(0, correction=0), atol=1e-5)


def test_alphaedit_follows_its_equation_and_leaves_kept_inputs_alone() -> None:
    kept_inputs = drawn(50, 3) @ drawn(3, 10, seed=1)  # they span three of ten directions
    projection = free_projection(kept_inputs.T @ kept_inputs / 50, 1e-6)
    found = KeyValues(keys=drawn(4, 10, seed=2), shifts=drawn(4, 6, seed=3))
    earlier = drawn(2, 10, seed=4)
    update = null_space_update(found, projection, earlier.T @ earlier, 1e-2)
    k1, kp, p, r = found.keys.double().T, earlier.double().T, projection.double(), found.shifts.double().T
    penalty = 1e-2 * k1.square().sum(0).mean() * torch.eye(10, dtype=torch.float64)
    expected = r @ k1.T @ p @ torch.linalg.inv(kp @ kp.T @ p + k1 @ k1.T @ p + penalty)
    assert torch.allclose(update, expected.float(), atol=1e-5)
    assert (kept_inputs @ update.T).abs().max() < 1e-4
    alone = null_space_update(found, projection, torch.zeros(10, 10), 1e-6)
    assert torch.allclose(found.keys @ alone.T, found.shifts, atol=1e-3)


def test_a_codebook_grows_and_splits_as_published() -> None:
    book = empty_codebook(1, torch.device("cpu")).with_edit(torch.tensor([0.0]), "a", 1.0)
    grown = book.with_edit(torch.tensor([1.5]), "a", 1.0)
    assert grown.radii.tolist() == [1.5] and grown.labels == ("a",)
    split = book.with_edit(torch.tensor([1.0]), "b", 1.0)
    assert split.radii.tolist() == pytest.approx([0.5, 0.5], abs=1e-4) and split.labels == ("a", "b")
    apart = book.with_edit(torch.tensor([5.0]), "b", 1.0)
    assert apart.radii.tolist() == [1.0, 1.0]
    points = torch.tensor([[0.2], [5.9], [2.5]])
    assert apart.entries(points).tolist() == [0, 1, -1]
    assert empty_codebook(1, torch.device("cpu")).entries(points).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "llama"])
def test_outside_every_ball_grace_answers_like_the_base_bit_for_bit(architecture: str) -> None:
    network, samples = tiny_network(architecture), kept(architecture)[:6]
    layer = network.layers[1]
    keys, _ = key_states(network, samples[:1], layer)
    book = Codebook(keys, torch.tensor([1e-3]), ("x",))
    edited = NetworkWithCodebook(network, layer, book, 5 * drawn(1, layer.d_out), 1e-3)
    batch, plain = encode(network, samples), logits(network, samples)
    rows = forward(network, batch).sample
    with edited.answering(samples):
        changed = logits(network, samples)
    assert torch.equal(changed[rows > 0], plain[rows > 0])
    assert (changed[rows == 0] - plain[rows == 0]).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2", "llama"])
def test_grace_generates_the_same_alone_and_next_to_longer_prompts(architecture: str) -> None:
    network, layer = tiny_network(architecture), tiny_network(architecture).layers[1]
    inputs = [TextInput(input="who wrote the book in Rome or in Berlin now"), TextInput(input="my lamp")]
    keys, _ = key_states(network, inputs[1:], layer)
    edited = NetworkWithCodebook(
        network, layer, Codebook(keys, torch.tensor([1e-2]), ("x",)), 3 * drawn(1, layer.d_out), 1e-2
    )
    with edited.answering(inputs):
        together = predict(network, inputs, max_new_tokens=6)[1].output
    with edited.answering(inputs[1:]):
        alone = predict(network, inputs[1:], max_new_tokens=6)[0].output
    assert together == alone


def test_each_episode_gets_its_own_update() -> None:
    network = tiny_network("bert")
    corpus, layer = wrong_for(network, CORPUS_TEXTS), network.layers[1]
    batch = meta_batches(network, corpus, [layer], Random(0))[0]
    editor = MendEditor(layer.d_in, layer.d_out, 4, torch.Generator().manual_seed(0))
    update = grouped_updates({layer.path: editor}, batch, 2)[layer.path]
    assert len(update.a) == 2
    x = drawn(6, 5, layer.d_in)  # rows 0 to 2 feel the first episode, the others the second
    gradients = batch.gradients[layer.path]
    for group in range(2):
        u, v = (one[2 * group : 2 * group + 2].flatten(0, 1) for one in (gradients.u, gradients.v))
        expected = x[3 * group : 3 * group + 3] @ (-(v.T @ u)).T
        assert torch.allclose(update(x)[3 * group : 3 * group + 3], expected, atol=1e-4)
    flat = GroupedUpdate(update.a, update.b)(x.flatten(0, 1))
    assert torch.allclose(flat, update(x).flatten(0, 1))


def test_one_pass_sums_the_updates_of_all_edits() -> None:
    editing = editing_of("bert", 1.0)
    network, layer = editing.network, editing.network.layers[1]
    editor = MendEditor(layer.d_in, layer.d_out, 4, torch.Generator().manual_seed(0))
    whole, *_ = one_pass(network, [layer], {layer.path: editor}, editing.batch.edit_samples)
    parts = [one_pass(network, [layer], {layer.path: editor}, [s])[0] for s in editing.batch.edit_samples]
    total = sum((part.terms[0].dense() for part in parts), start=torch.zeros(layer.d_out, layer.d_in))
    assert torch.allclose(whole.terms[0].dense(), total, atol=1e-5)


def test_the_outer_loss_is_differentiated_through_the_inner_steps() -> None:
    editing = editing_of("gpt2", 1.0)
    network, layer = editing.network, editing.network.layers[1]
    editable = EditableLayer(network, layer)
    episode = capture(network, encode(network, editing.batch.edit_samples), layer)
    values = {}
    for step in (-0.02, 0.0, 0.02):
        editable.log_rate.data.fill_(-2.0 + step)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            values[step] = outer_loss(editable, episode, None, 1.0)
    editable.log_rate.grad = None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        editable.log_rate.data.fill_(-2.0)
        outer_loss(editable, episode, None, 1.0).backward()
    slope = (values[0.02] - values[-0.02]).item() / 0.04
    assert editable.log_rate.grad is not None
    assert float(editable.log_rate.grad) == pytest.approx(slope, rel=0.02)
