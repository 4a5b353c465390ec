"""Gets the scope metric for a job: the model's own, trained once, refined where it does not serve.

A hosted model's first job trains its metric: on rewordings of pass samples, on known paraphrases, and on its
own. How deep the states are read is decided on pairs that were kept apart. A later job takes the metric as it
is, unless its own paraphrases show that the metric does not know them. Does not know keys or radii.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from salem.models.network import Network
from salem.models.trunk import in_seq2seq_decoder
from salem.records import EditBatch, Layer, Sample, TextInput
from salem.scope.features import FeatureSpec, token_rarity
from salem.scope.lexical import word_rarity, word_steadiness
from salem.scope.metric import Metric
from salem.scope.metric_files import named
from worker.activations.scope_features import FeatureMemo
from worker.dataset.augmentation import TYPING
from worker.dataset.token_limits import augmented, prompts_fit
from worker.recipes.base import EditTask
from worker.recipes.scoped.metric_training import (
    GENTLE,
    SHARP,
    Equivalents,
    coverage,
    new_metric,
    train_metric,
)
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.paraphrase_spread import Pairs, gauged

STEPS = 120
TRIAL_PAIRS = 400  # read at each depth, to choose one
TRIAL_STEPS = 40
TIE = 0.03  # of coverage: a deeper reading must be worth its time
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
    own_reworded: tuple[Sample, ...]
    paraphrases: Pairs  # each edit with each of its own
    first: tuple[TextInput, ...]
    second: tuple[TextInput, ...]
    known: Pairs  # of these: paraphrases that came with other texts
    typed: Pairs  # pass samples, each as somebody else would type it, with the same words

    @property
    def temperature(self) -> float:
        """Rules make much the same of every text: what they teach must be taken sharply."""
        return GENTLE if self.known else SHARP

    @property
    def telling(self) -> Pairs:
        """Equivalent texts, two by two, that tell which words are kept.

        A synonym that a rule has put there tells nothing of what people exchange it for.
        """
        return (*self.known, *self.typed, *self.paraphrases)

    def read(self, memo: FeatureMemo, reading: FeatureSpec, num_pairs: int | None = None) -> Equivalents:
        groups = torch.tensor(self.owners, device=memo.network.device).repeat(1 + REWORDINGS)
        always = memo.read([*self.own, *self.own_reworded], reading)
        first, second = (memo.read(side[:num_pairs], reading) for side in (self.first, self.second))
        return Equivalents(always, groups, first, second, self.temperature)


def job_metric(
    memo: FeatureMemo, task: EditTask, options: ScopedOptions, calibrating: Sequence[bool]
) -> JobMetric:
    """The hosted model's metric if it serves this job; else a refined or a new one.

    Args:
        calibrating: which pass samples calibrate radii, so that no metric trains on augmentations of them.
    """
    stored, batch, generator = task.artifacts.metric, task.batch, task.generator
    learning, apart = (
        [sample for sample, kept in zip(batch.pass_samples, calibrating, strict=True) if kept is which]
        for which in (False, True)
    )
    if stored is not None and _knows(memo, batch, stored):
        return JobMetric(stored, is_new=False)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    texts = _texts(memo.network, batch, learning, rng)
    steadiness = word_steadiness(texts.telling)
    if stored is not None:
        equivalents = texts.read(memo, stored.feature_spec)
        refined = train_metric(stored, equivalents, steps=REFINING_STEPS, generator=generator)
        refined = replace(refined, word_steadiness=torch.minimum(stored.word_steadiness, steadiness))
        found = gauged(memo, refined, texts.known, apart, rng)
        # What was learned is not forgotten.
        spread = {name: max(getattr(stored, name), getattr(found, name)) for name in ("exchange", "extent")}
        return JobMetric(named(replace(found, **spread)), is_new=True)
    reading = _best_reading(
        memo, texts, _readings(memo.network, task.layer, learning, batch), options, generator
    )
    equivalents = texts.read(memo, reading)
    start = new_metric(reading, equivalents, width=options.metric_width, generator=generator)
    trained = train_metric(start, equivalents, steps=STEPS, generator=generator)
    rarity = word_rarity([*learning, *batch.corrections])
    trained = replace(trained, word_rarity=rarity, word_steadiness=steadiness)
    return JobMetric(named(gauged(memo, trained, texts.known, apart, rng)), is_new=True)


def _best_reading(
    memo: FeatureMemo,
    texts: _Texts,
    readings: Sequence[FeatureSpec],
    options: ScopedOptions,
    generator: torch.Generator,
) -> FeatureSpec:
    """The shallowest of those that tell pairs apart about as well as the best, by a trial on some pairs."""
    if len(readings) == 1:
        return readings[0]
    trials: list[float] = []
    for reading in readings:
        tried = texts.read(memo, reading, TRIAL_PAIRS)
        seen = len(tried.first) - int(VALIDATION_SHARE * len(tried.first))
        learned = replace(tried, first=tried.first[:seen], second=tried.second[:seen])
        metric = new_metric(reading, learned, width=options.metric_width, generator=generator)
        metric = train_metric(metric, learned, steps=TRIAL_STEPS, generator=generator)
        apart = metric.project(tried.first[seen:]), metric.project(tried.second[seen:])
        trials.append(coverage(*apart, metric.project(learned.first)))
    return next(r for r, covered in zip(readings, trials, strict=True) if covered >= max(trials) - TIE)


def _knows(memo: FeatureMemo, batch: EditBatch, stored: Metric) -> bool:
    """Whether the metric tells the job's own paraphrases; a job without any cannot say otherwise.

    Told from all pass samples, whose points the scopes need anyway.
    """
    if not batch.adapt_samples or not batch.pass_samples:
        return True
    edits = [batch.edit_samples[edit] for edit, _ in batch.adapt_samples]
    adapt = [sample for _, sample in batch.adapt_samples]
    first, second = (stored.project(memo.read(part, stored.feature_spec)) for part in (edits, adapt))
    return coverage(first, second, memo.points(batch.pass_samples, stored)) >= KNOWN


def _texts(network: Network, batch: EditBatch, learning: Sequence[Sample], rng: random.Random) -> _Texts:
    # A metric reads prompts alone, so nothing has to leave room for an answer.
    reword = partial(augmented, network, rng=rng, fit=prompts_fit, held_out=batch.held_out_words)
    known = list(batch.equivalents)[:MOST_PAIRS]
    pairs = [*known, *zip(learning, reword(learning), strict=True)]
    rng.shuffle(pairs)
    return _Texts(
        own=batch.corrections,
        own_reworded=tuple(s for _ in range(REWORDINGS) for s in reword(batch.corrections)),
        owners=batch.owners,
        first=tuple(first for first, _ in pairs),
        second=tuple(second for _, second in pairs),
        known=tuple(known),
        typed=tuple(zip(learning, reword(learning, rules=TYPING), strict=True)),
        paraphrases=batch.paraphrases,
    )


def _readings(
    network: Network, layer: Layer, learning: Sequence[Sample], batch: EditBatch
) -> tuple[FeatureSpec, ...]:
    """The depths to choose from: below the middle of the stack that reads the prompt, and its middle."""
    stack = network.layers[0].stack
    height = sum(other.stack == stack for other in network.layers)
    depths = {max(height // 4, 1), max(height // 2, 1)}
    if in_seq2seq_decoder(network, layer):
        depths.add(height)
    elif layer.stack == stack:
        depths = {min(depth, layer.block) for depth in depths}
    texts = [*learning, *batch.corrections]
    rarity = token_rarity(network, texts)
    paired = any(text.text_pair for text in texts)
    return tuple(FeatureSpec(stack, depth, paired, rarity) for depth in sorted(depths))
