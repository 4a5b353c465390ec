"""The `scoped` recipe: from an edit dataset and a layer to entries, one per edit.

Has scopes drawn, prepares the corrections as they fire, and finds values for the entries. Does not know how
scopes are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from salem.deltas.terms import Scoped, applied
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.models.trunk import resume, sees_answer_tokens
from salem.records import EditBatch, Hyperparameters, Layer, Sample
from worker.activations.trunk_sets import TrunkSet, prepare, prepare_with_answers
from worker.dataset.token_limits import augmented
from worker.hypernetworks.learners import ScopedLearner, empty_entries
from worker.numerics.losses import min_margin_per_sample
from worker.recipes.base import Trained, Work
from worker.recipes.scoped.calibration import Scoping, draw_scopes
from worker.recipes.scoped.entry_values import DIRECTIONS, along
from worker.selection.candidates import last_layers
from worker.training.active_corrections import answers_with_term
from worker.training.loop import CHUNK, Prepared

NEEDED_RANK = 4  # of the term of entries that a value alone does not correct
MOST_POSITIONS = 32  # of an answer that have a value of their own; later ones share the last
MARGIN_SAMPLES = 32  # pass samples that say by how much the base leads
NEAR_SAMPLES = 192  # pass samples, nearest to the scopes, that train the values of entries


def scoped_entries(work: Work) -> Trained:
    """An entry per edit, each acting inside its scope only."""
    with applied(work.network.model, work.plain):
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
        term = _with_values(work, prepared, term, scale)
    return Trained(term, scoping.warnings, scoping.entries, scoping.is_new)


def _with_values(work: Work, prepared: Prepared, start: Scoped, scale: float) -> Scoped:
    """The entries with the values that the job asks for, trained unless it says otherwise."""
    if work.hyper.entry_values != "trained":
        direction = DIRECTIONS[work.hyper.entry_values](work, prepared, start)
        return along(work.network, prepared, start, direction, scale, work.hyper.margin)
    needed = torch.full((len(start.values),), bool(work.hyper.entry_rank))
    term = _fit_entries(work, prepared, start, needed, scale)
    if work.hyper.entry_rank is None:
        failing = _failing(work, prepared, term)
        if failing.any():
            term = _fit_entries(work, prepared, term, failing, scale)
    return term


def _num_positions(network: Network, prepared: Prepared) -> int:
    """How many values an entry needs, if the layer sees the answer: one for each token of the longest, and
    one for what comes behind it, which is never trained: there the base goes on.
    """
    if not sees_answer_tokens(network, prepared.layer):
        return 1
    asked = [chunk.trunk.batch.answer_mask for chunk in prepared.corrections.chunks]
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
        wrong = min_margin_per_sample(answers_with_term(work.network, chunk, term)) <= 0
        own = chunk.samples < len(work.batch.corrections)
        failing[chunk.firing.entry.cpu()[wrong.cpu() & own]] = True
    return failing


def num_near(hyper: Hyperparameters) -> int:
    """How many pass samples train the values of a scoped job: none, unless it asks for their pull."""
    return NEAR_SAMPLES if hyper.kl_weight else 0


def _prepare_scoped(work: Work, scoping: Scoping) -> tuple[Prepared, float]:
    """Corrections and their rewordings as they fire; stand-ins and the nearest pass samples as if they did.

    Most pass samples never feel an entry, so they teach it nothing; the nearest stand for those that will,
    where the job asks for a pull of pass samples at all.
    Validation needs only those of the calibration part on which something fires: no other can change.
    """
    network, layer, own = work.network, work.layer, work.batch.corrections
    learning = (~scoping.calibration).nonzero()[:, 0]
    near = learning[scoping.kept.margin[learning].argsort(descending=True)[: num_near(work.hyper)]]
    firing = ((scoping.kept.gate > 0) & scoping.calibration).nonzero()[:, 0]
    as_if = scoping.kept.rows(near)
    keep, moment = prepare_with_answers(network, _pick(work.batch, near), layer, chunk_size=CHUNK)
    validation, _ = prepare_with_answers(network, _pick(work.batch, firing), layer, chunk_size=CHUNK)
    rng = random.Random(work.hyper.seed)
    apart = work.batch.held_out_words
    drawn = [augmented(network, own, rng, held_out=apart) for _ in range(work.hyper.augmentations)]
    other_words = [sample for draw in drawn for sample in draw]
    owners, standing_in = _stand_ins(work, _pick(work.batch, learning), rng)
    corrections = prepare(network, [*own, *other_words, *standing_in], layer, chunk_size=CHUNK)
    every = torch.arange(len(own), device=network.device).repeat(1 + work.hyper.augmentations)
    # The first corrections are the edits themselves, so an edit's number is a place among them.
    own_firing = scoping.corrections.rows(torch.cat([every, owners]))
    prepared = Prepared(
        layer,
        corrections=corrections.with_firing(own_firing),
        keep=keep.with_firing(replace(as_if, gate=torch.ones_like(as_if.gate))),
        validation=validation.with_firing(scoping.kept.rows(firing)),
        inputs_to_keep=moment,
        num_own_corrections=len(own) + len(other_words),
    )
    return prepared, _state_scale(network, corrections)


def num_stand_ins(network: Network, layer: Layer, hyper: Hyperparameters) -> int:
    """How many stand-ins an edit has: only in a classifier's last block can a value answer for any input."""
    return hyper.anchor_samples if layer in last_layers(network.layers) and not network.task.generates else 0


def _stand_ins(work: Work, learning: Sequence[Sample], rng: random.Random) -> tuple[Tensor, list[Sample]]:
    """Pass samples asked for an edit's answer, and whose [s]: they stand for all that its scope may hold.

    What lies inside a scope is answered as the edit. An edit and its rewordings alone teach a value to do
    that for their own states; those of any other text teach it not to depend on the state. What is to be
    forgotten has no answer to be given instead.
    """
    number = min(num_stand_ins(work.network, work.layer, work.hyper), len(learning))
    owned = [
        (edit, other.model_copy(update={"target": sample.target}))
        for edit, sample in enumerate(work.batch.edit_samples)
        if not sample.forgets
        for other in rng.sample(learning, number)
    ]
    owners = torch.tensor([edit for edit, _ in owned], dtype=torch.long, device=work.network.device)
    return owners, [sample for _, sample in owned]


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


@torch.no_grad()
def attainable_margin(network: Network, keep: Sequence[Sample], margin: float) -> float:
    """The margin asked for, but no more than the network itself has on the median of pass samples.

    A classifier that was trained gently never leads by much, however hard a correction pulls.
    """
    few = keep[:MARGIN_SAMPLES]
    if not few or not margin:
        return margin
    own = float(min_margin_per_sample(forward(network, encode(network, few))).median())
    return min(margin, own) if own > 0 else margin
