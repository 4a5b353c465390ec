"""The recipes: from an edit dataset and a layer to a term.

`scoped`  an entry per edit, acting inside its scope only
`mend`    MEND on the job's gradients, projected away from the pass samples' inputs
`paper`   MEND with the two objectives and nothing else (SaLEM, section 3)

Each is a way to prepare the samples and to choose a learner; training itself is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salem.deltas import Dense, LayerDelta, LowRank, Term, applied
from salem.hosting import Network
from salem.records import EditBatch, Hyperparameters, Layer, Recipe, Sample
from worker.compression import TOLERANCE, compress
from worker.learners import ScopedLearner, mend_learner
from worker.scoping import Scoping, draw_scopes
from worker.training import CHUNK, Learner, Prepared, Progress, prepare_dataset, standing, train
from worker.trunk_sets import prepare, prepare_with_answers

GENERATING_ENTRY_RANK = 4
NEAR_SAMPLES = 192  # pass samples, nearest to the scopes, that train the values of entries


@dataclass(frozen=True)
class Trained:
    """What a recipe made."""

    term: Term
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What every recipe is given."""

    network: Network
    plain: tuple[LayerDelta, ...]  # the parent's deltas that act on every input
    batch: EditBatch
    layer: Layer
    hyper: Hyperparameters
    generator: torch.Generator
    progress: Progress

    @property
    def corrections(self) -> list[Sample]:
        return [*self.batch.edit_samples, *(sample for _, sample in self.batch.adapt_samples)]

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
) -> Trained:
    """Train the term that corrects a batch at a layer, on top of the parent's plain deltas.

    A parent's scoped entries act on few inputs and never beside another entry; they do not take part.
    """
    generator = torch.Generator().manual_seed(hyper.seed)
    plain = tuple(delta for delta in parent if not delta.scoped)
    return _RECIPES[hyper.recipe](Work(network, plain, batch, layer, hyper, generator, progress))


def _mend(work: Work) -> Trained:
    with applied(work.network.model, work.plain):
        prepared = prepare_dataset(work.network, work.corrections, work.batch.pass_samples, work.layer)
        term = work.fit(prepared, mend_learner(work.network, prepared, work.hyper, work.generator))
        assert isinstance(term, LowRank | Dense)
        return Trained(smallest_that_holds(work.network, prepared, term, work.hyper))


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


def _scoped(work: Work) -> Trained:
    # Keys read the base, so scopes are drawn before anything is applied.
    scoping = draw_scopes(work.network, work.batch, work.layer, work.hyper, work.generator)
    with applied(work.network.model, work.plain):
        learner = ScopedLearner(
            scoping.scope,
            num_entries=len(work.batch.edit_samples),
            layer=work.layer,
            rank=_entry_rank(work.network, work.hyper),
            scale=scoping.state_scale,
            generator=work.generator,
        )
        return Trained(work.fit(_prepare_scoped(work, scoping), learner), scoping.warnings)


def _prepare_scoped(work: Work, scoping: Scoping) -> Prepared:
    """Corrections as they fire; the pass samples nearest to a scope as if they lay well inside it.

    Most pass samples never feel an entry, so they teach it nothing; the nearest stand for those that will.
    Validation needs only those of the calibration part on which something fires: no other can change.
    """
    network, layer, calibration = work.network, work.layer, scoping.num_calibration
    near = calibration + scoping.kept.inside[calibration:].argsort(descending=True)[:NEAR_SAMPLES]
    firing = (scoping.kept.strength[:calibration] > 0).nonzero()[:, 0]
    as_if = scoping.kept.rows(near)
    keep, moment = prepare_with_answers(network, _pick(work.batch, near), layer, chunk_size=CHUNK)
    validation, _ = prepare_with_answers(network, _pick(work.batch, firing), layer, chunk_size=CHUNK)
    return Prepared(
        layer,
        corrections=prepare(network, work.corrections, layer, chunk_size=CHUNK).with_firing(
            scoping.corrections
        ),
        keep=keep.with_firing(replace(as_if, strength=torch.ones_like(as_if.strength))),
        validation=validation.with_firing(scoping.kept.rows(firing)),
        inputs_to_keep=moment,
    )


def _entry_rank(network: Network, hyper: Hyperparameters) -> int:
    """A label asks for one push; the tokens of a text each need their own, which a vector cannot give."""
    if hyper.entry_rank is not None:
        return hyper.entry_rank
    return GENERATING_ENTRY_RANK if network.task.generates else 0


def _pick(batch: EditBatch, rows: Tensor) -> list[Sample]:
    return [batch.pass_samples[row] for row in rows.tolist()]


_RECIPES: dict[Recipe, Callable[[Work], Trained]] = {
    Recipe.SCOPED: _scoped,
    Recipe.MEND: _mend,
    Recipe.PAPER: _paper,
}
