"""Trunks as named tensors and back: every shape of state that a block may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from salem.models.batching import Batch
from salem.models.trunk import Trunk
from salem.records import Layer
from worker.activations.trunk_files import CapturedChunk, from_tensors, to_tensors

LAYER = Layer(path="a.1.m", stack="a", block=1, matrix="m", d_in=2, d_out=2, transposed=False)
BATCH = Batch({"input_ids": torch.zeros(2, 3, dtype=torch.long)}, torch.zeros(2, 1, dtype=torch.long))
ONE, TWO = torch.arange(12.0).reshape(2, 3, 2), torch.ones(1, 4)
INPUTS = torch.ones(5, 2)
LOG_PROBS = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
CORRECT = torch.tensor([True, False])
CPU = torch.device("cpu")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one is other or torch.equal(one, other)


@pytest.mark.parametrize(
    "state",
    [
        None, ONE, (ONE,), (ONE, TWO), (ONE, None, TWO), (None, ONE), (ONE, None),
        (ONE, (TWO, None)), tuple([ONE] * 11),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoder_state", [None, ONE + 1])
def test_a_chunk_is_read_back_unchanged(state: Any, encoder_state: torch.Tensor | None) -> None:
    named = to_tensors(CapturedChunk(Trunk(LAYER, BATCH, state, encoder_state), INPUTS, LOG_PROBS, CORRECT))
    assert named is not None
    found = from_tensors(dict(named), LAYER, BATCH, CPU)
    assert equal(found.trunk.state, state) and equal(found.trunk.encoder_state, encoder_state)
    assert torch.equal(found.log_probs, LOG_PROBS) and torch.equal(found.correct, CORRECT)
    assert torch.equal(found.inputs, INPUTS)
    assert found.trunk.layer == LAYER and found.trunk.batch is BATCH


def test_a_state_with_anything_but_tensors_is_not_stored() -> None:
    trunk = Trunk(LAYER, BATCH, (ONE, {"cache": TWO}), None)
    assert to_tensors(CapturedChunk(trunk, INPUTS, LOG_PROBS, CORRECT)) is None
