"""Scoped recipes that do not train values: they fix a direction and search the length at which edits hold.

The closed form takes the negative loss gradient of each value, which lowers the linearized loss most for a
given length. The other recipe takes the output updates of a MEND editor trained on the job, at the edit's own
tokens (pseudo-gradients; Mitchell et al., ICLR 2022, section 3.1). The ablation compares both with trained
values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salem.deltas.terms import LowRank, Scoped
from salem.errors import EditFailed
from salem.records import Layer, Sample
from worker.activations.gradients import suffix_gradients
from worker.activations.trunk_sets import Chunk
from worker.hypernetworks.mend import Factors
from worker.hypernetworks.mend_learner import MendLearner, MendTraining, joined, mend_learner
from worker.recipes.base import EditTask
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.recipe import ScopedRecipe
from worker.recipes.scoped.training_set import TrainingSet
from worker.training.loop import Prepared, edit_loss, states_with_term
from worker.training.micro_batches import MicroBatches, WeightedLoss

SIZES = tuple(
    2.0**power for power in range(-2, 7)
)  # lengths of a value to try, in units of the state's scale


class UntrainedRecipe(ScopedRecipe):
    """`scoped` with values along a given direction."""

    @abstractmethod
    def direction(self, task: EditTask, options: ScopedOptions, prepared: Prepared, start: Scoped) -> Tensor:
        """The direction of each value -> [e, p, d_out]."""

    def with_values(
        self, task: EditTask, options: ScopedOptions, samples: TrainingSet, start: Scoped
    ) -> Scoped:
        direction = self.direction(task, options, samples.prepared, start)
        along = ValueDirections(start, direction, samples.scale, options.margin)
        return along.shortest(task, samples.prepared)

    def failure(self, layer: Layer, edits: Sequence[Sample]) -> EditFailed:
        return EditFailed(f"None of the {len(edits)} edits holds at {layer.path} with untrained values.")


class ClosedFormRecipe(UntrainedRecipe):
    """Values along the negative loss gradient."""

    def direction(self, task: EditTask, options: ScopedOptions, prepared: Prepared, start: Scoped) -> Tensor:
        return closed_form(task, options, prepared, start)


class EditorValuesOptions(ScopedOptions):
    """Options of `EditorValuesRecipe`."""

    mend: MendTraining = MendTraining()


class EditorValuesRecipe(UntrainedRecipe):
    """Values along the updates of a MEND editor."""

    Options = EditorValuesOptions

    def direction(self, task: EditTask, options: ScopedOptions, prepared: Prepared, start: Scoped) -> Tensor:
        assert isinstance(options, EditorValuesOptions)
        shared = options.model_dump(include={"max_steps", "margin", "rest_when_held"})
        return editor_direction(task, options.mend.model_copy(update=shared), start)


def closed_form(task: EditTask, options: ScopedOptions, prepared: Prepared, start: Scoped) -> Tensor:
    """The negative gradient of the corrections' loss with respect to each value -> [e, p, d_out]."""
    values = nn.Parameter(start.values.clone())
    loss = partial(edit_loss, task.network, margin=options.margin)
    shares = [WeightedLoss(chunk, len(chunk), loss) for chunk in prepared.corrections.chunks]
    (gradient,) = MicroBatches().gradients(shares, lambda: replace(start, values=values), [values])
    return -gradient


def editor_direction(task: EditTask, options: MendTraining, start: Scoped) -> Tensor:
    """The sum of a trained editor's output updates at the tokens of each answer position -> [e, p, d_out].

    The editor trains on rows of single tokens, because a sum over tokens does not show where it changes the
    output.
    """
    whole = task.prepare()
    size = options.gradient_batch
    parts = [part for chunk in whole.corrections.chunks for part in _token_rows(task, chunk, start, size)]
    factors = joined([factors for factors, _ in parts])
    learner = mend_learner(task.network, whole, options, task.generator, factors)
    found = task.fit(whole, TokenLearner(learner.editor, learner.factors, learner.projection), options)
    assert isinstance(found, LowRank), "one row per token"
    chosen = F.one_hot(torch.cat([slots for _, slots in parts]), start.values.shape[:2].numel())
    return (chosen.T.to(found.b.dtype) @ found.b.T).reshape(start.values.shape)


class TokenLearner(MendLearner):
    """MEND with one row per token, kept as factors."""

    def term(self) -> LowRank:
        return self.rows()


def _token_rows(task: EditTask, chunk: Chunk, start: Scoped, size: int) -> Iterator[tuple[Factors, Tensor]]:
    """For `size` samples at a time: the tokens with a gradient, and the index of the value of each [k]."""
    num_positions = start.values.shape[1]
    owners = torch.tensor(task.batch.owners, device=task.network.device)
    for rows in torch.arange(len(chunk)).split(size):
        part = chunk.rows(rows)
        found = suffix_gradients(task.network, part.trunk)
        u, v = found.token_rows()
        samples, columns = found.token_places().T
        starts = part.trunk.batch.answer_starts.to(columns.device)
        positions = (columns - starts[samples]).clamp(min=0, max=num_positions - 1)
        entries = owners[part.samples.to(owners.device)[samples]]
        yield Factors(u.float(), v.float()), entries * num_positions + positions


class ValueDirections:
    """Entries whose values lie along given directions [e, p, d_out]."""

    def __init__(self, start: Scoped, direction: Tensor, scale: float, margin: float) -> None:
        length = direction.square().mean(-1).sqrt().amax(-1)[:, None, None]  # [e, 1, 1] longest position
        self.unit = scale * direction / length.clamp(min=torch.finfo(direction.dtype).tiny)
        self.start, self.margin = start, margin

    @torch.no_grad()
    def shortest(self, task: EditTask, prepared: Prepared) -> Scoped:
        """The shortest values whose corrections hold with the margin, or else those with the best margin."""
        terms = (replace(self.start, values=size * self.unit) for size in SIZES)
        worst = torch.stack([worst_margin(task, prepared, term) for term in terms])
        holding = worst >= self.margin
        first = torch.where(holding.any(0), holding.int().argmax(0), worst.argmax(0))  # [e]
        sizes = torch.tensor(SIZES, device=self.unit.device)[first]
        return replace(self.start, values=sizes[:, None, None] * self.unit)


def worst_margin(task: EditTask, prepared: Prepared, term: Scoped) -> Tensor:
    """The smallest margin of each entry's corrections, without anchor samples -> [e]."""
    margins = states_with_term(task.network, prepared.corrections, term).min_margin
    if prepared.num_own_corrections is not None:
        margins[prepared.num_own_corrections :] = float("inf")
    worst = margins.new_full((len(term.values),), float("inf"))
    for chunk in prepared.corrections.chunks:
        assert chunk.firing is not None
        worst = worst.scatter_reduce(0, chunk.firing.entry, margins[chunk.samples], reduce="amin")
    return worst
