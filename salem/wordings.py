"""Which words an input has: the third thing that tells edits apart, where meanings hardly differ.

Two requests that name another year, another town or another article number lie next to each other in any
pooled state. What one of them has *in place of* the other's words is weighed: a rewording adds words or
leaves some out, a twin exchanges them. A *wording* is the set of an input's tokens; those of its second text
count as other tokens than those of its first.

Knows tokenizers. Does not know scopes or deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.hosting import Network, tokenize
from salem.records import TextInput

NOTHING = -1.0  # fills the rows up
KEPT = 64  # of the heaviest tokens, where a wording is stored


@dataclass(frozen=True)
class Wordings:
    """The wordings of `n` inputs."""

    words: Tensor  # [n, s] token numbers, as float32: they are exact up to 2**24; s may be 0

    @classmethod
    def of(cls, found: Sequence[Wordings]) -> Wordings:
        """Wordings of single inputs as those of a batch."""
        rows = [one.words[0] for one in found]
        return cls(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOTHING))

    def rows(self, index: Tensor) -> Wordings:
        return Wordings(self.words[index])

    def exchanged(self, others: Wordings, weights: Tensor) -> Tensor:
        """How much of each wording stands in place of what the other in the same row has -> [n].

        The lighter of two sums of weights: of the words that only the one has, and of those that only the
        other has. Nothing is exchanged where words were only added, or only left out. The others may be cut
        to their heaviest words: what is no heavier than these is then not taken for new.

        Args:
            weights: [vocabulary] of each token.
        """
        alike = self.words[:, :, None] == others.words[:, None, :]  # [n, s, s']
        own, its = self.weighed(weights), others.weighed(weights)
        known_from = torch.where(others.full, its.amin(-1) if its.shape[1] else 0.0, -1.0)
        new = (own * (~alike.any(-1) & (own > known_from[:, None]))).sum(-1)
        gone = (its * ~alike.any(-2)).sum(-1)
        return torch.minimum(new, gone)

    @property
    def full(self) -> Tensor:
        """Which wordings may have had more words, lighter than those that were kept -> [n] bool."""
        enough = self.words.shape[1] >= KEPT
        return (self.words != NOTHING).all(-1) & enough

    def each(self) -> Iterator[Wordings]:
        """One after another, each as the wording of one input, as short as it is."""
        for row in self.words:
            yield Wordings(row[None, row != NOTHING])

    def weighed(self, weights: Tensor) -> Tensor:
        """The weight of each word [n, s]; 0 where there is none."""
        return weights[self.words.long() % len(weights)] * (self.words != NOTHING)

    def heaviest(self, weights: Tensor) -> Wordings:
        """The wordings as they are stored: with no more than `KEPT` words, those of the greatest weight."""
        if self.words.shape[1] <= KEPT:
            return self
        kept = self.weighed(weights).topk(KEPT, dim=-1).indices.sort(dim=-1).values
        return Wordings(self.words.gather(-1, kept))


def unworded(num: int, device: torch.device) -> Wordings:
    """Wordings of no words, where words do not count."""
    return Wordings(torch.zeros(num, 0, device=device))


def wordings(network: Network, inputs: Sequence[TextInput]) -> Wordings:
    """The wordings of inputs; a second text that the tokenizer does not tell apart counts with the first."""
    if not inputs:
        return unworded(0, network.device)
    size = network.model.get_input_embeddings().num_embeddings
    found = [Wordings(torch.tensor([sorted(words)]).float()) for words in token_sets(network, inputs, size)]
    return Wordings(Wordings.of(found).words.to(network.device))


def token_sets(network: Network, inputs: Sequence[TextInput], size: int) -> list[set[int]]:
    """The tokens of each input; to those of a second text, `size` is added."""
    encoded = tokenize(network.tokenizer, inputs)
    types = encoded.get("token_type_ids") or [[0] * len(ids) for ids in encoded["input_ids"]]
    return [
        {number + size * kind for number, kind in zip(*pair, strict=True)}
        for pair in zip(encoded["input_ids"], types, strict=True)
    ]


def steadiness(network: Network, pairs: Sequence[tuple[TextInput, TextInput]]) -> Tensor:
    """How reliably equivalent texts keep each token -> [vocabulary] in (0, 1].

    The share of a token's occurrences in pairs that both texts of the pair have; one more occurrence that was
    kept is counted for every token, so that one which was never seen counts as steady.
    """
    size = network.model.get_input_embeddings().num_embeddings
    both, either = torch.ones(size), torch.ones(size)
    if pairs:
        sides = [token_sets(network, side, size) for side in zip(*pairs, strict=True)]
        for one, other in zip(*sides, strict=True):
            kept, lost = _numbers(one & other, size), _numbers(one ^ other, size)
            both.index_add_(0, kept, torch.full(kept.shape, 2.0))
            either.index_add_(0, kept, torch.full(kept.shape, 2.0))
            either.index_add_(0, lost, torch.ones(lost.shape))
    return (both / either).to(network.device)


def _numbers(tokens: set[int], size: int) -> Tensor:
    return torch.tensor(sorted(number % size for number in tokens), dtype=torch.long)
