"""Gets the scope metric for a job: the model's own, trained once, refined where it does not serve.

A hosted model's first job trains its metric: on rewordings of pass samples, on known paraphrases, and on its
own. How deep the states are read is decided on pairs that were kept apart. A later job takes the metric as it
is, unless its own paraphrases show that the metric does not know them. Does not know keys or radii.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from salem.features import Reading, features, token_rarity
from salem.hosting import Network
from salem.metric_files import named
from salem.records import EditBatch, Hyperparameters, Layer, Sample, TextInput
from salem.scopes import Metric
from salem.trunk import beside_encoder
from worker.metric import Equivalents, coverage, new_metric, train_metric
from worker.rewording import reword_all

STEPS = 240
TRIAL_STEPS = 40  # at each depth, to choose one
REFINING_STEPS = 60
KNOWN = 0.8  # coverage of a job's own paraphrases below which the metric is refined
VALIDATION_SHARE = 0.15  # of the pairs: choose the depth
REWORDINGS = 2  # of each edit and paraphrase
MOST_PAIRS = 3_000


@dataclass(frozen=True)
class JobMetric:
    """The metric that a job's scopes live in."""

    metric: Metric
    is_new: bool  # trained or refined by this job: to be stored for the next one


@dataclass(frozen=True)
class _Texts:
    """What a metric learns from, as texts."""

    own: tuple[Sample, ...]
    owners: tuple[int, ...]  # of `own`
    first: tuple[TextInput, ...]
    second: tuple[TextInput, ...]

    def read(self, network: Network, reading: Reading, reworded: Sequence[Sample]) -> Equivalents:
        groups = torch.tensor(self.owners, device=network.device).repeat(1 + REWORDINGS)
        both = features(network, [*self.first, *self.second], reading) if self.first else None
        always = features(network, [*self.own, *reworded], reading)
        empty = always[:0]
        first, second = both.chunk(2) if both is not None else (empty, empty)
        return Equivalents(always, groups, first, second)


def job_metric(
    network: Network,
    batch: EditBatch,
    learning: Sequence[Sample],
    layer: Layer,
    hyper: Hyperparameters,
    generator: torch.Generator,
    stored: Metric | None,
) -> JobMetric:
    """The stored metric where it serves this job, else one that does.

    Args:
        learning: pass samples that a metric may be trained on.
        layer: the layer to be edited; states are read no later than there.
        stored: the hosted model's metric, if a job has trained one.
    """
    if stored is not None and _knows(network, batch, stored, learning):
        return JobMetric(stored, is_new=False)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    texts = _texts(batch, learning, rng)
    reworded = [sample for _ in range(REWORDINGS) for sample in reword_all(texts.own, rng)]
    if stored is not None:
        equivalents = texts.read(network, stored.reading, reworded)
        refined = train_metric(stored, equivalents, steps=REFINING_STEPS, generator=generator)
        return JobMetric(named(refined), is_new=True)
    metric = _train(network, texts, reworded, _readings(network, layer, learning, batch), hyper, generator)
    return JobMetric(named(metric), is_new=True)


def _train(
    network: Network,
    texts: _Texts,
    reworded: Sequence[Sample],
    readings: Sequence[Reading],
    hyper: Hyperparameters,
    generator: torch.Generator,
) -> Metric:
    trials: list[tuple[float, Metric, Equivalents]] = []
    for reading in readings:
        equivalents = texts.read(network, reading, reworded)
        start = new_metric(reading, equivalents, width=hyper.metric_width, generator=generator)
        if len(readings) == 1:
            return train_metric(start, equivalents, steps=STEPS, generator=generator)
        seen = len(equivalents.first) - int(VALIDATION_SHARE * len(equivalents.first))
        learned = Equivalents(
            equivalents.always, equivalents.groups, equivalents.first[:seen], equivalents.second[:seen]
        )
        tried = train_metric(start, learned, steps=TRIAL_STEPS, generator=generator)
        apart = tried.place(equivalents.first[seen:]), tried.place(equivalents.second[seen:])
        trials.append((coverage(*apart, tried.place(learned.first)), tried, equivalents))
    _, tried, equivalents = max(trials, key=lambda trial: trial[0])
    return train_metric(tried, equivalents, steps=STEPS - TRIAL_STEPS, generator=generator)


def _knows(network: Network, batch: EditBatch, stored: Metric, learning: Sequence[Sample]) -> bool:
    """Whether the metric tells the job's own paraphrases; a job without any cannot say otherwise."""
    if not batch.adapt_samples or not learning:
        return True
    edits = stored.read(network, [batch.edit_samples[edit] for edit, _ in batch.adapt_samples])
    adapt = stored.read(network, [sample for _, sample in batch.adapt_samples])
    return coverage(edits, adapt, stored.read(network, learning)) >= KNOWN


def _texts(batch: EditBatch, learning: Sequence[Sample], rng: random.Random) -> _Texts:
    known = list(batch.equivalents)[:MOST_PAIRS]
    pairs = [*known, *zip(learning, reword_all(learning, rng), strict=True)]
    rng.shuffle(pairs)
    return _Texts(
        own=batch.corrections,
        owners=(*range(len(batch.edit_samples)), *(edit for edit, _ in batch.adapt_samples)),
        first=tuple(first for first, _ in pairs),
        second=tuple(second for _, second in pairs),
    )


def _readings(
    network: Network, layer: Layer, learning: Sequence[Sample], batch: EditBatch
) -> tuple[Reading, ...]:
    """The depths to choose from: below the middle of the stack that reads the prompt, and its middle."""
    stack = network.layers[0].stack
    height = sum(other.stack == stack for other in network.layers)
    depths = {max(height // 4, 1), max(height // 2, 1)}
    if beside_encoder(network, layer):
        depths.add(height)
    elif layer.stack == stack:
        depths = {min(depth, layer.block) for depth in depths}
    texts = [*learning, *batch.corrections]
    rarity = token_rarity(network, texts)
    paired = any(text.text_pair for text in texts)
    return tuple(Reading(stack, depth, paired, rarity) for depth in sorted(depths))
