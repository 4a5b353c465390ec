"""First tokens: how the base starts its answer to an input, as a second test beside the metric.

An edit corrects an answer. Where the base is about to say something else, the edit is not meant, however
similar the two inputs are. This module reads the distribution of the answer's first token (for a classifier,
of its labels), keeps the likeliest few, and compares two of them by an estimate of the squared Hellinger
distance (Hellinger 1909; Le Cam 1986, section 4.2). The mass outside the kept tokens counts as equal, so flat
distributions hardly differ.

Must not know scopes, keys, or deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.models.batching import encode_inputs, in_buckets
from salem.models.generation import greedy
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Task, TextInput

KEPT = 16  # likeliest tokens per input
_BATCH = 64


@dataclass(frozen=True)
class FirstTokens:
    """The likeliest first tokens of the base's answers to `n` inputs."""

    token_ids: Tensor  # [n, s] token or label numbers, as float32: they are exact up to 2**24
    token_probabilities: Tensor  # [n, s]

    @classmethod
    def concat(cls, parts: Sequence[FirstTokens]) -> FirstTokens:
        ids, probabilities = zip(*((p.token_ids, p.token_probabilities) for p in parts), strict=True)
        return cls(torch.cat(ids), torch.cat(probabilities))

    def rows(self, index: Tensor) -> FirstTokens:
        """The inputs at `index` [r]."""
        return FirstTokens(self.token_ids[index], self.token_probabilities[index])

    def distance(self, others: FirstTokens) -> Tensor:
        """The estimated squared Hellinger distance to the distribution in the same row -> [n] in [0, 1]."""
        ours, theirs = self.token_probabilities, others.token_probabilities
        same = self.token_ids[..., :, None] == others.token_ids[..., None, :]  # [n, s, s']
        roots = (ours[..., :, None] * theirs[..., None, :]).sqrt()
        rest = (1 - ours.sum(-1)).clamp(min=0) * (1 - theirs.sum(-1)).clamp(min=0)
        return (1 - (roots * same).sum((-2, -1)) - rest.sqrt()).clamp(0, 1)

    def each(self) -> Iterator[FirstTokens]:
        """Those of one input after another."""
        for row in range(len(self.token_ids)):
            yield FirstTokens(self.token_ids[row : row + 1], self.token_probabilities[row : row + 1])


def no_first_tokens(num_inputs: int, device: torch.device) -> FirstTokens:
    """A distribution without tokens for each input: the base was not asked."""
    return FirstTokens(torch.zeros(num_inputs, 0, device=device), torch.zeros(num_inputs, 0, device=device))


@torch.no_grad()
def first_tokens(network: Network, inputs: Sequence[TextInput]) -> FirstTokens:
    """The base's first tokens for inputs. No delta may be applied while this runs."""
    found = no_first_tokens(len(inputs), network.device)
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), _BATCH):
        probabilities = _first_logits([inputs[row] for row in rows], network).float().softmax(-1)
        top = probabilities.topk(min(KEPT, probabilities.shape[-1]), dim=-1)
        if not found.token_ids.shape[1]:
            empty = probabilities.new_empty(len(inputs), top.indices.shape[1])
            found = FirstTokens(empty, empty.clone())
        found.token_ids[rows] = top.indices.float()
        found.token_probabilities[rows] = top.values
    return found


def _first_logits(inputs: Sequence[TextInput], network: Network) -> Tensor:
    """Logits of the labels, or of the answer's first token -> [n, c]."""
    decoder = network.task is Task.TEXT_GENERATION
    fields = encode_inputs(network, inputs, padding="left" if decoder else "right")
    if not network.task.generates:
        labels: Tensor = network.model(**fields).logits
        return labels
    config = greedy(network, 1, output_logits=True, return_dict_in_generate=True)
    first: Tensor = network.model.generate(**fields, generation_config=config).logits[0]
    return first
