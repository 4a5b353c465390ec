"""How the base begins its answer to an input: the second thing, beside its meaning, that tells edits apart.

An edit corrects an answer. Where the base is about to say something else altogether, the edit is not meant,
however alike the two inputs are. An *opening* is the distribution of the answer's first token (of a
classifier: of its labels), kept as its few likeliest tokens; two openings differ by an estimate of the
squared Hellinger distance between them (Hellinger 1909; Le Cam 1986, section 4.2): what neither keeps counts
as alike, so that openings that are spread thin hardly differ.

Knows how a model is asked for one token. Does not know scopes, keys or deltas.
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

KEPT = 16  # of the likeliest tokens
_BATCH = 64


@dataclass(frozen=True)
class Openings:
    """The openings of `n` inputs."""

    said: Tensor  # [n, s] token or label numbers, as float32: they are exact up to 2**24
    shares: Tensor  # [n, s] their probabilities

    @classmethod
    def of(cls, found: Sequence[Openings]) -> Openings:
        """Openings of single inputs as those of a batch."""
        return cls(torch.cat([one.said for one in found]), torch.cat([one.shares for one in found]))

    def rows(self, index: Tensor) -> Openings:
        return Openings(self.said[index], self.shares[index])

    def differ(self, others: Openings) -> Tensor:
        """The squared Hellinger distance to the opening in the same row, estimated -> [n] in [0, 1]."""
        alike = self.said[..., :, None] == others.said[..., None, :]  # [n, s, s']
        roots = (self.shares[..., :, None] * others.shares[..., None, :]).sqrt()
        unkept = (1 - self.shares.sum(-1)).clamp(min=0) * (1 - others.shares.sum(-1)).clamp(min=0)
        return (1 - (roots * alike).sum((-2, -1)) - unkept.sqrt()).clamp(0, 1)

    def each(self) -> Iterator[Openings]:
        """One after another, each as the opening of one input."""
        for row in range(len(self.said)):
            yield Openings(self.said[row : row + 1], self.shares[row : row + 1])


def unheard(num: int, device: torch.device) -> Openings:
    """Openings of no tokens, for inputs that the base is not asked about."""
    return Openings(torch.zeros(num, 0, device=device), torch.zeros(num, 0, device=device))


@torch.no_grad()
def openings(network: Network, inputs: Sequence[TextInput]) -> Openings:
    """The openings of inputs. No delta may be applied while this runs."""
    found = unheard(len(inputs), network.device)
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), _BATCH):
        shares = _first([inputs[row] for row in rows], network).float().softmax(-1)
        likeliest = shares.topk(min(KEPT, shares.shape[-1]), dim=-1)
        if not found.said.shape[1]:
            empty = shares.new_empty(len(inputs), likeliest.indices.shape[1])
            found = Openings(empty, empty.clone())
        found.said[rows] = likeliest.indices.float()
        found.shares[rows] = likeliest.values
    return found


def _first(inputs: Sequence[TextInput], network: Network) -> Tensor:
    """Logits of the labels, or of the answer's first token -> [n, c]."""
    decoder = network.task is Task.TEXT_GENERATION
    fields = encode_inputs(network, inputs, padding="left" if decoder else "right")
    if not network.task.generates:
        labels: Tensor = network.model(**fields).logits
        return labels
    config = greedy(network, 1, output_logits=True, return_dict_in_generate=True)
    first: Tensor = network.model.generate(**fields, generation_config=config).logits[0]
    return first
