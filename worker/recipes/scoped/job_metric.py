"""Gets the scope metric for a job: the hosted model's metric, trained once and refined if it does not fit.

A model's first scoped job trains its metric on augmentations of pass samples, on known paraphrases, and on
its own edits. Validation pairs decide at which block states are read. A later job uses the metric as
it is, unless its own paraphrases lie too far apart. Must not know keys or radii.
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
from worker.recipes.scoped.paraphrase_spread import Pairs, with_spread

STEPS = 120
TRIAL_PAIRS = 400  # read at each block, to choose one
TRIAL_STEPS = 40
TIE = 0.03  # in coverage; a deeper block must be worth its time
REFINING_STEPS = 60
KNOWN = 0.8  # coverage of a job's own paraphrases; below it, the metric is refined
VALIDATION_SHARE = 0.15  # of the pairs: they choose the block
AUGMENTATIONS = 2  # of each edit and paraphrase
MOST_PAIRS = 3_000


@dataclass(frozen=True)
class JobMetric:
    """The metric of a job's scopes."""

    metric: Metric
    is_new: bool  # trained or refined by this job, to be stored for the next


@dataclass(frozen=True)
class _Texts:
    """The texts that a metric learns from."""

    own: tuple[Sample, ...]
    owners: tuple[int, ...]  # of `own`
    own_augmented: tuple[Sample, ...]
    paraphrases: Pairs  # each edit with each of its paraphrases
    first: tuple[TextInput, ...]
    second: tuple[TextInput, ...]
    known: Pairs  # of these, paraphrases of other texts than the edits
    typed: Pairs  # pass samples, each typed differently but with the same words

    @property
    def temperature(self) -> float:
        """Sharp if all pairs are augmentations, because rules change every text in much the same way."""
        return GENTLE if self.known else SHARP

    @property
    def word_pairs(self) -> Pairs:
        """Pairs that show which words paraphrases keep.

        Augmentations with synonyms are left out: they do not show which words people exchange.
        """
        return (*self.known, *self.typed, *self.paraphrases)

    def read(self, memo: FeatureMemo, spec: FeatureSpec, num_pairs: int | None = None) -> Equivalents:
        groups = torch.tensor(self.owners, device=memo.network.device).repeat(1 + AUGMENTATIONS)
        always = memo.read([*self.own, *self.own_augmented], spec)
        first, second = (memo.read(side[:num_pairs], spec) for side in (self.first, self.second))
        return Equivalents(always, groups, first, second, self.temperature)


def job_metric(
    memo: FeatureMemo, task: EditTask, options: ScopedOptions, calibrating: Sequence[bool]
) -> JobMetric:
    """The hosted model's metric if it serves this job; else a refined or a new one.

    Args:
        calibrating: which pass samples calibrate radii, so that no metric trains on augmentations of them.
    """
    stored, batch, generator = task.artifacts.metric, task.batch, task.generator
    learning, probes = (
        [sample for sample, kept in zip(batch.pass_samples, calibrating, strict=True) if kept is which]
        for which in (False, True)
    )
    if stored is not None and _knows(memo, batch, stored):
        return JobMetric(stored, is_new=False)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    texts = _texts(memo.network, batch, learning, rng)
    steadiness = word_steadiness(texts.word_pairs)
    if stored is not None:
        equivalents = texts.read(memo, stored.feature_spec)
        refined = train_metric(stored, equivalents, steps=REFINING_STEPS, generator=generator)
        refined = replace(refined, word_steadiness=torch.minimum(stored.word_steadiness, steadiness))
        found = with_spread(memo, refined, texts.known, probes, rng)
        spread = {name: max(getattr(stored, name), getattr(found, name)) for name in ("exchange", "extent")}
        return JobMetric(named(replace(found, **spread)), is_new=True)
    spec = _best_spec(memo, texts, _specs(memo.network, task.layer, learning, batch), options, generator)
    equivalents = texts.read(memo, spec)
    start = new_metric(spec, equivalents, width=options.metric_width, generator=generator)
    trained = train_metric(start, equivalents, steps=STEPS, generator=generator)
    rarity = word_rarity([*learning, *batch.corrections])
    trained = replace(trained, word_rarity=rarity, word_steadiness=steadiness)
    return JobMetric(named(with_spread(memo, trained, texts.known, probes, rng)), is_new=True)


def _best_spec(
    memo: FeatureMemo,
    texts: _Texts,
    specs: Sequence[FeatureSpec],
    options: ScopedOptions,
    generator: torch.Generator,
) -> FeatureSpec:
    """The shallowest spec whose coverage in a trial is about as good as the best."""
    if len(specs) == 1:
        return specs[0]
    trials: list[float] = []
    for spec in specs:
        tried = texts.read(memo, spec, TRIAL_PAIRS)
        seen = len(tried.first) - int(VALIDATION_SHARE * len(tried.first))
        learned = replace(tried, first=tried.first[:seen], second=tried.second[:seen])
        metric = new_metric(spec, learned, width=options.metric_width, generator=generator)
        metric = train_metric(metric, learned, steps=TRIAL_STEPS, generator=generator)
        held_out = metric.project(tried.first[seen:]), metric.project(tried.second[seen:])
        trials.append(coverage(*held_out, metric.project(learned.first)))
    return next(r for r, covered in zip(specs, trials, strict=True) if covered >= max(trials) - TIE)


def _knows(memo: FeatureMemo, batch: EditBatch, stored: Metric) -> bool:
    """Whether the metric covers the job's own paraphrases, against all pass samples.

    A job without paraphrases cannot tell.
    """
    if not batch.adapt_samples or not batch.pass_samples:
        return True
    edits = [batch.edit_samples[edit] for edit, _ in batch.adapt_samples]
    adapt = [sample for _, sample in batch.adapt_samples]
    first, second = (stored.project(memo.read(part, stored.feature_spec)) for part in (edits, adapt))
    return coverage(first, second, memo.points(batch.pass_samples, stored)) >= KNOWN


def _texts(network: Network, batch: EditBatch, learning: Sequence[Sample], rng: random.Random) -> _Texts:
    # A metric reads prompts only, so augmentations need no room for an answer.
    augment = partial(augmented, network, rng=rng, fit=prompts_fit, held_out=batch.held_out_words)
    known = list(batch.equivalents)[:MOST_PAIRS]
    pairs = [*known, *zip(learning, augment(learning), strict=True)]
    rng.shuffle(pairs)
    return _Texts(
        own=batch.corrections,
        own_augmented=tuple(s for _ in range(AUGMENTATIONS) for s in augment(batch.corrections)),
        owners=batch.owners,
        first=tuple(first for first, _ in pairs),
        second=tuple(second for _, second in pairs),
        known=tuple(known),
        typed=tuple(zip(learning, augment(learning, rules=TYPING), strict=True)),
        paraphrases=batch.paraphrases,
    )


def _specs(
    network: Network, layer: Layer, learning: Sequence[Sample], batch: EditBatch
) -> tuple[FeatureSpec, ...]:
    """The specs to choose from: a quarter and half of the height of the stack that reads the prompt."""
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
