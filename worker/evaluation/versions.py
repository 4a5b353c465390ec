"""A version that is asked: its answers, and how well it knows an answer that it is to forget.

An input that the newest scopes do not hold is answered as by the version below, so it is asked there, and
once. Knows a network and deltas. Does not know what is made of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from salem.deltas.terms import LayerDelta, applied
from salem.inference.gate import fire
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from salem.models.network import Network
from salem.records import Sample, TextInput
from salem.scope.lookups import Asking
from salem.scope.scope import Scoped
from worker.activations.cache import SampleCache
from worker.activations.scope_features import cached_points
from worker.evaluation.metrics import AnswerLikelihood

BATCH = 32  # samples in one forward
EDGE = 0.01  # of a likeness: what lies so near outside a scope is asked, too; another batch rounds otherwise


@dataclass(frozen=True)
class Version:
    """The base plus deltas, as a `Subject` of an evaluation. Remembers what it has answered."""

    network: Network
    deltas: Sequence[LayerDelta]
    max_new_tokens: int
    known: dict[str, str] = field(default_factory=dict)  # answers by the content hash of their input
    together: int = 64  # inputs in one forward

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        """What it answers to each input, in order."""
        asked = {item.content_hash: item for item in inputs}
        new = [item for key, item in asked.items() if key not in self.known]
        room, together = self.max_new_tokens, self.together
        found = predict(self.network, new, self.deltas, max_new_tokens=room, batch_size=together)
        self.known.update((item.content_hash, answer.output) for item, answer in zip(new, found, strict=True))
        return [self.known[item.content_hash] for item in inputs]

    def writing(self, max_new_tokens: int) -> Version:
        """The same version with room for longer answers; fewer are written at once, so memory stays."""
        if max_new_tokens == self.max_new_tokens:
            return self
        together = max(1, self.together * self.max_new_tokens // max_new_tokens)
        return replace(self, max_new_tokens=max_new_tokens, together=together, known={})

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        """Which inputs its newest delta may have changed the answer of: all, for a plain one acts on all."""
        return [True] * len(inputs)

    @torch.inference_mode()
    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]:
        """Of the answer of each sample, in order: its rank, and its probability.

        The tokens of a generated answer are asked for with the right ones before them; its end does not count
        where it is to be forgotten. As in `predict`, what fires is decided by the input alone.
        """
        found: list[AnswerLikelihood] = []
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            batch = encode(self.network, part)
            with applied(self.network.model, self.deltas, fire(self.network, part, self.deltas, batch)):
                answers = forward(self.network, batch)
            shares = answers.logits.float().log_softmax(-1)  # [a, c]
            own = shares.gather(-1, answers.targets.unsqueeze(-1))  # [a, 1]
            ranks = answers.mean_per_sample(1 + (shares > own).sum(-1).float())
            means = answers.mean_per_sample(own.squeeze(-1)).exp()
            found += [AnswerLikelihood(*pair) for pair in zip(ranks.tolist(), means.tolist(), strict=True)]
        return found


@dataclass(frozen=True)
class Overlaid:
    """A version with entries laid on top: only inputs that their scopes hold are asked anew."""

    below: Version
    entries: LayerDelta
    cache: SampleCache | None = None  # of the base, for where inputs lie

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        """What it answers to each input, in order."""
        held = self.may_differ(inputs)
        outside = [item for item, near in zip(inputs, held, strict=True) if not near]
        inside = [item for item, near in zip(inputs, held, strict=True) if near]
        answers = iter(self.below.answers(outside)), iter(self._whole.answers(inside))
        return [next(answers[near]) for near in held]

    def writing(self, max_new_tokens: int) -> Overlaid:
        """The same version with room for longer answers."""
        return replace(self, below=self.below.writing(max_new_tokens))

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        """Which inputs the new scopes hold, or would but for a rounding: they prevail over all below."""
        if not inputs:
            return []
        network, scoped = self.below.network, self.entries.scoped
        assert scoped is not None, "entries fire or do not"
        points = cached_points(
            network, inputs, scoped.metric, partial(scoped.metric.read, network), self.cache
        )
        firing = scoped.scope.fire_at(points, Asking(network, inputs))
        found: list[bool] = (firing.inside > -EDGE).tolist()
        return found

    def answer_likelihoods(self, samples: Sequence[Sample]) -> list[AnswerLikelihood]:
        return self._whole.answer_likelihoods(samples)

    @property
    def _whole(self) -> Version:
        return replace(self.below, deltas=(*self.below.deltas, self.entries), known={})


def on_top(below: Version, delta: LayerDelta, cache: SampleCache | None = None) -> Version | Overlaid:
    """The version with one more delta; `cache` is of the base."""
    if all(isinstance(term, Scoped) for term in delta.terms):
        return Overlaid(below, delta, cache)
    return replace(below, deltas=(*below.deltas, delta), known={})
