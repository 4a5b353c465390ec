"""Versions under evaluation: what they answer, and how likely they find given answers.

Each remembers its answers. A version that only adds scoped entries runs only for inputs that the new scopes
hold; all others have the answer of the version below. Must not know what the answers are used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from salem.deltas.chain import Chain, joined
from salem.deltas.terms import LayerDelta, Scoped
from salem.inference.gate import fire
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Sample, TextInput
from salem.scope.firing import Reading
from salem.scope.lookups import BatchLookups
from salem.scope.questions import question_of
from salem.scope.scope import Scope
from salem.scope.text_scope import TextScope
from worker.activations.cache import SampleCache
from worker.activations.scope_features import cached_points
from worker.evaluation.metrics import AnswerLikelihood

BATCH = 32  # samples in one forward pass
EDGE = 0.01  # of a likeness: inputs this close outside run too, because other batches round otherwise


@dataclass(frozen=True)
class EditedModel:
    """The base plus deltas, as an `AnswerSource`. It remembers its answers."""

    network: Network
    deltas: Chain | Sequence[LayerDelta]
    max_new_tokens: int
    known: dict[str, str] = field(default_factory=dict)  # answers by the content hash of their input
    batch_size: int = 64

    @cached_property
    def chain(self) -> Chain:
        return joined(self.deltas)

    def with_delta(self, delta: LayerDelta) -> EditedModel:
        """The version with one more delta."""
        return replace(self, deltas=Chain.concat([self.chain, Chain.of([delta])]), known={})

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        """Its answer to each input, in order."""
        asked = {item.content_hash: item for item in inputs}
        new = [item for key, item in asked.items() if key not in self.known]
        room, batch_size = self.max_new_tokens, self.batch_size
        found = predict(self.network, new, self.chain, max_new_tokens=room, batch_size=batch_size)
        self.known.update((item.content_hash, answer.output) for item, answer in zip(new, found, strict=True))
        return [self.known[item.content_hash] for item in inputs]

    def writing(self, max_new_tokens: int) -> EditedModel:
        """The same version with longer answers, in smaller batches that need no more memory."""
        if max_new_tokens == self.max_new_tokens:
            return self
        batch_size = max(1, self.batch_size * self.max_new_tokens // max_new_tokens)
        return replace(self, max_new_tokens=max_new_tokens, batch_size=batch_size, known={})

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        """For which inputs the newest delta may change the answer: all, because a plain one acts on all."""
        return [True] * len(inputs)

    @torch.inference_mode()
    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]:
        """The rank and the probability of each sample's answer, in order.

        Each token of a generated answer is read after the correct tokens before it. If the answer must be
        forgotten, its end does not count. As in `predict`, what fires depends on the input alone.
        """
        found: list[AnswerLikelihood] = []
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            batch = encode(self.network, part)
            firing = fire(self.network, part, self.chain, batch)
            with self.chain.applied(self.network.model, lambda firing=firing: firing):  # type: ignore[misc]
                answers = forward(self.network, batch)
            log_probabilities = answers.logits.float().log_softmax(-1)  # [a, c]
            own = log_probabilities.gather(-1, answers.targets.unsqueeze(-1))  # [a, 1]
            ranks = answers.mean_per_sample(1 + (log_probabilities > own).sum(-1).float())
            means = answers.mean_per_sample(own.squeeze(-1)).exp()
            found += [AnswerLikelihood(*pair) for pair in zip(ranks.tolist(), means.tolist(), strict=True)]
        return found


@dataclass(frozen=True)
class OverlaidModel:
    """A version with scoped entries on top: only inputs that the new scopes hold are answered anew."""

    below: EditedModel
    entries: LayerDelta
    cache: SampleCache | None = None  # of the base, for the points of inputs

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        """Its answer to each input, in order."""
        held = self.may_differ(inputs)
        outside = [item for item, near in zip(inputs, held, strict=True) if not near]
        inside = [item for item, near in zip(inputs, held, strict=True) if near]
        answers = iter(self.below.answers(outside)), iter(self._whole.answers(inside))
        return [next(answers[near]) for near in held]

    def writing(self, max_new_tokens: int) -> OverlaidModel:
        """The same version with longer answers."""
        return replace(self, below=self.below.writing(max_new_tokens))

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        """Which inputs the new scopes hold, or would hold but for rounding. They prevail over older ones."""
        if not inputs:
            return []
        assert self.entries.scoped is not None, "only a scoped term tells which inputs it changes"
        found: list[bool] = (self._margins(inputs, self.entries.scoped.scope) > -EDGE).tolist()
        return found

    def _margins(self, inputs: Sequence[TextInput], scope: Scope) -> Tensor:
        network = self.below.network
        lookups = BatchLookups(network, inputs)
        if isinstance(scope, TextScope):
            asked = [question_of(network, item) for item in inputs]
            return scope.fire(Reading(asked, lookups)).margin
        points = cached_points(
            network, inputs, scope.metric, partial(scope.metric.embed, network), self.cache
        )
        return scope.fire_at(points, lookups).margin

    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]:
        return self._whole.answer_likelihoods(samples)

    @cached_property
    def _whole(self) -> EditedModel:
        return self.below.with_delta(self.entries)


def on_top(
    below: EditedModel, delta: LayerDelta, cache: SampleCache | None = None
) -> EditedModel | OverlaidModel:
    """The version with one more delta; `cache` is of the base."""
    if all(isinstance(term, Scoped) for term in delta.terms):
        return OverlaidModel(below, delta, cache)
    return below.with_delta(delta)
