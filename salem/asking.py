"""What can be learned about single inputs of a batch, each when it is needed and once.

A scope tells most inputs by where they lie. About the few that lie inside it, it asks for more: their words,
and how the base begins its answer to them. Knows a model and its inputs. Does not know scopes or deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from salem.hosting import Network
from salem.openings import Openings, openings
from salem.records import TextInput
from salem.wordings import Wordings, wordings

Heard = TypeVar("Heard", Openings, Wordings)


class Ask(Protocol):
    """Whom a scope asks about the inputs at these places [r] of a batch."""

    def words(self, rows: Tensor) -> Wordings: ...

    def openings(self, rows: Tensor) -> Openings: ...


@dataclass(frozen=True)
class Known:
    """Answers that are known already, of every input."""

    wordings: Wordings
    heard: Openings

    def words(self, rows: Tensor) -> Wordings:
        return self.wordings.rows(rows)

    def openings(self, rows: Tensor) -> Openings:
        return self.heard.rows(rows)


class Asking:
    """Asks the tokenizer and the base about a batch. No delta may be applied while the base is asked."""

    def __init__(self, network: Network, inputs: Sequence[TextInput]) -> None:
        self._network, self._inputs = network, inputs
        self._heard: dict[int, Openings] = {}
        self._worded: dict[int, Wordings] = {}

    def words(self, rows: Tensor) -> Wordings:
        return Wordings.of(self._each(rows, self._worded, wordings))

    def openings(self, rows: Tensor) -> Openings:
        return Openings.of(self._each(rows, self._heard, openings))

    def _each(
        self,
        rows: Tensor,
        known: dict[int, Heard],
        learn: Callable[[Network, Sequence[TextInput]], Heard],
    ) -> list[Heard]:
        """What is known of each of these inputs; the others are learned about first."""
        places = rows.tolist()
        new = [place for place in places if place not in known]
        if new:
            found = learn(self._network, [self._inputs[place] for place in new])
            known.update(zip(new, found.each(), strict=True))
        return [known[place] for place in places]
