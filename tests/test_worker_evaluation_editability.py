"""Which models can be edited: those whose layers output one state per token of each sample."""

from __future__ import annotations

import pytest
from tiny_models import ARCHITECTURES, build_network, first_task, tiny_network

from salem.errors import UnsupportedModel
from salem.records import Task
from worker.evaluation.editability import check_editable

WRITERS = [name for name in ARCHITECTURES if first_task(name) is Task.TEXT_GENERATION]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "albert", "falcon", "mixtral", "qwen2-moe"])
def test_ordinary_layers_can_be_edited(architecture: str) -> None:
    check_editable(tiny_network(architecture))


@pytest.mark.parametrize("architecture", WRITERS)
def test_decoders_that_classify_can_be_edited(architecture: str) -> None:
    check_editable(tiny_network(architecture, Task.SEQUENCE_CLASSIFICATION))


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_encoder_decoders_that_classify_are_refused(architecture: str) -> None:
    with pytest.raises(UnsupportedModel, match="classifies with a decoder that reads the text") as refused:
        check_editable(tiny_network(architecture, Task.SEQUENCE_CLASSIFICATION))
    assert "only an encoder or only a decoder" in str(refused.value.remedy)


def test_blocks_that_are_not_a_chain_are_refused() -> None:
    """XLM lists attention and feed-forward parts next to each other, not in blocks."""
    with pytest.raises(UnsupportedModel, match="are not a chain"):
        check_editable(tiny_network("xlm"))


def test_a_failing_forward_pass_gets_a_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("bert")

    def failing(*arguments: object, **more: object) -> None:
        raise ValueError("whatever it is")

    monkeypatch.setattr(network.model, "forward", failing)
    with pytest.raises(UnsupportedModel, match="fails on two short texts"):
        check_editable(network)


@pytest.mark.parametrize("architecture", ["longformer", "switch", "xlnet"])
def test_layers_with_other_outputs_are_named(architecture: str) -> None:
    network = tiny_network(architecture)
    with pytest.raises(UnsupportedModel, match="does not output one state per token") as refused:
        check_editable(network)
    assert any(layer.path in refused.value.message for layer in network.layers)
    assert "all tokens pass" in str(refused.value.remedy)


def test_a_gate_after_the_feed_forward_part_is_not_a_layer() -> None:
    layers = tiny_network("qwen2-moe").layers
    assert {layer.matrix for layer in layers} == {"mlp.shared_expert.down_proj"}
    assert {layer.d_out for layer in layers} == {16}
