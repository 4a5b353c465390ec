"""The recipes: from an edit dataset and a layer to a term.

`scoped`  an entry per edit, acting inside its scope only
`mend`    MEND on the job's gradients, projected away from the pass samples' inputs
`ridge`   the closed form that moves pass samples' inputs least; no training
`paper`   MEND with the two objectives and nothing else (SaLEM, section 3)

Each is a way to prepare the samples and to choose a learner; training itself is the same for all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from salem.deltas import Dense, LayerDelta, LowRank, Term, applied
from salem.encoding import IGNORED, encode, forward
from salem.hosting import Network
from salem.metric import Metric
from salem.records import EditBatch, Entry, Hyperparameters, Layer, Recipe, Sample
from salem.scopes import Scoped
from salem.trunk import resume, sees_answer
from worker.compression import TOLERANCE, compress
from worker.editor_files import TrainedEditor
from worker.learners import ScopedLearner, empty_entries, mend_learner
from worker.losses import worst_margin_per_sample
from worker.one_pass import one_pass_term
from worker.rewording import reword_all
from worker.ridge import ridge_term
from worker.sample_cache import SampleCache
from worker.scoping import Scoping, draw_scopes
from worker.training import (
    CHUNK,
    Learner,
    Prepared,
    Progress,
    answers_under,
    prepare_dataset,
    standing,
    train,
)
from worker.trunk_sets import TrunkSet, prepare, prepare_with_answers

NEEDED_RANK = 4  # of the term of entries that a value alone does not correct
MOST_POSITIONS = 32  # of an answer that have a value of their own; later ones share the last
MARGIN_SAMPLES = 32  # pass samples that say by how much the base leads
NEAR_SAMPLES = 192  # pass samples, nearest to the scopes, that train the values of entries


@dataclass(frozen=True)
class Trained:
    """What a recipe made."""

    term: Term
    warnings: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()  # of a scoped term
    metric_is_new: bool = False  # whether the term's metric was trained here


@dataclass(frozen=True)
class Left:
    """What earlier jobs of the same hosted model left for this one; each may be missing."""

    metric: Metric | None = None  # the hosted model's scope metric
    editor: TrainedEditor | None = None  # to make this job's edits in one pass, instead of training
    cache: SampleCache | None = None  # of the base, without any delta
    answers: Mapping[str, str] = field(default_factory=dict)  # of the base, by content hash of the input


@dataclass(frozen=True)
class Work:
    """What every recipe is given."""

    network: Network
    parent: tuple[LayerDelta, ...]
    left: Left
    batch: EditBatch
    layer: Layer
    hyper: Hyperparameters
    generator: torch.Generator
    progress: Progress

    @property
    def plain(self) -> tuple[LayerDelta, ...]:
        """The parent's deltas that act on every input.

        Its scoped entries act on few and never beside another entry; they take no part in training.
        """
        return tuple(delta for delta in self.parent if not delta.scoped)

    @property
    def cache(self) -> SampleCache | None:
        """What is known of samples, where the network answers as its base while it is trained on."""
        return None if self.plain else self.left.cache

    def fit(self, prepared: Prepared, learner: Learner) -> Term:
        """Run the loop and keep the best term."""
        term, _ = train(self.network, prepared, learner, self.hyper, self.generator, self.progress)
        return term


def train_term(
    network: Network,
    parent: Sequence[LayerDelta],
    batch: EditBatch,
    layer: Layer,
    hyper: Hyperparameters,
    progress: Progress,
    left: Left | None = None,
) -> Trained:
    """Train the term that corrects a batch at a layer, on top of the parent.

    An editor that was trained ahead (`left.editor`) makes it in one pass instead.
    """
    generator = torch.Generator().manual_seed(hyper.seed)
    work = Work(network, tuple(parent), left or Left(), batch, layer, hyper, generator, progress)
    return _one_pass(work, work.left.editor) if work.left.editor else _RECIPES[hyper.recipe](work)


@torch.no_grad()
def attainable_margin(network: Network, keep: Sequence[Sample], margin: float) -> float:
    """The margin asked for, but no more than the base itself has on the median of pass samples.

    A classifier that was trained gently never leads by much, however hard a correction pulls.
    """
    few = keep[:MARGIN_SAMPLES]
    if not few or not margin:
        return margin
    own = float(worst_margin_per_sample(forward(network, encode(network, few))).median())
    return min(margin, own) if own > 0 else margin


def _mend(work: Work) -> Trained:
    with applied(work.network.model, work.plain):
        prepared = _prepare(work)
        term = work.fit(prepared, mend_learner(work.network, prepared, work.hyper, work.generator))
        assert isinstance(term, LowRank | Dense)
        return Trained(smallest_that_holds(work.network, prepared, term, work.hyper))


def _one_pass(work: Work, trained: TrainedEditor) -> Trained:
    with applied(work.network.model, work.plain):
        return Trained(one_pass_term(work.network, work.layer, trained.editor, work.batch))


def _prepare(work: Work) -> Prepared:
    batch = work.batch
    return prepare_dataset(work.network, batch.corrections, batch.pass_samples, work.layer, work.cache)


def smallest_that_holds(
    network: Network,
    prepared: Prepared,
    term: LowRank | Dense,
    hyper: Hyperparameters,
    tolerance: float = TOLERANCE,
) -> LowRank | Dense:
    """The term compressed, unless a correction that held no longer does: then the dense matrix."""
    small = compress(term, prepared.layer, tolerance)
    held = standing(network, prepared, term, hyper).held
    return small if standing(network, prepared, small, hyper).held >= held else Dense(term.dense())


def _paper(work: Work) -> Trained:
    return _mend(replace(work, hyper=work.hyper.model_copy(update={"margin": 0.0, "null_space_rank": 0})))


def _ridge(work: Work) -> Trained:
    with applied(work.network.model, work.plain):
        prepared = _prepare(work)
        term, _ = ridge_term(work.network, prepared, work.hyper)
        return Trained(smallest_that_holds(work.network, prepared, term, work.hyper))


def _scoped(work: Work) -> Trained:
    margin = attainable_margin(work.network, work.batch.pass_samples, work.hyper.margin)
    work = replace(work, hyper=work.hyper.model_copy(update={"margin": margin}))
    # Keys read the base, so scopes are drawn before anything is applied.
    left = work.left
    scoping = draw_scopes(
        work.network,
        work.parent,
        work.batch,
        work.layer,
        work.hyper,
        work.generator,
        left.metric,
        left.cache,
    )
    with applied(work.network.model, work.plain):
        prepared, scale = _prepare_scoped(work, scoping)
        num_positions = _num_positions(work.network, prepared)
        term = empty_entries(scoping.scope, len(work.batch.edit_samples), work.layer, num_positions)
        needed = torch.full((len(term.values),), bool(work.hyper.entry_rank))
        term = _fit_entries(work, prepared, term, needed, scale)
        if work.hyper.entry_rank is None:
            failing = _failing(work, prepared, term)
            if failing.any():
                term = _fit_entries(work, prepared, term, failing, scale)
    return Trained(term, scoping.warnings, scoping.entries, scoping.is_new)


def _num_positions(network: Network, prepared: Prepared) -> int:
    """How many values an entry needs, if the layer sees the answer: one for each token of the longest, and
    one for what comes behind it, which is never trained: there the base goes on.
    """
    if not sees_answer(network, prepared.layer):
        return 1
    asked = [chunk.trunk.batch.targets != IGNORED for chunk in prepared.corrections.chunks]
    return min(MOST_POSITIONS, 1 + max(int(each.sum(-1).max()) for each in asked))


def _fit_entries(work: Work, prepared: Prepared, start: Scoped, needed: Tensor, scale: float) -> Scoped:
    rank = (work.hyper.entry_rank or NEEDED_RANK) if needed.any() else 0
    learner = ScopedLearner(start, rank=rank, needed=needed, scale=scale, generator=work.generator)
    term = work.fit(prepared, learner)
    assert isinstance(term, Scoped)
    return term


@torch.no_grad()
def _failing(work: Work, prepared: Prepared, term: Scoped) -> Tensor:
    """Entries whose edit or adapt samples are not all answered rightly, rewordings aside -> [e] bool."""
    failing = torch.zeros(len(term.values), dtype=torch.bool)
    for chunk in prepared.corrections.chunks:
        assert chunk.firing is not None
        wrong = worst_margin_per_sample(answers_under(work.network, chunk, term)) <= 0
        own = chunk.samples < len(work.batch.corrections)
        failing[chunk.firing.entry.cpu()[wrong.cpu() & own]] = True
    return failing


def num_near(hyper: Hyperparameters) -> int:
    """How many pass samples train the values of a scoped job: none, unless it asks for their pull."""
    return NEAR_SAMPLES if hyper.kl_weight else 0


def _prepare_scoped(work: Work, scoping: Scoping) -> tuple[Prepared, float]:
    """Corrections and their rewordings as they fire; the nearest pass samples as if they lay well inside.

    Most pass samples never feel an entry, so they teach it nothing; the nearest stand for those that will,
    where the job asks for a pull of pass samples at all.
    Validation needs only those of the calibration part on which something fires: no other can change.
    """
    network, layer, own = work.network, work.layer, work.batch.corrections
    learning = (~scoping.calibration).nonzero()[:, 0]
    near = learning[scoping.kept.inside[learning].argsort(descending=True)[: num_near(work.hyper)]]
    firing = ((scoping.kept.strength > 0) & scoping.calibration).nonzero()[:, 0]
    as_if = scoping.kept.rows(near)
    keep, moment = prepare_with_answers(network, _pick(work.batch, near), layer, chunk_size=CHUNK)
    validation, _ = prepare_with_answers(network, _pick(work.batch, firing), layer, chunk_size=CHUNK)
    rng = random.Random(work.hyper.seed)
    reworded = [sample for _ in range(work.hyper.rewordings) for sample in reword_all(own, rng)]
    corrections = prepare(network, [*own, *reworded], layer, chunk_size=CHUNK)
    every = torch.arange(len(own), device=network.device).repeat(1 + work.hyper.rewordings)
    prepared = Prepared(
        layer,
        corrections=corrections.with_firing(scoping.corrections.rows(every)),
        keep=keep.with_firing(replace(as_if, strength=torch.ones_like(as_if.strength))),
        validation=validation.with_firing(scoping.kept.rows(firing)),
        inputs_to_keep=moment,
    )
    return prepared, _state_scale(network, corrections)


@torch.no_grad()
def _state_scale(network: Network, corrections: TrunkSet) -> float:
    """Root mean square of the typical token's state where it enters the edited block: the unit of values."""
    trunk = corrections.chunks[0].trunk
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    block = network.module(f"{trunk.layer.stack}.{trunk.layer.block}")
    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        resume(network, trunk)
    finally:
        handle.remove()
    return float(seen[0].float().square().mean(-1).sqrt().median())


def _pick(batch: EditBatch, rows: Tensor) -> list[Sample]:
    return [batch.pass_samples[row] for row in rows.tolist()]


_RECIPES: dict[Recipe, Callable[[Work], Trained]] = {
    Recipe.SCOPED: _scoped,
    Recipe.MEND: _mend,
    Recipe.RIDGE: _ridge,
    Recipe.PAPER: _paper,
}
