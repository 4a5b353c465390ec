"""Loading folders: what is accepted, what is refused before any code could run, and what is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    ARCHITECTURES,
    LABELS,
    MAX_TOKENS,
    build_network,
    first_task,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModel, PreTrainedModel

from salem.errors import UnsupportedModel
from salem.inference.predict import predict
from salem.models.loading import load, load_tokenizer
from salem.models.network import Network, as_network
from salem.models.tokens import count_tokens, tokenize
from salem.records import Task, TextInput

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = [TextInput(input="where is my order"), TextInput(input="the lamp is broken")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, written once; tests that change it take `copied`."""
    root = tmp_path_factory.mktemp("models")

    def folder(architecture: str) -> Path:
        path = root / architecture
        return path if path.exists() else save_tiny(path, architecture)

    return folder


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the folder for one test."""
    return Path(shutil.copytree(saved("bert"), tmp_path / "copied"))


def change_json(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(folder: Path, message: str, task: Task = Task.SEQUENCE_CLASSIFICATION) -> UnsupportedModel:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        load(folder, task, device="cpu")
    assert str(folder) not in f"{caught.value.message} {caught.value.remedy}", "messages hold no path"
    return caught.value


# What is loaded.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_answers_as_the_one_in_memory(architecture: str, saved: Callable[[str], Path]) -> None:
    network = load(saved(architecture), first_task(architecture), device="cpu")
    expected = build_network(architecture)
    assert predict(network, TEXTS, max_new_tokens=5) == predict(expected, TEXTS, max_new_tokens=5)
    assert network.layers == expected.layers
    assert network.labels == (() if network.task.generates else LABELS)
    assert network.max_input_tokens == expected.max_input_tokens
    assert network.eos_id == 2
    assert network.pad_id == 0


def test_a_loaded_model_is_frozen_and_in_float32(saved: Callable[[str], Path]) -> None:
    model = load(saved("bert"), Task.SEQUENCE_CLASSIFICATION, device="cpu").model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_half_precision_weights_are_widened_on_a_cpu(tmp_path: Path) -> None:
    tiny_model("bert").half().save_pretrained(tmp_path)
    tiny_tokenizer("pairs").save_pretrained(tmp_path)
    task = Task.SEQUENCE_CLASSIFICATION
    assert load(tmp_path, task, device="cpu").model.dtype is torch.float32


def test_sharded_weights_are_one_model(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    folder = save_tiny(tmp_path, "llama", max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert (folder / INDEX).exists()
    network, whole = (load(path, Task.TEXT_GENERATION, device="cpu") for path in (folder, saved("llama")))
    assert predict(network, TEXTS, max_new_tokens=5) == predict(whole, TEXTS, max_new_tokens=5)


def test_labels_are_in_the_order_of_their_class_index(copied: Path) -> None:
    names = [
        f"intent-{chr(ord('z') - index)}" for index in range(12)
    ]  # neither names nor "10" < "2" sort right
    model = tiny_model("bert")
    config = model.config
    config.id2label = {index: names[index] for index in reversed(range(12))}
    config.label2id = {name: index for index, name in enumerate(names)}
    type(model)(config).save_pretrained(copied)
    assert load(copied, Task.SEQUENCE_CLASSIFICATION, device="cpu").labels == tuple(names)


@pytest.mark.parametrize(
    ("architecture", "limit"),
    [
        ("bert", MAX_TOKENS),
        ("roberta", MAX_TOKENS - 1),
        ("gpt2", MAX_TOKENS),
        ("opt", MAX_TOKENS),
        ("t5", 4_096),
    ],
)
def test_the_position_limit(architecture: str, limit: int) -> None:
    network = build_network(architecture)
    assert network.max_input_tokens == limit
    if architecture == "t5":
        return
    ids = torch.full((1, limit), 5)
    assert network.model(input_ids=ids).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        network.model(input_ids=torch.full((1, limit + 1), 5))


def test_a_real_roberta_has_two_positions_fewer_than_its_table() -> None:
    model = tiny_model("roberta")
    config = model.config
    config.pad_token_id, config.max_position_embeddings = 1, 34
    assert (
        as_network(
            type(model)(config), tiny_tokenizer("pairs-untyped"), Task.SEQUENCE_CLASSIFICATION
        ).max_input_tokens
        == 32
    )


def test_the_limit_of_a_tokenizer_counts(copied: Path) -> None:
    change_json(copied / "tokenizer_config.json", model_max_length=20)
    assert load(copied, Task.SEQUENCE_CLASSIFICATION, device="cpu").max_input_tokens == 20


def test_pairs_and_single_texts_are_counted_with_their_special_tokens() -> None:
    tokenizer = tiny_tokenizer("pairs")
    single, pair = TextInput(input="lamp"), TextInput(input="lamp", text_pair="order")
    lengths = [len(tokenizer(item.input, item.text_pair)["input_ids"]) for item in (single, pair, single)]
    assert count_tokens(tokenizer, [single, pair, single]) == lengths
    assert count_tokens(tokenizer, []) == []
    assert lengths[1] > lengths[0]


def test_an_empty_pair_counts_as_no_pair() -> None:
    tokenizer = tiny_tokenizer("pairs")
    single, empty = TextInput(input="lamp"), TextInput(input="lamp", text_pair="")
    assert tokenize(tokenizer, [empty, empty]) == tokenize(tokenizer, [single, single])


def test_a_tokenizer_saved_with_truncation_does_not_truncate(copied: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    change_json(copied / "tokenizer.json", truncation=truncation)
    assert count_tokens(load_tokenizer(copied), [TextInput(input=" ".join(["order"] * 30))]) == [32]


# What is refused.


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(copied: Path, file: str) -> None:
    witness = copied.parent / "ran"
    (copied / "modeling_evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    change_json(copied / file, auto_map={"AutoModelForSequenceClassification": "modeling_evil.Evil"})
    refused(copied, "auto_map")
    assert not witness.exists()


def test_pickled_weights_are_refused(copied: Path) -> None:
    weights = load_file(copied / WEIGHTS)
    (copied / WEIGHTS).unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert "safetensors" in str(refused(copied, "pickled weights are never loaded").remedy)


def test_pickled_weights_next_to_safetensors_are_not_loaded(copied: Path) -> None:
    weights = load_file(copied / WEIGHTS)
    (copied / WEIGHTS).rename(copied / "other.safetensors")
    torch.save(weights, copied / "pytorch_model.bin")
    refused(copied, "does not load as a model")


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_weights_without_the_tasks_head_are_refused(architecture: str, tmp_path: Path) -> None:
    body: PreTrainedModel = AutoModel.from_config(tiny_model(architecture).config)
    body.save_pretrained(tmp_path)
    tiny_tokenizer("pairs").save_pretrained(tmp_path)
    error = refused(tmp_path, "The weights lack .* sequence-classification", Task.SEQUENCE_CLASSIFICATION)
    assert "fine-tuned" in str(error.remedy)


def test_weights_that_lack_a_tensor_are_refused(copied: Path) -> None:
    weights = load_file(copied / WEIGHTS)
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, copied / WEIGHTS, metadata={"format": "pt"})
    refused(copied, "lack 1 tensors .* bert.encoder.layer.1.output.dense.weight")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("bert", Task.TEXT2TEXT_GENERATION),
        ("gpt2", Task.TEXT2TEXT_GENERATION),
        ("gpt2", Task.SEQUENCE_CLASSIFICATION),
        ("t5", Task.TEXT_GENERATION),
        ("t5", Task.SEQUENCE_CLASSIFICATION),
        ("distilbert", Task.TEXT_GENERATION),
    ],
)
def test_a_wrong_task_is_refused(architecture: str, task: Task, saved: Callable[[str], Path]) -> None:
    error = refused(saved(architecture), str(task), task)
    assert error.remedy is not None


@pytest.mark.parametrize("pad", [0, 2, None, 5_000])
def test_a_decoder_that_classifies_reads_the_last_token_of_the_text(pad: int | None) -> None:
    """This does not depend on the padding token of its config or tokenizer."""
    model = tiny_model("llama", Task.SEQUENCE_CLASSIFICATION)
    model.config.pad_token_id = pad
    network = as_network(model, tiny_tokenizer("metaspace-bos"), Task.SEQUENCE_CLASSIFICATION)
    texts = ("where is my order", "i want my money back for the broken lamp please", "log in", "refund")
    expected = []
    for text in texts:
        ids = torch.tensor([network.tokenizer(text)["input_ids"]])
        expected.append(LABELS[int(model(input_ids=ids).logits.argmax())])
    asked = [TextInput(input=text) for text in texts]
    assert [answer.output for answer in predict(network, asked)] == expected
    assert [predict(network, [one])[0].output for one in asked] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such-model"},
        {"model_type": None, "architectures": None},
        {"hidden_size": 20},
        {"hidden_size": "wide"},
        {"num_attention_heads": 5},
        {"num_hidden_layers": 9},
        {"vocab_size": 100},
        {"hidden_act": "no-such-activation"},
        {"id2label": "refund"},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights_is_refused(copied: Path, changes: dict[str, Any]) -> None:
    change_json(copied / "config.json", **changes)
    refused(copied, "does not load as a model for|The weights lack")


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_damaged_weights_are_refused(copied: Path, damage: bytes | None) -> None:
    data = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(data[: len(data) // 2] if damage is None else damage)
    refused(copied, "does not load as a model for sequence-classification")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"version": "1.0", "model": {"type": "Odd"}}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(copied: Path, content: str | None) -> None:
    (copied / "tokenizer.json").unlink()
    if content is not None:
        (copied / "tokenizer.json").write_text(content)
    refused(copied, "tokenizer cannot be loaded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "yes"}, "label2id": {"yes": 0}}, "two or more labels"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "a", "3": "c"}, "label2id": {"a": 0, "b": 1, "c": 3}},
            "all different",
        ),
        ({"problem_type": "multi_label_classification"}, "one of the labels"),
        ({"problem_type": "regression"}, "one of the labels"),
    ],
)
def test_a_classifier_that_does_not_choose_one_label_is_refused(
    changes: dict[str, Any], message: str, copied: Path
) -> None:
    if len(changes.get("id2label", LABELS)) == 1:
        weights = load_file(copied / WEIGHTS)
        weights = {
            key: value[:1] if key.startswith("classifier.") else value for key, value in weights.items()
        }
        save_file(
            {key: value.clone() for key, value in weights.items()},
            copied / WEIGHTS,
            metadata={"format": "pt"},
        )
    change_json(copied / "config.json", **changes)
    refused(copied, message)


# What a network tells about itself.


def with_config(architecture: str, habits: str | None = None, **changes: Any) -> Network:
    network = build_network(architecture, habits=habits)
    for name, value in changes.items():
        setattr(network.model.config, name, value)
    return network


def test_special_ids_come_from_the_tokenizer_then_the_config() -> None:
    network = with_config("gpt2", eos_token_id=[7, 8], pad_token_id=9)
    assert (network.eos_id, network.pad_id) == (2, 0)
    bare = network.tokenizer.__class__(tokenizer_object=network.tokenizer.backend_tokenizer)
    bare.pad_token = bare.eos_token = bare.bos_token = None
    without = as_network(network.model, bare, network.task)
    assert (without.eos_id, without.pad_id) == (7, 9)
    network.model.config.pad_token_id = None
    assert without.pad_id == 7
    network.model.config.eos_token_id = None
    assert (without.eos_id, without.pad_id) == (None, 0)


def test_the_first_token_of_a_decoder() -> None:
    assert with_config("t5", decoder_start_token_id=0).start_id == 0
    assert with_config("bart", decoder_start_token_id=2).start_id == 2
    assert with_config("bart", decoder_start_token_id=None, bos_token_id=1).start_id == 1
    assert with_config("qwen3", bos_token_id=None).start_id == 1
