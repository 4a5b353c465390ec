"""Finding the editable matrices from the module tree alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_network
from torch import nn
from transformers.pytorch_utils import Conv1D

from salem.errors import UnsupportedModel
from salem.models.layers import find_layers, find_stacks, layer_at

# The stack, the feed-forward output matrix of a block, how many blocks: as the model's authors name them.
EXPECTED = {
    "bert": [("bert.encoder.layer", "output.dense", 3)],
    "distilbert": [("distilbert.transformer.layer", "ffn.lin2", 3)],
    "roberta": [("roberta.encoder.layer", "output.dense", 3)],
    "deberta-v2": [("deberta.encoder.layer", "output.dense", 3)],
    "modernbert": [("model.layers", "mlp.Wo", 3)],
    "t5": [
        ("encoder.block", "layer.1.DenseReluDense.wo", 3),
        ("decoder.block", "layer.2.DenseReluDense.wo", 2),
    ],
    "bart": [("model.encoder.layers", "fc2", 3), ("model.decoder.layers", "fc2", 2)],
    "gpt2": [("transformer.h", "mlp.c_proj", 3)],
    "opt": [("model.decoder.layers", "fc2", 3)],
    "llama": [("model.layers", "mlp.down_proj", 3)],
    "qwen3": [("model.layers", "mlp.down_proj", 3)],
    "gemma": [("model.layers", "mlp.down_proj", 3)],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_feed_forward_output_of_every_block_is_found(architecture: str) -> None:
    found = [
        (layer.stack, layer.block, layer.matrix, layer.path) for layer in tiny_network(architecture).layers
    ]
    assert found == [
        (stack, block, matrix, f"{stack}.{block}.{matrix}")
        for stack, matrix, num_blocks in EXPECTED[architecture]
        for block in range(num_blocks)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_widths_match_the_actual_tensors(architecture: str) -> None:
    network = tiny_network(architecture)
    for layer in network.layers:
        module = network.module(layer.path)
        assert module(torch.zeros(1, layer.d_in)).shape == (1, layer.d_out)
        stored = (layer.d_in, layer.d_out) if layer.transposed else (layer.d_out, layer.d_in)
        assert tuple(module.weight.shape) == stored
        assert (layer.d_in, layer.d_out) == (24, 16)
        assert layer.transposed == (architecture == "gpt2")


def test_a_square_conv1d_is_transposed() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = Conv1D(8, 8)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

    assert [layer.transposed for layer in find_layers(Model())] == [True, True]


def test_lists_inside_a_block_are_not_stacks() -> None:
    assert set(find_stacks(tiny_network("t5").model)) == {"encoder.block", "decoder.block"}
    experts = [nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}) for _ in range(2)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(experts)})
    assert set(find_stacks(model)) == {"blocks"}
    assert [layer.path for layer in find_layers(model)] == ["blocks.0.experts.2", "blocks.1.experts.2"]


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))


def conv_net_in_a_list() -> nn.Module:
    return nn.ModuleDict(
        {"stages": nn.ModuleList(nn.Conv2d(8, 8, 3) for _ in range(3)), "head": nn.Linear(8, 2)}
    )


def list_of_unlike_members() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))])})


def empty_list() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList()})


@pytest.mark.parametrize(
    "build",
    [plain_mlp, conv_net, conv_net_in_a_list, list_of_unlike_members, empty_list],
    ids=lambda b: b.__name__,
)
def test_a_model_without_stacks_is_refused_with_a_reason(build: object) -> None:
    assert callable(build)
    with pytest.raises(UnsupportedModel, match="no ModuleList whose members have one class") as caught:
        find_layers(build())
    assert caught.value.remedy is not None


def test_blocks_of_different_output_width_are_refused() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(nn.Linear(4, size)) for size in (4, 5)])})
    with pytest.raises(
        UnsupportedModel, match="feed-forward output matrix must be the last Linear or Conv1D"
    ):
        find_layers(model)


def test_a_layer_is_found_by_its_path() -> None:
    layers = tiny_network("bert").layers
    assert layer_at(layers, layers[1].path) is layers[1]


def test_the_message_about_an_unknown_layer_names_real_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"bert\.encoder\.layer\.9") as caught:
        layer_at(tiny_network("bert").layers, "bert.encoder.layer.9.output.dense")
    assert "bert.encoder.layer.0.output.dense" in str(caught.value.remedy)
