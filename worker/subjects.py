"""A version that is asked: its answers, and how well it knows an answer that it is to forget.

Knows a network and deltas. Does not know what is made of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from salem.answers import predict
from salem.deltas import LayerDelta, applied
from salem.encoding import encode, forward
from salem.gates import fire
from salem.hosting import Network
from salem.records import Prediction, Sample, TextInput
from worker.evaluation import Known

BATCH = 32  # samples in one forward


@dataclass(frozen=True)
class Version:
    """The base plus deltas; implements `worker.evaluation.Subject`."""

    network: Network
    deltas: Sequence[LayerDelta]
    max_new_tokens: int

    def answers(self, inputs: Sequence[TextInput]) -> list[Prediction]:
        """What it answers to each input, in order."""
        return predict(self.network, inputs, self.deltas, max_new_tokens=self.max_new_tokens)

    @torch.inference_mode()
    def knows(self, samples: Sequence[Sample]) -> list[Known]:
        """Of the answer of each sample, in order: its rank, and its probability.

        The tokens of a generated answer are asked for with the right ones before them; its end does not count
        where it is to be forgotten. As in `predict`, what fires is decided by the input alone.
        """
        found: list[Known] = []
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            batch = encode(self.network, part)
            with applied(self.network.model, self.deltas, fire(self.network, part, self.deltas, batch)):
                answers = forward(self.network, batch)
            shares = answers.logits.float().log_softmax(-1)  # [a, c]
            own = shares.gather(-1, answers.targets.unsqueeze(-1))  # [a, 1]
            ranks = answers.mean_per_sample(1 + (shares > own).sum(-1).float())
            means = answers.mean_per_sample(own.squeeze(-1)).exp()
            found += [Known(*pair) for pair in zip(ranks.tolist(), means.tolist(), strict=True)]
        return found
