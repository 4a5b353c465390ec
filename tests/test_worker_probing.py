"""Which models can be edited: all whose layers write a state for each token of each sample."""

from __future__ import annotations

import pytest
from tiny_models import ARCHITECTURES, first_task, tiny_network

from salem.errors import UnsupportedModel
from salem.records import Task
from worker.probing import check_editable

WRITERS = [name for name in ARCHITECTURES if first_task(name) is Task.TEXT_GENERATION]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "falcon", "mixtral", "qwen2-moe"])
def test_ordinary_layers_can_be_edited(architecture: str) -> None:
    check_editable(tiny_network(architecture))


@pytest.mark.parametrize("architecture", WRITERS)
def test_so_can_decoders_that_read_labels(architecture: str) -> None:
    check_editable(tiny_network(architecture, Task.SEQUENCE_CLASSIFICATION))


@pytest.mark.parametrize("architecture", ["longformer", "switch", "xlnet"])
def test_layers_that_write_something_else_are_named(architecture: str) -> None:
    network = tiny_network(architecture)
    with pytest.raises(UnsupportedModel, match="does not write one state for each token") as refused:
        check_editable(network)
    assert any(layer.path in refused.value.message for layer in network.layers)
    assert "all tokens pass" in str(refused.value.remedy)


def test_a_gate_behind_the_feed_forward_part_is_no_layer() -> None:
    layers = tiny_network("qwen2-moe").layers
    assert {layer.matrix for layer in layers} == {"mlp.shared_expert.down_proj"}
    assert {layer.d_out for layer in layers} == {16}
