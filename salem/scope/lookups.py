"""Lookups: what a scope needs to know about single inputs of a batch, computed only when it needs it.

For most inputs the metric alone decides. For the few that lie inside a scope by their cosine, the scope also
reads their words and the base's first tokens. Must not know scopes or deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from salem.models.network import Network
from salem.records import TextInput
from salem.scope.first_token import FirstTokens, first_tokens
from salem.scope.lexical import WordCounts


class Lookups(Protocol):
    """Facts about the inputs at these rows [r] of a batch."""

    def words(self, rows: Tensor) -> list[WordCounts]: ...

    def first_tokens(self, rows: Tensor) -> FirstTokens: ...


@dataclass(frozen=True)
class KnownLookups:
    """Facts about all inputs that are known already."""

    word_counts: Sequence[WordCounts]
    tokens: FirstTokens

    def words(self, rows: Tensor) -> list[WordCounts]:
        return [self.word_counts[row] for row in rows.tolist()]

    def first_tokens(self, rows: Tensor) -> FirstTokens:
        return self.tokens.rows(rows)


class BatchLookups:
    """Reads the texts of a batch and asks the base about them, at most once each.

    No delta may be applied while the base is asked.
    """

    def __init__(self, network: Network, inputs: Sequence[TextInput]) -> None:
        self._network, self._inputs = network, inputs
        self._tokens: dict[int, FirstTokens] = {}  # by row
        self._words: dict[int, WordCounts] = {}

    def words(self, rows: Tensor) -> list[WordCounts]:
        places = rows.tolist()
        for place in set(places) - self._words.keys():
            self._words[place] = WordCounts.of(self._inputs[place])
        return [self._words[place] for place in places]

    def first_tokens(self, rows: Tensor) -> FirstTokens:
        places = rows.tolist()
        new = [place for place in places if place not in self._tokens]
        if new:
            found = first_tokens(self._network, [self._inputs[place] for place in new])
            self._tokens.update(zip(new, found.each(), strict=True))
        return FirstTokens.concat([self._tokens[place] for place in places])
