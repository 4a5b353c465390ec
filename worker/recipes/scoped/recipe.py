"""The `scoped` recipe: one entry per edit, which acts only inside its scope.

It draws the scopes, prepares the corrections as they fire, and trains a value for each entry. Must not know
how scopes are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salem.deltas.terms import Scoped, applied
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.models.prompt_cache import can_read_prompts
from salem.models.tokens import count_tokens
from salem.models.trunk import sees_answer_tokens
from salem.records import EditBatch, Layer, TextInput
from worker.dataset.split import without_seen_paraphrases
from worker.numerics.losses import min_margin_per_sample
from worker.recipes.base import EditTask, Exposure, Recipe, Trained, advice_to_train
from worker.recipes.memory import FLOAT_BYTES, Footprint
from worker.recipes.scoped.draw import draw_scopes
from worker.recipes.scoped.learner import ScopedLearner, empty_entries
from worker.recipes.scoped.metric_training import BATCH_GROUPS, MOST_ALWAYS
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.training_set import TrainingSet, num_anchors, num_near, prepare_entries
from worker.selection.candidates import last_layers, middle_layers
from worker.training.active_corrections import answers_with_term
from worker.training.loop import Prepared

NEEDED_RANK = 4  # of the term of entries that a value alone does not correct
MOST_POSITIONS = 32  # answer tokens with a value of their own; later ones share the last value
MARGIN_LABELS = 32  # pass samples that show by how much a classifier leads
MARGIN_TEXTS = 8  # the same for a model that generates: a text has several tokens
VALUE_COPIES = 6  # of each value in training: itself, scaled, gradient, two moments, the best so far
_FEATURE_POOLS = 5  # widths of a sample's features, in states
_FEATURE_COPIES = 5  # of features: plain, augmented, standardized, and two inside a step of the metric
_METRIC_COPIES = 3  # of a correction in a step of the metric: plain, and augmented twice
_TABLES = 6  # score tables at a time: pass samples by keys, or all texts of a step of the metric


class ScopedRecipe(Recipe):
    """Trains entries: a scope and a value for each edit."""

    name = "scoped"
    summary = (
        "One entry per edit, which changes answers only inside its scope; everything else stays as it is."
    )
    Options = ScopedOptions
    scoped = True
    forgets = True

    options: ScopedOptions

    @property
    def margin(self) -> float:
        return self.options.margin

    def candidate_layers(self, network: Network) -> tuple[Layer, ...]:
        """The layers that can write an answer.

        In a model that generates, these layers see the answer token by token. In a classifier, they are the
        last block, where one value can decide the label whatever the input is.
        """
        if self.options.candidates == "all":
            return network.layers
        middle = middle_layers(network.layers)
        if network.task.generates:
            return tuple(layer for layer in middle if sees_answer_tokens(network, layer))
        return middle if self.options.candidates == "middle" else last_layers(network.layers)

    def make(self, task: EditTask) -> Trained:
        with applied(task.network.model, task.plain):
            margin = attainable_margin(task.network, task.batch, self.options.margin)
        options = self.options.model_copy(update={"margin": margin})
        # Keys read the base, so scopes are drawn before any delta is applied.
        scoping = draw_scopes(task, options)
        with applied(task.network.model, task.plain):
            samples = prepare_entries(task, options, scoping)
            num_positions = _num_positions(task.network, samples.prepared)
            num_edits, device = len(task.batch.edit_samples), task.network.device
            start = empty_entries(scoping.scope, num_edits, task.layer, num_positions, device)
            term = self.with_values(task, options, samples, start)
        return Trained(term, scoping.warnings, scoping.entries, scoping.is_new)

    def with_values(
        self, task: EditTask, options: ScopedOptions, samples: TrainingSet, start: Scoped
    ) -> Scoped:
        """Train the values. Entries that still fail get a low-rank term, unless the options set its rank."""
        needed = torch.full((len(start.values),), bool(options.entry_rank))  # [e] bool
        term = _fit(task, options, samples, start, needed)
        if options.entry_rank is None:
            failing = _failing(task, samples.prepared, term)
            if failing.any():
                term = _fit(task, options, samples, term, failing)
        return term

    def without_seen(self, batch: EditBatch, exposure: Exposure) -> EditBatch:
        """A metric learns from every job of its model, and from the paraphrases of the reference set."""
        return without_seen_paraphrases(batch, [*exposure.chain, *exposure.metric], exposure.reference)

    def advice(self) -> str:
        return advice_to_train(self.options)

    def footprint(self, network: Network, batch: EditBatch) -> Footprint:
        """Its values, and what drawing scopes takes: features of all samples, and tables of scores."""
        options, layer = self.options, network.layers[-1]
        layers = network.layers if options.layer else self.candidate_layers(network)
        anchors = len(batch.edit_samples) * max(num_anchors(network, each, options) for each in layers)
        num_corrections = len(batch.corrections) * (1 + options.augmentations) + anchors
        num_pass = len(batch.pass_samples)
        features = (num_pass + num_corrections) * _FEATURE_POOLS * layer.d_out * _FEATURE_COPIES
        step = min(_METRIC_COPIES * num_corrections, MOST_ALWAYS) + 2 * min(num_pass, BATCH_GROUPS)
        answers = [TextInput(input=sample.answer) for sample in batch.edit_samples]
        num_positions = min(MOST_POSITIONS, 2 + max(count_tokens(network.tokenizer, answers)))
        return Footprint(
            copies=1 + options.augmentations,
            anchors=anchors,
            pass_samples=num_near(options),
            caches_prompts=can_read_prompts(network),
            prepared_bytes=FLOAT_BYTES * (features + _TABLES * (num_pass * num_corrections + step**2)),
            trained_bytes=VALUE_COPIES * FLOAT_BYTES * len(answers) * num_positions * layer.d_out,
        )


def _num_positions(network: Network, prepared: Prepared) -> int:
    """How many values an entry needs.

    If the layer sees the answer, an entry has a value for each token of the longest answer, and one for
    what follows. That last value is never trained: after the answer, the base goes on alone.
    """
    if not sees_answer_tokens(network, prepared.layer):
        return 1
    targets = [chunk.trunk.batch.answer_mask for chunk in prepared.corrections.chunks]
    return min(MOST_POSITIONS, 1 + max(int(each.sum(-1).max()) for each in targets))


def _fit(
    task: EditTask, options: ScopedOptions, samples: TrainingSet, start: Scoped, needed: Tensor
) -> Scoped:
    """Train the values, and a low-rank term for the entries `needed` [e] bool."""
    rank = (options.entry_rank or NEEDED_RANK) if needed.any() else 0
    learner = ScopedLearner(start, rank=rank, needed=needed, scale=samples.scale, generator=task.generator)
    term = task.fit(samples.prepared, learner, options)
    assert isinstance(term, Scoped)
    return term


@torch.no_grad()
def _failing(task: EditTask, prepared: Prepared, term: Scoped) -> Tensor:
    """Entries with an edit or adapt sample that is still answered incorrectly -> [e] bool."""
    failing = torch.zeros(len(term.values), dtype=torch.bool)
    for chunk in prepared.corrections.chunks:
        assert chunk.firing is not None
        wrong = min_margin_per_sample(answers_with_term(task.network, chunk, term)) <= 0
        own = chunk.samples < len(task.batch.corrections)
        failing[chunk.firing.entry.cpu()[wrong.cpu() & own]] = True
    return failing


@torch.no_grad()
def attainable_margin(network: Network, batch: EditBatch, margin: float) -> float:
    """The margin that the options ask for, but at most the network's own on the median pass sample.

    Some classifiers never lead by much, however strongly a correction pulls.
    """
    few = batch.pass_samples[: MARGIN_TEXTS if network.task.generates else MARGIN_LABELS]
    if not few or not margin:
        return margin
    own = float(min_margin_per_sample(forward(network, encode(network, few))).median())
    return min(margin, own) if own > 0 else margin
