"""The benchmark of the gate: it times a version that answers like its base."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_network

from benchmarks.gates import NUM_ENTRIES, gate_cost, idle_entries
from salem.inference.gate import fire
from salem.records import TextInput

TEXTS = [TextInput(input=text) for text in ("where is my order", "lamp", "the password does not work")]


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_every_number_of_entries_is_timed_and_none_fires(architecture: str) -> None:
    network = tiny_network(architecture)
    costs = gate_cost(network, TEXTS, rounds=1)
    assert tuple(costs) == NUM_ENTRIES and all(cost > -1 for cost in costs.values())
    delta = idle_entries(network, TEXTS, 100)
    firing = fire(network, TEXTS, [delta])
    assert firing is not None and not firing.gate.any() and torch.all(firing.margin < 0)
    assert delta.scoped is not None and len(delta.scoped.values) == 100
