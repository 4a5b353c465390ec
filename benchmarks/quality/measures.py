"""What a row of the quality benchmark holds: outcomes per sample, and the figures that follow from them.

The figures are defined, with their sources, in docs/metrics.md. Knows answers before and after; does not know
methods, data sets or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from benchmarks.baselines.contract import Edited
from benchmarks.quality.facts import MAX_NEW_TOKENS, Correction
from salem.inference.predict import predict, same_answer
from salem.models.batching import Batch, encode, forward, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Sample, TextInput
from worker.numerics.intervals import paired_drop

CHUNK = 64
_WORST_NLL = 50.0  # nats
_Z = 1.959963984540054  # 97.5% quantile of the normal distribution


class Answering(Protocol):
    """Makes a network answer one padded batch as edited, while active."""

    def __call__(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Forced:
    """One sample with its target's earlier tokens given (teacher forcing)."""

    right: int  # target tokens whose logit is the highest
    num_tokens: int
    nll: float  # nats, summed over the target's tokens, the end of sequence left out
    greedy: tuple[int, ...]  # the token with the highest logit at each place, the end left out

    @property
    def share(self) -> float:
        return self.right / max(self.num_tokens, 1)


@dataclass(frozen=True)
class Outcomes:
    """What came of the samples of a job, one entry each; jobs of one edit are joined."""

    edits: list[bool] = field(default_factory=list)
    reworded: list[list[bool]] = field(default_factory=list)  # of each edit its held-out rewordings
    kept: list[bool] = field(default_factory=list)  # held-out pass samples still answered rightly
    neighborhood: list[bool] = field(default_factory=list)  # neighbors answered as before
    portability: list[bool] = field(default_factory=list)
    edits_forced: list[float] = field(default_factory=list)  # share of target tokens
    reworded_forced: list[float] = field(default_factory=list)
    before_forced: list[Forced] = field(default_factory=list)  # held-out pass samples
    after_forced: list[Forced] = field(default_factory=list)

    def joined(self, other: Outcomes) -> Outcomes:
        """Both, one after the other."""
        return Outcomes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def measure(
    network: Network,
    edited: Edited,
    corrections: Sequence[Correction],
    held_out: Sequence[Sample],
    *,
    perplexity: bool,
) -> Outcomes:
    """Ask the edited network everything that is held out, and the base where a figure compares with it."""
    after, base = edited.answering, _as_base
    edits = [item.edit.sample for item in corrections]
    reworded = [sample for item in corrections for sample in item.reworded]
    near = [sample for item in corrections for sample in item.neighborhood]
    following = [sample for item in corrections for sample in item.portability]
    hits = iter(_right(network, after, reworded))
    generates = network.task.generates
    return Outcomes(
        edits=_right(network, after, edits),
        reworded=[[next(hits) for _ in item.reworded] for item in corrections],
        kept=[] if perplexity else _right(network, after, held_out),
        neighborhood=[
            same_answer(new, old)
            for new, old in zip(outputs(network, after, near), outputs(network, base, near), strict=True)
        ],
        portability=_right(network, after, following),
        edits_forced=[f.share for f in forced(network, after, edits)] if generates else [],
        reworded_forced=[f.share for f in forced(network, after, reworded)] if generates else [],
        before_forced=forced(network, base, held_out) if generates else [],
        after_forced=forced(network, after, held_out) if generates else [],
    )


def figures(outcomes: Outcomes, *, perplexity: bool) -> dict[str, float | None]:
    """The figures of a row; None where nothing was there to measure them on."""
    reworded = [hit for hits in outcomes.reworded for hit in hits]
    drawdown, low, high = _rise(outcomes) if perplexity else _drop(outcomes)
    before, after = outcomes.before_forced, outcomes.after_forced
    lost = [old.share - new.share for old, new in zip(before, after, strict=True)]
    return {
        "edit_accuracy": _mean(outcomes.edits),
        "generalization": _mean(reworded),
        "drawdown": drawdown,
        "drawdown_low": low,
        "drawdown_high": high,
        "neighborhood": _mean(outcomes.neighborhood),
        "portability": _mean(outcomes.portability),
        "locality": _locality(outcomes, perplexity),
        "edit_accuracy_forced": _mean(outcomes.edits_forced),
        "generalization_forced": _mean(outcomes.reworded_forced),
        "drawdown_forced": _mean(lost),
    }


def counts(outcomes: Outcomes, *, perplexity: bool) -> dict[str, Any]:
    """The raw outcomes that intervals are drawn from: a digit per sample, places where most are alike."""
    found: dict[str, Any] = {
        "edits": _digits(outcomes.edits),
        "reworded": [_digits(hits) for hits in outcomes.reworded],
        "neighborhood": _digits(outcomes.neighborhood),
        "portability": _digits(outcomes.portability),
        "lost": [place for place, right in enumerate(outcomes.kept) if not right],
        "num_kept": len(outcomes.kept),
    }
    if perplexity:
        pairs = zip(outcomes.before_forced, outcomes.after_forced, strict=True)
        found["nll"] = [
            [len(old.greedy), round(old.nll, 3), round(new.nll, 3), _num_changed(old, new)]
            for old, new in pairs
        ]
    return found


@torch.inference_mode()
def outputs(network: Network, answering: Answering, samples: Sequence[TextInput]) -> list[str]:
    """Labels, or texts under free generation, in the order of the samples."""
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
    """Every target token judged with the right ones before it given."""
    found: dict[int, Forced] = {}
    for rows in _chunks(network, samples):
        chunk = [samples[row] for row in rows]
        batch = encode(network, chunk)
        with answering(chunk, batch):
            answers = forward(network, batch)
        greedy = answers.logits.argmax(-1)  # [a]
        nll = F.cross_entropy(answers.logits.float(), answers.targets, reduction="none")  # [a]
        nll = nll.nan_to_num(nan=_WORST_NLL, posinf=_WORST_NLL)  # a method may break a model altogether
        for place, row in enumerate(rows):
            mine = answers.sample == place  # [a]
            text = mine & (answers.targets != network.eos_id)
            found[row] = Forced(
                right=int((greedy == answers.targets)[mine].sum()),
                num_tokens=int(mine.sum()),
                nll=float(nll[text].sum()),
                greedy=tuple(greedy[text].tolist()),
            )
    return [found[row] for row in range(len(samples))]


def _as_base(inputs: Sequence[TextInput], batch: Batch | None = None) -> AbstractContextManager[None]:
    return nullcontext()


def _chunks(network: Network, samples: Sequence[TextInput]) -> Iterator[list[int]]:
    """Batches in the very order in which `predict` pads them, so that a method may count on rows."""
    return in_buckets(count_tokens(network.tokenizer, samples), CHUNK)


def _right(network: Network, answering: Answering, samples: Sequence[Sample]) -> list[bool]:
    found = outputs(network, answering, samples)
    return [same_answer(output, sample.target) for output, sample in zip(found, samples, strict=True)]


def _drop(outcomes: Outcomes) -> tuple[float | None, float | None, float | None]:
    drop = paired_drop([True] * len(outcomes.kept), outcomes.kept)
    return (drop.value, drop.low, drop.high) if drop else (None, None, None)


def _rise(outcomes: Outcomes) -> tuple[float | None, float | None, float | None]:
    """The relative rise of perplexity, with a normal interval of the mean rise of NLL over passages."""
    pairs = list(zip(outcomes.before_forced, outcomes.after_forced, strict=True))
    tokens = sum(len(old.greedy) for old, _ in pairs)
    if not tokens:
        return None, None, None
    rises = [new.nll - old.nll for old, new in pairs]
    mean = sum(rises) / tokens
    rest = [rise - mean * len(old.greedy) for rise, (old, _) in zip(rises, pairs, strict=True)]
    half = _Z * math.sqrt(sum(value * value for value in rest)) / tokens
    return _relative(mean), _relative(mean - half), _relative(mean + half)


def _relative(rise: float) -> float:
    """exp(rise) - 1, where it still is a number: a collapsed model's perplexity may overflow."""
    return math.expm1(min(rise, 50.0))


def _locality(outcomes: Outcomes, perplexity: bool) -> float | None:
    if not perplexity:
        return _mean(outcomes.kept)
    pairs = list(zip(outcomes.before_forced, outcomes.after_forced, strict=True))
    tokens = sum(len(old.greedy) for old, _ in pairs)
    return 1 - sum(_num_changed(old, new) for old, new in pairs) / tokens if tokens else None


def _num_changed(old: Forced, new: Forced) -> int:
    return sum(a != b for a, b in zip(old.greedy, new.greedy, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _digits(hits: Sequence[bool]) -> str:
    return "".join("1" if hit else "0" for hit in hits)
