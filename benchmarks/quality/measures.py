"""Measures an edited network: outcomes per sample, and the figures that follow from them.

docs/metrics.md defines the figures and names their sources. Knows answers before and after an edit; does not
know methods, data sets, or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch.nn import functional as F

from benchmarks.baselines.interface import EditedNetwork
from benchmarks.quality.facts import MAX_NEW_TOKENS, Correction
from salem.inference.predict import predict, same_answer
from salem.models.batching import Batch, encode, forward, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Sample, TextInput

CHUNK = 64
_WORST_NLL = 50.0  # nats


class Answering(Protocol):
    """While active, makes a network answer one padded batch as edited."""

    def __call__(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Forced:
    """One sample under teacher forcing: each target token is predicted from the correct ones before it."""

    right: int  # target tokens whose logit is the highest
    num_tokens: int
    num_text_tokens: int  # target tokens without the end of sequence
    nll: float  # nats, summed over the text tokens

    @property
    def share(self) -> float:
        return self.right / max(self.num_tokens, 1)


@dataclass(frozen=True)
class Outcomes:
    """The outcome of each sample of a job; jobs of one edit are joined."""

    edits: list[bool] = field(default_factory=list)
    paraphrases: list[list[bool]] = field(default_factory=list)  # the held-out paraphrases of each edit
    kept: list[bool] = field(default_factory=list)  # held-out pass samples still answered correctly
    neighbors: list[bool] = field(default_factory=list)  # neighbors answered as before
    portability: list[bool] = field(default_factory=list)
    edits_forced: list[float] = field(default_factory=list)  # share of target tokens
    paraphrases_forced: list[float] = field(default_factory=list)
    before_forced: list[Forced] = field(default_factory=list)  # held-out pass samples
    after_forced: list[Forced] = field(default_factory=list)

    def joined(self, other: Outcomes) -> Outcomes:
        """Both, one after the other."""
        return Outcomes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def measure(
    network: Network,
    edited: EditedNetwork,
    corrections: Sequence[Correction],
    held_out: Sequence[Sample],
    *,
    perplexity: bool,
) -> Outcomes:
    """Ask the edited network every held-out question, and the base where a figure compares the two."""
    after, base = edited.answering, _as_base
    edits = [item.edit.sample for item in corrections]
    paraphrases = [sample for item in corrections for sample in item.held_out_paraphrases]
    neighbors = [sample for item in corrections for sample in item.neighbors]
    following = [sample for item in corrections for sample in item.portability]
    hits = iter(_right(network, after, paraphrases))
    generates = network.task.generates
    return Outcomes(
        edits=_right(network, after, edits),
        paraphrases=[[next(hits) for _ in item.held_out_paraphrases] for item in corrections],
        kept=[] if perplexity else _right(network, after, held_out),
        neighbors=[
            same_answer(new, old)
            for new, old in zip(
                outputs(network, after, neighbors), outputs(network, base, neighbors), strict=True
            )
        ],
        portability=_right(network, after, following),
        edits_forced=[f.share for f in forced(network, after, edits)] if generates else [],
        paraphrases_forced=[f.share for f in forced(network, after, paraphrases)] if generates else [],
        before_forced=forced(network, base, held_out) if generates else [],
        after_forced=forced(network, after, held_out) if generates else [],
    )


def figures(outcomes: Outcomes, *, perplexity: bool) -> dict[str, float | None]:
    """The figures of a row; None if there was nothing to measure."""
    paraphrases = [hit for hits in outcomes.paraphrases for hit in hits]
    before, after = outcomes.before_forced, outcomes.after_forced
    lost = [old.share - new.share for old, new in zip(before, after, strict=True)]
    return {
        "edit_accuracy": _mean(outcomes.edits),
        "generalization": _mean(paraphrases),
        "drawdown": _rise(outcomes) if perplexity else _mean([not right for right in outcomes.kept]),
        "neighborhood": _mean(outcomes.neighbors),
        "portability": _mean(outcomes.portability),
        "edit_accuracy_forced": _mean(outcomes.edits_forced),
        "generalization_forced": _mean(outcomes.paraphrases_forced),
        "drawdown_forced": _mean(lost),
    }


@torch.inference_mode()
def outputs(network: Network, answering: Answering, samples: Sequence[TextInput]) -> list[str]:
    """Labels or freely generated texts, in the order of the samples."""
    found = [""] * len(samples)
    for rows in _chunks(network, samples):
        chunk = [samples[row] for row in rows]
        with answering(chunk):
            answers = predict(network, chunk, max_new_tokens=MAX_NEW_TOKENS, batch_size=CHUNK)
        for row, answer in zip(rows, answers, strict=True):
            found[row] = answer.output
    return found


@torch.inference_mode()
def forced(network: Network, answering: Answering, samples: Sequence[Sample]) -> list[Forced]:
    """Each sample under teacher forcing."""
    found: dict[int, Forced] = {}
    for rows in _chunks(network, samples):
        chunk = [samples[row] for row in rows]
        batch = encode(network, chunk)
        with answering(chunk, batch):
            answers = forward(network, batch)
        greedy = answers.logits.argmax(-1)  # [a]
        nll = F.cross_entropy(answers.logits.float(), answers.targets, reduction="none")  # [a]
        nll = nll.nan_to_num(nan=_WORST_NLL, posinf=_WORST_NLL)  # a method may break a model completely
        for place, row in enumerate(rows):
            mine = answers.sample == place  # [a]
            text = mine & (answers.targets != network.eos_id)
            found[row] = Forced(
                right=int((greedy == answers.targets)[mine].sum()),
                num_tokens=int(mine.sum()),
                num_text_tokens=int(text.sum()),
                nll=float(nll[text].sum()),
            )
    return [found[row] for row in range(len(samples))]


def _as_base(inputs: Sequence[TextInput], batch: Batch | None = None) -> AbstractContextManager[None]:
    return nullcontext()


def _chunks(network: Network, samples: Sequence[TextInput]) -> Iterator[list[int]]:
    """Batches in the order in which `predict` pads them, so that a method can rely on row numbers."""
    return in_buckets(count_tokens(network.tokenizer, samples), CHUNK)


def _right(network: Network, answering: Answering, samples: Sequence[Sample]) -> list[bool]:
    found = outputs(network, answering, samples)
    return [same_answer(output, sample.target) for output, sample in zip(found, samples, strict=True)]


def _rise(outcomes: Outcomes) -> float | None:
    """The relative rise of perplexity, clipped: the perplexity of a collapsed model may overflow."""
    tokens = sum(old.num_text_tokens for old in outcomes.before_forced)
    if not tokens:
        return None
    rise = sum(f.nll for f in outcomes.after_forced) - sum(f.nll for f in outcomes.before_forced)
    return math.expm1(min(rise / tokens, 50.0))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
