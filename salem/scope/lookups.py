"""What can be learned about single inputs of a batch, each when it is needed.

A scope tells most inputs by where they lie. About the few that lie inside it, it asks for more: their words,
and how the base begins its answer to them. Knows a model and its inputs. Does not know scopes or deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from salem.models.network import Network
from salem.records import TextInput
from salem.scope.first_token import Openings, openings
from salem.scope.lexical import Wording


class Ask(Protocol):
    """Whom a scope asks about the inputs at these places [r] of a batch."""

    def words(self, rows: Tensor) -> list[Wording]: ...

    def openings(self, rows: Tensor) -> Openings: ...


@dataclass(frozen=True)
class Known:
    """Answers that are known already, of every input."""

    wordings: Sequence[Wording]
    heard: Openings

    def words(self, rows: Tensor) -> list[Wording]:
        return [self.wordings[row] for row in rows.tolist()]

    def openings(self, rows: Tensor) -> Openings:
        return self.heard.rows(rows)


class Asking:
    """Looks at the texts of a batch, and asks the base about them: about each once.

    No delta may be applied while the base is asked.
    """

    def __init__(self, network: Network, inputs: Sequence[TextInput]) -> None:
        self._network, self._inputs = network, inputs
        self._heard: dict[int, Openings] = {}
        self._worded: dict[int, Wording] = {}

    def words(self, rows: Tensor) -> list[Wording]:
        places = rows.tolist()
        for place in set(places) - self._worded.keys():
            self._worded[place] = Wording.of(self._inputs[place])
        return [self._worded[place] for place in places]

    def openings(self, rows: Tensor) -> Openings:
        places = rows.tolist()
        new = [place for place in places if place not in self._heard]
        if new:
            found = openings(self._network, [self._inputs[place] for place in new])
            self._heard.update(zip(new, found.each(), strict=True))
        return Openings.of([self._heard[place] for place in places])
