"""Trial edits: a quick closed-form edit at each layer of a shortlist decides which layer is edited.

Saliency shows where the loss is steep, not where a change breaks little. When layers were measured, the
edited layer explained edit success and causal tracing did not (Hase et al., "Does Localization Inform
Editing?", NeurIPS 2023, section 5). So each of the most salient layers gets a ridge edit on a few pass
samples, and the layers are compared by what the edit corrects and breaks. One forward pass serves all layers.

Held-out samples are never used here: validation samples are pass samples, and augmentations measure
generalization. Must not know jobs or the recipe that edits the chosen layer.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from salem.deltas.terms import Dense, LowRank, adding
from salem.models.batching import Answers, Batch, forward
from salem.models.network import Network
from salem.models.tokens import sample_lengths
from salem.models.trunk import Trunk, in_seq2seq_decoder, resume
from salem.records import EditBatch, Layer, Sample
from worker.activations.trunk_sets import Chunk, TrunkSet, batches, token_mask
from worker.dataset.token_limits import augmented
from worker.numerics.losses import log_probs_without_forgotten, min_margin_per_sample
from worker.training.loop import CHUNK, Prepared
from worker.training.ridge import ridge_term

NUM_PASS = 100  # pass samples for the second moment of a layer's inputs
NUM_VALIDATION = 150  # other pass samples, to measure what a trial breaks
MOST_TOKENS = 8_000  # of these samples together, answers included: long samples are fewer, at least `FEWEST`
FEWEST = 20
MOST_CORRECTIONS = 40  # a trial compares layers, so a part of a large job is enough
STRENGTHS = (1e6, 1e4)  # of the ridge penalty: few, because a trial only compares layers
MAX_ROUNDS = 5


@dataclass(frozen=True)
class Trial:
    """The result of a quick edit at one layer; shares in [0, 1]."""

    layer: Layer
    held: float  # corrections (edit and adapt samples) answered correctly
    augmented: float  # augmentations of the edits answered correctly
    lost: float  # validation samples correct before and wrong after
    divergence: float  # nats, as in `TermScore`: breaks ties

    @property
    def score(self) -> float:
        """The mean success on corrections and on augmentations, minus what was lost."""
        return (self.held + self.augmented) / 2 - self.lost


@dataclass(frozen=True)
class Decision:
    """The trials, in the order of the shortlist, and the winner."""

    trials: tuple[Trial, ...]
    best: Trial

    @property
    def reason(self) -> str:
        """Why this layer, in one sentence."""
        best = self.best
        figures = f"{best.held:.0%} of the corrections and {best.augmented:.0%} of their augmentations held"
        others = [f"{trial.layer.path} {trial.score:.3f}" for trial in self.trials if trial is not best]
        against = f", against {' and '.join(others)}" if others else ""
        return (
            f"{best.layer.path} was chosen because its trial edit, of {len(self.trials)} at the most salient "
            f"layers, scored best: {figures} and {best.lost:.1%} of the pass samples were lost "
            f"(score {best.score:.3f}{against})."
        )


def trial_edits(
    network: Network,
    batch: EditBatch,
    shortlist: Sequence[Layer],
    margin: float,
    generator: torch.Generator,
) -> Decision:
    """Edit at every layer of the shortlist and compare.

    Raises:
        EditFailed: no token carries a gradient at one of the layers.
    """
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    edits, tried = batch.edit_samples[:MOST_CORRECTIONS], spread_over(batch.corrections, MOST_CORRECTIONS)
    other_words = augmented(network, edits, rng, held_out=batch.held_out_words)
    keep = _affordable(network, batch.pass_samples[: NUM_PASS + NUM_VALIDATION])
    cut = len(keep) * NUM_PASS // (NUM_PASS + NUM_VALIDATION)
    parts = [prepare_layers(network, part, shortlist) for part in (tried, keep[:cut], keep[cut:])]
    augmentations = prepare_layers(network, other_words, shortlist)
    trials = []
    for layer in shortlist:
        corrections, training, validation = (part[layer.path] for part in parts)
        prepared = Prepared(layer, corrections[0], training[0], validation[0], training[1])
        term, found = ridge_term(network, prepared, margin, STRENGTHS, MAX_ROUNDS)
        share = _share_correct(network, augmentations[layer.path][0], term)
        trials.append(Trial(layer, found.held, share, found.lost, found.divergence))
    return Decision(tuple(trials), max(trials, key=lambda trial: (trial.score, -trial.divergence)))


def _affordable(network: Network, samples: Sequence[Sample]) -> Sequence[Sample]:
    """The first samples with no more tokens than a trial may read."""
    totals = list(accumulate(sample_lengths(network, samples)))
    return samples[: max(FEWEST, bisect_right(totals, MOST_TOKENS))]


def spread_over(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """At most this many samples, evenly spread over all of them."""
    return samples[:: -(-len(samples) // most)] if len(samples) > most else samples


@torch.no_grad()
def _share_correct(network: Network, samples: TrunkSet, term: LowRank | Dense) -> float:
    correct: list[Tensor] = []
    for chunk in samples.chunks:
        with adding(network.module(chunk.trunk.layer.path), term):
            correct.append(min_margin_per_sample(resume(network, chunk.trunk)) > 0)
    return float(torch.cat(correct).float().mean())


@torch.no_grad()
def prepare_layers(
    network: Network, samples: Sequence[Sample], layers: Sequence[Layer]
) -> dict[str, tuple[TrunkSet, Tensor]]:
    """Trunks with their answers at several layers, and the second moment of each layer's inputs [d_in, d_in].

    The same as `trunk_sets.prepare_with_answers` for each layer, from one forward pass for all of them.
    """
    chunks: dict[str, list[Chunk]] = {layer.path: [] for layer in layers}
    moments = {layer.path: torch.zeros(layer.d_in, layer.d_in, device=network.device) for layer in layers}
    counts = dict.fromkeys(chunks, 0)
    for rows, batch in batches(network, samples, CHUNK):
        indices = torch.tensor(rows)
        before: Tensor | None = None  # one forward pass: the same at every layer
        for trunk, u, answers in _capture_layers(network, batch, layers):
            path = trunk.layer.path
            mask = token_mask(network, batch, trunk.layer).reshape(-1)
            kept = u.reshape(-1, trunk.layer.d_in)[mask].float()
            moments[path].addmm_(kept.T, kept)
            counts[path] += len(kept)
            if before is None:
                before = log_probs_without_forgotten(answers)
            chunks[path].append(Chunk(trunk, indices, before, min_margin_per_sample(answers) > 0))
    return {path: (TrunkSet(tuple(chunks[path])), moments[path] / max(counts[path], 1)) for path in chunks}


def _capture_layers(
    network: Network, batch: Batch, layers: Sequence[Layer]
) -> Iterator[tuple[Trunk, Tensor, Answers]]:
    """For each layer: the trunk of a batch, the layer's input, and the answers, from one forward pass."""
    below: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    encoded: list[Tensor] = []

    def keep_output(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            below[path] = output

        return hook

    def keep_input(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            inputs[path] = args[0]

        return hook

    with ExitStack() as stack:
        for layer in layers:
            reader = network.module(layer.path).register_forward_hook(keep_input(layer.path))
            stack.callback(reader.remove)
            if layer.block > 0:
                block = network.module(f"{layer.stack}.{layer.block - 1}")
                stack.callback(block.register_forward_hook(keep_output(layer.path)).remove)
        if network.model.config.is_encoder_decoder:
            encoder = network.model.get_encoder()
            keeper = encoder.register_forward_hook(lambda m, a, out: encoded.append(out.last_hidden_state))
            stack.callback(keeper.remove)
        answers = forward(network, batch)
    for layer in layers:
        state = encoded[0] if in_seq2seq_decoder(network, layer) else None
        yield Trunk(layer, batch, below.get(layer.path), state), inputs[layer.path], answers
