"""Prepares the samples that train the values of entries.

Corrections and their augmentations fire as their scopes say. Anchor samples and the nearest pass samples are
treated as if they were inside. Must not know how scopes are drawn or how values are trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.deltas.terms import TAIL
from salem.models.network import Network
from salem.models.trunk import entering, sees_answer_tokens
from salem.records import EditBatch, Layer, Sample
from worker.activations.trunk_sets import TrunkSet, prepare, prepare_with_answers
from worker.dataset.conversations import in_conversations
from worker.dataset.token_limits import augmented, replace_too_long
from worker.recipes.base import EditTask
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.scoping import Scoping
from worker.selection.candidates import last_layers
from worker.training.loop import CHUNK, Prepared

NEAR_SAMPLES = 192  # pass samples, nearest to the scopes, that train the values of entries


@dataclass(frozen=True)
class TrainingSet:
    """The samples of a scoped job, and the unit of its values."""

    prepared: Prepared
    scale: float  # root mean square of a typical state at the edited block


def num_near(options: ScopedOptions) -> int:
    """How many pass samples train values: none, unless the options weigh their divergence."""
    return NEAR_SAMPLES if options.kl_weight else 0


def num_anchors(network: Network, layer: Layer, options: ScopedOptions) -> int:
    """How many anchor samples an edit has. Only in a classifier's last block can a value answer any input."""
    last = layer in last_layers(network.layers) and not network.task.generates
    return options.anchor_samples if last else 0


def prepare_entries(task: EditTask, options: ScopedOptions, scoping: Scoping) -> TrainingSet:
    """Prepare corrections, augmentations, anchor samples, and pass samples at the layer.

    Most pass samples never reach an entry, so they teach it nothing; the nearest stand for those that will.
    Validation needs only the pass samples of the calibration part that fire: no other answer can change.
    """
    network, layer, own = task.network, task.layer, task.batch.corrections
    learning = (~scoping.calibration).nonzero()[:, 0]
    near = learning[scoping.kept.margin[learning].argsort(descending=True)[: num_near(options)]]
    firing = ((scoping.kept.gate > 0) & scoping.calibration).nonzero()[:, 0]
    as_if = scoping.kept.rows(near)
    keep, moment = prepare_with_answers(network, _pick(task.batch, near), layer, chunk_size=CHUNK)
    validation, _ = prepare_with_answers(network, _pick(task.batch, firing), layer, chunk_size=CHUNK)
    rng = random.Random(options.seed)
    held_out = task.batch.held_out_words
    drawn = [augmented(network, own, rng, held_out=held_out) for _ in range(options.augmentations)]
    placed = in_conversations(network, [sample for draw in drawn for sample in draw], rng)
    variants = replace_too_long(network, [*own] * options.augmentations, placed)
    owners, anchors = _anchors(task, _pick(task.batch, learning), options, rng)
    tail = TAIL if sees_answer_tokens(network, layer) else None
    corrections = prepare(network, [*own, *variants, *anchors], layer, chunk_size=CHUNK, tail=tail)
    every = torch.arange(len(own), device=network.device).repeat(1 + options.augmentations)
    # The first corrections are the edits themselves, so an edit's index is a row among them.
    own_firing = scoping.corrections.rows(torch.cat([every, owners]))
    prepared = Prepared(
        layer,
        corrections=corrections.with_firing(own_firing),
        keep=keep.with_firing(replace(as_if, gate=torch.ones_like(as_if.gate))),
        validation=validation.with_firing(scoping.kept.rows(firing)),
        inputs_to_keep=moment,
        num_own_corrections=len(own) + len(variants),
    )
    return TrainingSet(prepared, _state_scale(network, corrections))


def _anchors(
    task: EditTask, learning: Sequence[Sample], options: ScopedOptions, rng: random.Random
) -> tuple[Tensor, list[Sample]]:
    """Pass samples with an edit's target, and their edits [s]: examples of what a scope may contain.

    Every input inside a scope gets the edit's answer. An edit and its augmentations teach a value to do this
    for their own states only; other texts teach it not to depend on the state. An edit that forgets has no
    target, so it has no anchors.
    """
    number = min(num_anchors(task.network, task.layer, options), len(learning))
    owned = [
        (edit, other.model_copy(update={"target": sample.target}))
        for edit, sample in enumerate(task.batch.edit_samples)
        if not sample.forgets
        for other in rng.sample(learning, number)
    ]
    owners = torch.tensor([edit for edit, _ in owned], dtype=torch.long, device=task.network.device)
    return owners, [sample for _, sample in owned]


def _state_scale(network: Network, corrections: TrunkSet) -> float:
    """Root mean square of the median token's state where it enters the edited block: the unit of values."""
    states = entering(network, corrections.chunks[0].trunk)
    return float(states.float().square().mean(-1).sqrt().median())


def _pick(batch: EditBatch, rows: Tensor) -> list[Sample]:
    """The pass samples at rows [r]."""
    return [batch.pass_samples[row] for row in rows.tolist()]
