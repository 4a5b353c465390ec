"""Rivals that change weights: fine-tuning of the last block, and LoRA.

Both get the edits as samples in the chat template, with the end of the turn in the target. Must not know
kinds of questions or scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.baselines.fine_tune import WeightLearner
from benchmarks.baselines.interface import EditedNetwork, Editing
from benchmarks.baselines.lora import lora
from benchmarks.baselines.one_layer import (
    likelihood,
    prepared_at,
    trained,
    weight_of,
    with_earlier_deltas,
)
from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from benchmarks.chat_quality.chat import Conversation
from benchmarks.chat_quality.edits import ChatEdit, as_sent, reference_set
from benchmarks.chat_quality.model import ChatModel
from salem.records import EditBatch, Sample

SEED = 0
LOC_FT_RATE = 0.05  # learning rate, relative to the weight's root mean square
LORA_RATE = 1e-3


@dataclass(frozen=True)
class Edited:
    """A network that a rival has edited."""

    model: ChatModel
    network: EditedNetwork
    job_s: float
    elsewhere: ClassVar[bool] = False

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        return self.model.edited_answers(self.network, conversations)


@dataclass(frozen=True)
class WeightMethod:
    """A baseline of the quality benchmark, on the chat model."""

    model: ChatModel
    method: Callable[[Editing], EditedNetwork]
    setting: float
    kept: tuple[Sample, ...]  # the reference set, with the base's answers

    def edit(self, edits: Sequence[ChatEdit], before: Edited | None = None) -> Edited:
        """Train on the edits and their paraphrases."""
        began = time.monotonic()
        asked = as_sent(self.model, edits)
        batch = EditBatch(
            edit_samples=tuple(edit.sample for edit in asked),
            adapt_samples=tuple((i, s) for i, edit in enumerate(asked) for s in edit.paraphrase_samples),
            pass_samples=self.kept,
            held_out_paraphrases=(),
            held_out_pass_samples=(),
        )
        editing = Editing(self.model.network, batch, (), SEED, self.setting, before and before.network)
        edited = self.method(editing)
        return Edited(self.model, edited, time.monotonic() - began)


def loc_ft_bf(editing: Editing) -> NetworkWithDeltas:
    """LocFT-BF: fine-tune one matrix, the last block's down projection, over all edits in mini-batches.

    The end of the turn is part of the target. `setting`: the learning rate, relative to the weight's RMS.
    """
    network = editing.network
    layer = max(network.layers, key=lambda each: each.block)
    rate = editing.setting * float(weight_of(network, layer).float().square().mean().sqrt())
    with with_earlier_deltas(editing):
        prepared = prepared_at(editing, layer, keep=False)
        learner = WeightLearner(layer, network.device)
        return trained(editing, prepared, learner, likelihood(kl_weight=0.0, learning_rate=rate))


@contextmanager
def opened_loc_ft(model: ChatModel) -> Iterator[WeightMethod]:
    """Fine-tuning of the last block's down projection."""
    yield WeightMethod(model, loc_ft_bf, LOC_FT_RATE, _kept(model))


@contextmanager
def opened_lora(model: ChatModel) -> Iterator[WeightMethod]:
    """LoRA of rank 8 on all matrices, without a penalty."""
    yield WeightMethod(model, lora, LORA_RATE, _kept(model))


def _kept(model: ChatModel) -> tuple[Sample, ...]:
    return tuple(edit.sample for edit in reference_set(model))
