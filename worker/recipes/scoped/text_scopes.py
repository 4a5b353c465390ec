"""Draws the text scopes of a job: the texts of its edits and paraphrases as keys, each with its own bound.

A bound lies above the nearest texts that must not match: other edits, pass samples, given and generated
neighbors, and keys of the parent. No metric is trained and the hosted model is not asked, so scopes
take seconds. Must not know what an entry does when it fires.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from salem.models.network import Network
from salem.records import EditBatch
from salem.scope.encoder import ScopeEncoder
from salem.scope.firing import Firing, Reading
from salem.scope.lookups import BatchLookups
from salem.scope.questions import question_of
from salem.scope.text_scope import EXACT, TextScope
from worker.recipes.base import EditTask
from worker.recipes.scoped.scoping import Scoping, entries
from worker.recipes.scoped.warnings import find_overlaps, scope_warnings

CLEARANCE = 0.5  # of a score: how far a bound stays above a neighbor
FITTING = 0.4  # share of the job's own paraphrases that scopes must hold
MOST_TOKENS_PER_WORD = 2.5  # more: the encoder does not know the language


def unreadable(task: EditTask, encoder: ScopeEncoder) -> str | None:
    """Why the encoder cannot compare the job's texts; None if it can."""
    if any(sample.text_pair for sample in task.batch.corrections):
        return "inputs are pairs of texts"
    texts = [question_of(task.network, sample) for sample in task.batch.corrections]
    if encoder.tokens_per_word(texts) > MOST_TOKENS_PER_WORD:
        return "it does not know the language of the edits"
    return None


def too_few_held(task: EditTask, encoder: ScopeEncoder) -> str | None:
    """That the encoder's scopes would hold too few of the job's own paraphrases; None if they hold enough."""
    batch = task.batch
    if not batch.adapt_samples:
        return None
    texts = [question_of(task.network, sample) for sample in batch.corrections]
    scope = _with_common_bounds(encoder, texts, batch)
    num_edits = len(batch.edit_samples)
    held = [
        bool(scope.scores([texts[num_edits + place]])[0, edit] > encoder.bound)
        for place, (edit, _) in enumerate(batch.adapt_samples)
    ]
    if sum(held) < FITTING * len(held):
        return f"it accepts only {sum(held)} of {len(held)} paraphrases"
    return None


def draw_text_scopes(task: EditTask, encoder: ScopeEncoder) -> Scoping:
    """Scopes for the edits of a job: one key per edit and per adapt sample."""
    network, batch = task.network, task.batch
    texts = [question_of(network, sample) for sample in batch.corrections]
    kept = [question_of(network, sample) for sample in batch.pass_samples]
    widest = _with_common_bounds(encoder, texts, batch)
    own, likeness = widest.scores(texts), widest.scores(kept)  # [k, k], [p, k]
    near = widest.scores([question_of(network, neighbor) for neighbor in batch.neighbors])
    rivals = torch.cat([likeness, near, _other_goals(own, batch), *_of_parent(task, widest)])
    bounds = calibrated_bounds(encoder.bound, rivals)
    scope = TextScope(encoder, widest.keys, bounds, widest.owners, widest.texts)
    owners = torch.tensor(batch.owners)
    overlaps = find_overlaps(owners, lambda rows: own[rows] - bounds)
    return Scoping(
        scope=scope,
        is_new=False,
        corrections=_as_is(network, owners, overlaps.margin),
        kept=scope.fire(Reading(kept, BatchLookups(network, batch.pass_samples), device=network.device)),
        calibration=torch.ones(len(kept), dtype=torch.bool, device=network.device),
        entries=entries(owners, bounds, likeness, batch),
        warnings=scope_warnings(likeness > bounds, likeness, overlaps, batch, network.turns),
    )


def calibrated_bounds(common: float, rivals: Tensor) -> Tensor:
    """The bound of each key [k]: the common one, or a little above the nearest text that must not match.

    A key's own words always match. Paraphrases of the edit are keys themselves, so they lower no bound.

    Args:
        rivals: [q, k] scores of texts that must not match. One with the very words of a key cannot be told
            from it and says nothing about other texts.
    """
    bounds = rivals.new_full((rivals.shape[1],), common)
    if len(rivals):
        nearest = rivals.masked_fill(rivals >= EXACT, -torch.inf).amax(0)
        bounds = torch.maximum(bounds, nearest + CLEARANCE)
    return bounds.clamp(max=EXACT - CLEARANCE)


def _with_common_bounds(encoder: ScopeEncoder, texts: Sequence[str], batch: EditBatch) -> TextScope:
    owners = torch.tensor(batch.owners, dtype=torch.float32)
    return TextScope.of(encoder, texts, torch.full_like(owners, encoder.bound), owners)


def _other_goals(own: Tensor, batch: EditBatch) -> Tensor:
    """Scores [k, k] of corrections at the keys of edits with another answer; elsewhere -infinity."""
    kinds: dict[object, int] = {}
    goals = torch.tensor([kinds.setdefault(sample.goal, len(kinds)) for sample in batch.corrections])
    return own.masked_fill(goals[:, None] == goals, -torch.inf)


def _of_parent(task: EditTask, widest: TextScope) -> Iterator[Tensor]:
    """Scores [q, k] of the parent's keys that are other questions.

    A key of the parent with about the same words is the same question, which the job corrects again.
    """
    for delta in task.parent:
        scope = delta.scoped and delta.scoped.scope
        if isinstance(scope, TextScope) and scope.reader == widest.reader:
            scores = widest.scores(scope.key_texts)
            yield scores.masked_fill(scores >= EXACT, -torch.inf)


def _as_is(network: Network, owners: Tensor, margin: Tensor) -> Firing:
    """Each correction fires its own entry."""
    place = network.device
    return Firing(owners.to(place), margin.to(place), torch.ones(len(owners), device=place))
