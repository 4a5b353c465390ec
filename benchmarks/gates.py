"""Measures what a version with many entries adds to a forward pass of the base.

    python -m benchmarks.gates [--rounds 41]

The entries have random keys and contain none of the inputs. So every answer is the base's, and only the gate
is timed: pooling the metric's features, one product with all keys, and adding nothing. Each round runs one
plain forward pass and one for each number of entries. Ratios are medians over rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.command import Progress, exit_status, quick
from benchmarks.shared_data import shared_folder, shared_model, shared_samples
from salem.deltas.terms import LayerDelta
from salem.inference.gate import gated
from salem.models.batching import encode_inputs
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Layer, Task, TextInput
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.first_token import no_first_tokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.metric import Metric
from salem.scope.state_scope import StateScope
from worker.recipes.scoped.learner import empty_entries
from worker.recipes.scoped.options import ScopedOptions
from worker.selection.candidates import middle_layers

MODELS = {
    "minilm-nli": (Task.SEQUENCE_CLASSIFICATION, "nli_test"),
    "gpt-facts": (Task.TEXT_GENERATION, "facts"),
}
NUM_ENTRIES = (10, 100, 1_000, 10_000)
BATCH = 32
WARM = 3  # rounds that are not counted
UNREACHABLE = 1.1  # a radius that no cosine reaches


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both models; print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5 if quick() else 41)
    rounds = parser.parse_args(argv).rounds
    shared_folder()
    progress, found = Progress(), {}
    for name in MODELS:
        progress(f"{name}: {rounds} rounds of forward passes with up to {max(NUM_ENTRIES):,} entries")
        found[name] = gate_cost(*_material(name), rounds=rounds)
    progress("done")
    print("| model | " + " | ".join(f"{num:,} entries" for num in NUM_ENTRIES) + " |")
    print("|---" * (1 + len(NUM_ENTRIES)) + "|")
    for name, costs in found.items():
        print(f"| {name} | " + " | ".join(f"{costs[num]:+.1%}" for num in NUM_ENTRIES) + " |")
    print(json.dumps({"gate_cost": {name: costs for name, costs in found.items()}, "rounds": rounds}))
    return 0


def _material(name: str) -> tuple[Network, list[TextInput]]:
    task, data = MODELS[name]
    network = load(shared_model(name), task, device="cpu")
    return network, [TextInput(input=s.input, text_pair=s.text_pair) for s in shared_samples(data)[:BATCH]]


def gate_cost(network: Network, inputs: Sequence[TextInput], *, rounds: int) -> dict[int, float]:
    """By number of entries: the share of time that the gate adds to a forward pass of one batch of inputs."""
    fields = encode_inputs(network, inputs)
    ways: dict[int, Callable[[], Tensor]] = {0: lambda: _plain(network, fields)}
    for num in NUM_ENTRIES:
        delta = idle_entries(network, inputs, num)
        ways[num] = lambda delta=delta: _gated(network, inputs, fields, delta)  # type: ignore[misc]
        assert torch.equal(ways[num](), ways[0]()), "the base answers inputs outside every scope"
    seconds: dict[int, list[float]] = {num: [] for num in ways}
    for _ in range(rounds + WARM):
        for num, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[num].append(time.perf_counter() - began)
    plain = seconds.pop(0)[WARM:]
    return {
        num: median(mine / base - 1 for mine, base in zip(found[WARM:], plain, strict=True))
        for num, found in seconds.items()
    }


def idle_entries(network: Network, inputs: Sequence[TextInput], num_entries: int) -> LayerDelta:
    """A delta whose entries have random keys and contain no input; its metric is random, too."""
    draw = torch.Generator().manual_seed(num_entries)
    layer: Layer = middle_layers(network.layers)[0]
    paired = any(item.text_pair for item in inputs)
    spec = FeatureSpec(layer.stack, max(layer.block // 2, 1), paired, token_rarity(network, inputs))
    pooled = features(network, inputs, spec)
    width = ScopedOptions().metric_width
    projection = torch.randn(width, pooled.shape[1], generator=draw)
    metric = Metric(
        spec, pooled.mean(0), pooled.std(0) + 1e-2, projection, *torch.ones(2, WORD_BUCKETS), sha256="random"
    )
    keys = F.normalize(torch.randn(num_entries, width, generator=draw), dim=-1)
    scope = StateScope(
        metric,
        keys,
        radii=torch.full((num_entries,), UNREACHABLE),
        owners=torch.arange(num_entries).float(),
        **vars(no_first_tokens(num_entries, keys.device)),
        first_token_weights=torch.full((num_entries,), ScopedOptions().first_token_weight),
        words=pack_words([WordCounts.of(item) for item in inputs]).repeat(num_entries // len(inputs) + 1, 1)[
            :num_entries
        ],
        lexical_weights=torch.ones(num_entries),
    )
    return LayerDelta(layer.path, (empty_entries(scope, num_entries, layer, 1, network.device),))


@torch.inference_mode()
def _plain(network: Network, fields: dict[str, Tensor]) -> Tensor:
    logits: Tensor = network.model(**fields).logits
    return logits


@torch.inference_mode()
def _gated(
    network: Network, inputs: Sequence[TextInput], fields: dict[str, Tensor], delta: LayerDelta
) -> Tensor:
    with gated(network, inputs, fields, [delta]):
        return _plain(network, fields)


if __name__ == "__main__":
    sys.exit(exit_status(main))
