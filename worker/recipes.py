"""The recipes: from an edit dataset and a layer to a term.

`scoped`  an entry per edit, acting inside its scope only
`mend`    MEND on the job's gradients, projected away from the pass samples' inputs
`paper`   MEND with the two objectives and nothing else (SaLEM, section 3)

Each is a way to prepare the samples and to choose a learner; training itself is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from salem.deltas import Dense, LayerDelta, LowRank, Term, applied
from salem.hosting import Network
from salem.records import EditBatch, Hyperparameters, Layer, Recipe, Sample
from salem.scopes import Firing, Scoped, features
from worker.compression import compress
from worker.learners import ScopedLearner, mend_learner
from worker.scoping import CALIBRATION_SHARE, Scoping, draw_scopes
from worker.training import CHUNK, Prepared, Progress, prepare_dataset, train
from worker.trunk_sets import prepare, prepare_with_answers

NEAR_SAMPLES = 256  # pass samples, nearest to the scopes, that train the values of entries


@dataclass(frozen=True)
class Trained:
    """What a recipe made."""

    term: Term
    warnings: tuple[str, ...] = ()


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
    make = _RECIPES[hyper.recipe]
    return make(
        network, [delta for delta in parent if not delta.scoped], batch, layer, hyper, generator, progress
    )


def _mend(
    network: Network,
    plain: Sequence[LayerDelta],
    batch: EditBatch,
    layer: Layer,
    hyper: Hyperparameters,
    generator: torch.Generator,
    progress: Progress,
) -> Trained:
    with applied(network.model, plain):
        prepared = prepare_dataset(network, _corrections(batch), batch.pass_samples, layer)
        learner = mend_learner(network, prepared, hyper, generator)
        term, _ = train(network, prepared, learner, hyper, generator, progress)
    assert isinstance(term, LowRank | Dense)
    return Trained(compress(term, layer))


def _paper(
    network: Network,
    plain: Sequence[LayerDelta],
    batch: EditBatch,
    layer: Layer,
    hyper: Hyperparameters,
    generator: torch.Generator,
    progress: Progress,
) -> Trained:
    bare = hyper.model_copy(update={"margin": 0.0, "null_space_rank": 0})
    return _mend(network, plain, batch, layer, bare, generator, progress)


def _scoped(
    network: Network,
    plain: Sequence[LayerDelta],
    batch: EditBatch,
    layer: Layer,
    hyper: Hyperparameters,
    generator: torch.Generator,
    progress: Progress,
) -> Trained:
    scoping = draw_scopes(
        network, batch, layer, hyper, generator
    )  # keys read the base: nothing is applied yet
    with ExitStack() as stack:
        firings = _firings(network, batch, layer, scoping)
        stack.enter_context(applied(network.model, plain))
        prepared, scale = _prepare_scoped(network, batch, layer, scoping, firings)
        learner = ScopedLearner(
            scoping.scope,
            len(batch.edit_samples),
            layer.d_in,
            layer.d_out,
            hyper.entry_rank,
            scale,
            generator,
        )
        term, _ = train(network, prepared, learner, hyper, generator, progress)
    return Trained(term, scoping.warnings)


def _firings(network: Network, batch: EditBatch, layer: Layer, scoping: Scoping) -> tuple[Firing, ...]:
    """What fires on the corrections, and on the validation part of the pass samples."""
    groups = (_corrections(batch), batch.pass_samples[: _num_validation(batch)])
    return tuple(_fire(network, group, layer, scoping) for group in groups if group)


def _fire(network: Network, samples: Sequence[Sample], layer: Layer, scoping: Scoping) -> Firing:
    return scoping.scope.fire(features(network, samples, layer))


def _prepare_scoped(
    network: Network, batch: EditBatch, layer: Layer, scoping: Scoping, firings: Sequence[Firing]
) -> tuple[Prepared, float]:
    """Corrections as they fire; the pass samples nearest to a scope as if they lay well inside it.

    Most pass samples never feel an entry, so they teach it nothing. The nearest ones stand for those that
    will.

    Returns:
        The prepared samples, and the root mean square of what the layer writes to, the unit of values.
    """
    num_validation = _num_validation(batch)
    order = scoping.inside[num_validation:].argsort(descending=True)[:NEAR_SAMPLES] + num_validation
    near = [batch.pass_samples[index] for index in order.tolist()]
    keep, moment = prepare_with_answers(network, near, layer, chunk_size=CHUNK)
    validation, _ = prepare_with_answers(
        network, batch.pass_samples[:num_validation], layer, chunk_size=CHUNK
    )
    corrections = prepare(network, _corrections(batch), layer, chunk_size=CHUNK).with_firing(firings[0])
    if near:
        drawn = _fire(network, near, layer, scoping)
        keep = keep.with_firing(Firing(drawn.entry, drawn.inside, torch.ones_like(drawn.strength)))
    if num_validation:
        validation = validation.with_firing(firings[1])
    return Prepared(layer, corrections, keep, validation, moment), _residual_scale(network, batch, layer)


def _residual_scale(network: Network, batch: EditBatch, layer: Layer) -> float:
    state = features(network, batch.edit_samples[:CHUNK], layer)
    width = state.shape[-1] // 5
    return float(state[:, -width:].square().mean().sqrt())


def _num_validation(batch: EditBatch) -> int:
    return int(len(batch.pass_samples) * CALIBRATION_SHARE)


def _corrections(batch: EditBatch) -> list[Sample]:
    return [*batch.edit_samples, *(sample for _, sample in batch.adapt_samples)]


def merged(earlier: Scoped, later: Scoped) -> Scoped:
    """The entries of two terms with one metric; an earlier key that a later entry covers is dropped."""
    covered = (later.keys @ earlier.keys.T - later.radii[:, None] > 0).any(0)
    return Scoped(
        earlier.centre,
        earlier.spread,
        earlier.projection,
        keys=torch.cat([earlier.keys[~covered], later.keys]),
        radii=torch.cat([earlier.radii[~covered], later.radii]),
        owners=torch.cat([earlier.owners[~covered], later.owners + len(earlier.values)]),
        values=torch.cat([earlier.values, later.values]),
        down=torch.cat([earlier.down, later.down]),
        up=torch.cat([earlier.up, later.up]),
    )


_Recipe = Callable[
    [
        Network,
        Sequence[LayerDelta],
        EditBatch,
        Layer,
        Hyperparameters,
        torch.Generator,
        Progress,
    ],
    Trained,
]
_RECIPES: dict[Recipe, _Recipe] = {Recipe.SCOPED: _scoped, Recipe.MEND: _mend, Recipe.PAPER: _paper}
