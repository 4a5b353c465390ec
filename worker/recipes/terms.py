"""The recipes: from an edit dataset and a layer to a term.

`scoped`  an entry per edit, acting inside its scope only
`mend`    MEND on the job's gradients, projected away from the pass samples' inputs
`ridge`   the closed form that moves pass samples' inputs least; no training
`paper`   MEND with the two objectives and nothing else (SaLEM, section 3)

Each is a way to prepare the samples and to choose a learner; training itself is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from salem.deltas.terms import Dense, LayerDelta, LowRank, applied
from salem.models.network import Network
from salem.records import EditBatch, Hyperparameters, Layer, Recipe
from worker.hypernetworks.files import TrainedEditor
from worker.hypernetworks.learners import mend_learner
from worker.hypernetworks.one_pass import one_pass_term
from worker.numerics.low_rank import TOLERANCE, compress
from worker.recipes.base import Left, Trained, Work
from worker.recipes.scoped.entries import scoped_entries
from worker.training.loop import Prepared, Progress, score_term
from worker.training.ridge import ridge_term


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


def _mend(work: Work) -> Trained:
    with applied(work.network.model, work.plain):
        prepared = work.prepare()
        term = work.fit(prepared, mend_learner(work.network, prepared, work.hyper, work.generator))
        assert isinstance(term, LowRank | Dense)
        return Trained(smallest_that_holds(work.network, prepared, term, work.hyper))


def _one_pass(work: Work, trained: TrainedEditor) -> Trained:
    with applied(work.network.model, work.plain):
        return Trained(one_pass_term(work.network, work.layer, trained.editor, work.batch))


def smallest_that_holds(
    network: Network,
    prepared: Prepared,
    term: LowRank | Dense,
    hyper: Hyperparameters,
    tolerance: float = TOLERANCE,
) -> LowRank | Dense:
    """The term compressed, unless a correction that held no longer does: then the dense matrix."""
    small = compress(term, prepared.layer, tolerance)
    held = score_term(network, prepared, term, hyper).held
    return small if score_term(network, prepared, small, hyper).held >= held else Dense(term.dense())


def _paper(work: Work) -> Trained:
    return _mend(replace(work, hyper=work.hyper.model_copy(update={"margin": 0.0, "null_space_rank": 0})))


def _ridge(work: Work) -> Trained:
    with applied(work.network.model, work.plain):
        prepared = work.prepare()
        term, _ = ridge_term(work.network, prepared, work.hyper)
        return Trained(smallest_that_holds(work.network, prepared, term, work.hyper))


_RECIPES: dict[Recipe, Callable[[Work], Trained]] = {
    Recipe.SCOPED: scoped_entries,
    Recipe.MEND: _mend,
    Recipe.RIDGE: _ridge,
    Recipe.PAPER: _paper,
}
