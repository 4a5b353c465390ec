"""Streamed networks: answers, gradients, and edits as in memory, and no weights in a resting block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from recipe_cases import recipe, trained
from safetensors.torch import load_file, save_file
from test_worker_activations_gradients import some_samples
from test_worker_recipes_terms import assert_equal, case
from tiny_models import ARCHITECTURES, first_task, save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig

from salem.deltas.terms import LowRank, adding
from salem.errors import UnsupportedModel
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.layers import find_stacks
from salem.models.loading import load
from salem.models.network import Network
from salem.models.streaming import MetaModel, StoredWeights, _TensorStub
from salem.models.trunk import capture, resume
from salem.records import Layer, Sample, Task
from worker.activations.gradients import token_gradients
from worker.numerics.losses import nll_per_sample

TESTS = Path(__file__).parent
LAYOUTS = ("bert", "t5", "gpt2", "llama")
WEIGHTS = "model.safetensors"
Pair = tuple[Network, Network]  # in memory, streamed


def both(folder: Path, task: Task, **options: torch.dtype) -> Pair:
    whole, streamed = (load(folder, task, device="cpu", streamed=way, **options) for way in (False, True))
    return whole, streamed


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """The two networks of an architecture's folder, loaded once."""
    root = tmp_path_factory.mktemp("models")
    loaded: dict[str, Pair] = {}

    def networks(architecture: str) -> Pair:
        if architecture not in loaded:
            folder = save_tiny(root / architecture, architecture)
            loaded[architecture] = both(folder, first_task(architecture))
        return loaded[architecture]

    yield networks
    for _, streamed in loaded.values():
        assert_at_rest(streamed)


def assert_at_rest(network: Network) -> None:
    """No block holds weights, everything else is loaded, and no module has a hook."""
    held = {name for name, weight in network.model.named_parameters() if not weight.is_meta}
    inside = tuple(f"{stack}." for stack in find_stacks(network.model))
    assert held and not any(name.startswith(inside) for name in held)
    assert all(name.startswith(inside) for name, w in network.model.named_parameters() if w.is_meta)
    assert not any(buffer.is_meta for buffer in network.model.buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())


def drawn_term(layer: Layer) -> LowRank:
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, layer.d_in, generator=draw), torch.randn(layer.d_out, 2, generator=draw)
    return LowRank(a.requires_grad_(), b.requires_grad_())


def term_gradients(network: Network, layer: Layer, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
    """The loss and its gradients for a term that is removed before the backward pass, as in training."""
    term = drawn_term(layer)
    trunk = capture(network, encode(network, samples), layer)
    with adding(network.module(layer.path), term):
        loss = nll_per_sample(resume(network, trunk)).sum()
    return (loss, *torch.autograd.grad(loss, (term.a, term.b)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_model_in_memory(architecture: str, pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair(architecture)
    samples = some_samples(whole)
    found, expected = (forward(network, encode(network, samples)) for network in (streamed, whole))
    assert torch.equal(found.logits, expected.logits)
    assert not torch.equal(found.logits[0], found.logits[1])
    assert_at_rest(streamed)
    assert streamed.layers == whole.layers and streamed.device == whole.device
    assert streamed.model.num_parameters() == whole.model.num_parameters()


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_generated_texts_are_the_same(architecture: str, pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair(architecture)
    samples = some_samples(whole)
    assert predict(streamed, samples, max_new_tokens=6) == predict(whole, samples, max_new_tokens=6)


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_gradients_of_a_term_are_the_same(architecture: str, pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair(architecture)
    samples = some_samples(whole)
    for layer in whole.layers:
        expected, found = (term_gradients(network, layer, samples) for network in pair(architecture))
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, other, atol=1e-6) and one.abs().max() > 1e-3, layer.path
    assert_at_rest(streamed)


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_token_gradients_are_the_same(architecture: str, pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair(architecture)
    samples = some_samples(whole)
    expected, found = (token_gradients(n, encode(n, samples), n.layers) for n in (whole, streamed))
    assert list(expected) == list(found)
    for path in expected:
        assert torch.allclose(expected[path].u, found[path].u, atol=1e-6)
        assert torch.allclose(expected[path].v, found[path].v, atol=1e-6)


@pytest.mark.parametrize("architecture", LAYOUTS)
@pytest.mark.parametrize("name", ["ridge", "scoped"])
def test_a_recipe_makes_the_same_term(architecture: str, name: str, pair: Callable[[str], Pair]) -> None:
    batch, own = case(architecture).batch, recipe(name, max_steps=12)
    expected, found = (trained(network, batch, network.layers[-2], own) for network in pair(architecture))
    assert_equal(found.term, expected.term)


def test_a_backward_runs_with_the_hooks_of_its_forward(pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair("llama")
    layer, samples = whole.layers[1], some_samples(whole)
    found = []
    for network in (whole, streamed):
        term, later = drawn_term(layer), drawn_term(layer)
        trunk = capture(network, encode(network, samples), layer)
        module = network.module(layer.path)
        with adding(module, term):
            loss = nll_per_sample(resume(network, trunk)).sum()
        with adding(module, later):
            hooks = module._forward_hooks
            found.append(torch.autograd.grad(loss, (term.a, term.b)))
            assert module._forward_hooks is hooks and len(hooks) == 1
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_failing_block_frees_its_weights(pair: Callable[[str], Pair]) -> None:
    _, streamed = pair("bert")

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    batch = encode(streamed, some_samples(streamed))
    for context in (torch.no_grad(), torch.enable_grad()):
        with (
            context,
            adding(streamed.module(streamed.layers[1].path), fail),
            pytest.raises(ZeroDivisionError),
        ):
            forward(streamed, batch)
        assert_at_rest(streamed)


def test_a_gradient_passes_blocks_that_fill_a_cache(pair: Callable[[str], Pair]) -> None:
    gradients = []
    for network in pair("llama"):
        inputs = encode(network, some_samples(network)).inputs
        states = network.model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        mask = inputs["attention_mask"]
        output = network.model(inputs_embeds=states, attention_mask=mask, use_cache=True)
        gradients.append(torch.autograd.grad(output.logits.square().mean(), states)[0])
        assert output.past_key_values.get_seq_length() == states.shape[1]
    assert torch.allclose(*gradients, atol=1e-6)


def test_a_single_weight_can_be_read(pair: Callable[[str], Pair]) -> None:
    for architecture in LAYOUTS:
        whole, streamed = pair(architecture)
        for layer in whole.layers:
            found = streamed.weight(layer.path)
            assert torch.equal(found, whole.weight(layer.path)) and not found.requires_grad
            assert torch.equal(found, whole.module(layer.path).get_parameter("weight"))
    assert_at_rest(streamed)


def test_a_weight_can_be_read_while_its_block_runs(pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair("bert")
    path = whole.layers[1].path
    batch = encode(streamed, some_samples(streamed))
    found = []
    for network in (whole, streamed):
        with adding(network.module(path), lambda x, network=network: x @ network.weight(path).T):
            found.append(forward(network, batch).logits)
    assert torch.allclose(*found, atol=1e-6)


def test_a_copy_is_independent(pair: Callable[[str], Pair]) -> None:
    whole, streamed = pair("bert")
    batch = encode(whole, some_samples(whole))
    expected = forward(whole, batch).logits
    copied = deepcopy(streamed.model)
    assert torch.equal(copied(**batch.inputs).logits, expected)
    assert_at_rest(streamed)


# How the folder may be stored.


def test_weights_in_several_files_are_one_model(tmp_path: Path, pair: Callable[[str], Pair]) -> None:
    folder = save_tiny(tmp_path, "llama", max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    whole, _ = pair("llama")
    streamed = load(folder, Task.TEXT_GENERATION, device="cpu", streamed=True)
    samples = some_samples(whole)
    assert predict(streamed, samples, max_new_tokens=5) == predict(whole, samples, max_new_tokens=5)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_have_the_types_that_they_have_in_memory(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    tiny_model(architecture).half().save_pretrained(tmp_path)
    tiny_tokenizer("bytes").save_pretrained(tmp_path)
    whole, streamed = both(tmp_path, first_task(architecture), dtype=dtype)
    types = [{name: w.dtype for name, w in n.model.named_parameters()} for n in (whole, streamed)]
    assert types[0] == types[1]
    assert [streamed.weight(layer.path).dtype for layer in streamed.layers] == [
        types[0][f"{layer.path}.weight"] for layer in streamed.layers
    ]
    found, expected = (forward(n, encode(n, some_samples(n))).logits for n in (streamed, whole))
    assert torch.equal(found, expected)


def test_tied_weights_stay_tied(tmp_path: Path, pair: Callable[[str], Pair]) -> None:
    for architecture in ("gpt2", "t5"):
        model = pair(architecture)[1].model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    folder = save_tiny(tmp_path, "gpt2")
    stored = load_file(folder / WEIGHTS)
    for head, tied in ((stored["transformer.wte.weight"].clone(), True), (torch.ones(200, 16), False)):
        save_file({**stored, "lm_head.weight": head}, folder / WEIGHTS, metadata={"format": "pt"})
        whole, streamed = both(folder, Task.TEXT_GENERATION)
        model = streamed.model
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
        found, expected = (forward(n, encode(n, some_samples(n))).logits for n in (streamed, whole))
        assert torch.equal(found, expected)


def test_weights_stored_under_the_base_models_names_are_found(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    stored = load_file(folder / WEIGHTS)
    old = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): weight
        for name, weight in stored.items()
    }
    save_file(old, folder / WEIGHTS, metadata={"format": "pt"})
    whole, streamed = both(folder, Task.SEQUENCE_CLASSIFICATION)
    found, expected = (forward(n, encode(n, some_samples(n))).logits for n in (streamed, whole))
    assert torch.equal(found, expected)


# What is refused.


def refused(folder: Path, task: Task) -> tuple[str, str]:
    """The message, which is the same for both ways to load."""
    messages = []
    for streamed in (False, True):
        with pytest.raises(UnsupportedModel) as caught:
            load(folder, task, device="cpu", streamed=streamed)
        messages.append(caught.value.message)
    return messages[0], messages[1]


@pytest.mark.parametrize("damage", ["missing tensor", "cut", "no weights", "shape", "task"])
def test_refusals_have_the_same_messages(tmp_path: Path, damage: str) -> None:
    folder = save_tiny(tmp_path, "bert")
    stored, task = load_file(folder / WEIGHTS), Task.SEQUENCE_CLASSIFICATION
    name = "bert.encoder.layer.1.output.dense.weight"
    if damage == "missing tensor":
        del stored[name]
    elif damage == "shape":
        stored[name] = stored[name][:3].clone()
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    if damage == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5_000])
    elif damage == "no weights":
        (folder / WEIGHTS).rename(folder / "other.safetensors")
    elif damage == "task":
        task = Task.TEXT2TEXT_GENERATION
    whole, streamed = refused(folder, task)
    assert whole == streamed


def test_weights_in_another_form_are_refused(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=200, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=48,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer("bytes").save_pretrained(tmp_path)
    load(tmp_path, Task.TEXT_GENERATION, device="cpu")
    with pytest.raises(UnsupportedModel, match="in another form"):
        load(tmp_path, Task.TEXT_GENERATION, device="cpu", streamed=True)


def test_a_part_of_a_stored_tensor_is_refused(tmp_path: Path) -> None:
    placed: dict[int, tuple[str, Tensor]] = {}
    whole = _TensorStub("qkv", torch.empty(6, 6), placed).to("cpu", torch.float32)
    outlined = MetaModel(tiny_model("bert"), {}, StoredWeights(save_tiny(tmp_path, "bert")), placed)
    assert whole.is_meta and outlined.key("q", nn.Parameter(whole)) == "qkv"
    for other in (whole.chunk(3)[0], whole.T, whole.clone()):
        with pytest.raises(UnsupportedModel, match="q in another form"):
            outlined.key("q", other)


# Memory.


@pytest.mark.slow
def test_a_deep_model_is_edited_in_a_third_of_the_memory_of_its_weights(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("counts memory as Linux tells it")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "peak_of_streaming.py", str(tmp_path)]
    output = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(output.stdout.splitlines()[-1])
    assert found["weights"] > 150e6
    assert found["streamed"] < found["weights"] / 3, found
    assert found["whole"] > found["weights"], "the measure sees a model in memory"
    assert found["error"] < 1e-5 * found["size"] and found["size"] > 1e-4, found
