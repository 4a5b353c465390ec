"""State scopes: where an edit applies, decided for each input from the hosted model's own states.

Each entry owns keys: the points of its edit and of the paraphrases in the hosted model's metric, each with a
radius. An input fires the entry of the key that it lies deepest inside. The gate is open or shut: an input
outside every radius gets the base's answer bit for bit. So the share of inputs inside any scope bounds what
a version can break.

A key also stores its words and the base's first tokens there. Where an input exchanges words, or the base
starts another answer, the input counts as farther away. Only inputs that the cosine alone lets in are checked
for this, and those are few.

Related work: SERAC's scope classifier (Mitchell et al., 2022); GRACE's codebook with deferral radii
(Hartvigsen et al., 2023). Must not know what an entry does when it fires, or how the metric is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.scope.firing import Firing, Reading
from salem.scope.first_token import FirstTokens
from salem.scope.lexical import is_text, unpack_words
from salem.scope.lookups import Lookups
from salem.scope.metric import Metric

PAIRS = 1_024  # pairs of an input and a key that are compared at a time


@dataclass(frozen=True)
class StateScope:
    """The keys of entries in a metric: `k` keys.

    The likeness of an input to a key is their cosine, minus the key's lexical weight times the weight of the
    exchanged words, minus its first-token weight times the distance of the two first-token distributions.
    """

    metric: Metric
    keys: Tensor  # [k, m] unit rows
    radii: Tensor  # [k] the likeness above which the gate is open
    owners: Tensor  # [k] the entry that each key belongs to
    token_ids: Tensor  # [k, s] the base's likeliest first tokens at each key; s may be 0
    token_probabilities: Tensor  # [k, s]
    first_token_weights: (
        Tensor  # [k] what the likeness loses where the base starts an entirely different answer
    )
    words: Tensor  # [k, w] uint8: the words of each key as text, padded with zeros; w may be 0
    lexical_weights: Tensor  # [k] what the likeness loses per exchanged word of weight 1

    @property
    def reader(self) -> str:
        """sha256 of what places inputs among the keys: scopes with the same reader can be joined."""
        return self.metric.sha256

    @property
    def first_tokens(self) -> FirstTokens:
        return FirstTokens(self.token_ids, self.token_probabilities)

    def likeness(self, points: Tensor, lookups: Lookups) -> Tensor:
        """The likeness of points [n, m] on the unit sphere to every key -> [n, k].

        Exact above the key's radius. Below it, an upper bound: penalties only lower a likeness, so inputs
        outside need no lookup.
        """
        return self._penalized(points @ self.keys.T, torch.arange(len(points), device=points.device), lookups)

    def _penalized(self, likeness: Tensor, inputs: Tensor, lookups: Lookups) -> Tensor:
        """Cosines [r, k] of the inputs at these rows of the batch [r], minus penalties inside the radii."""
        rows, keys = (likeness > self.radii).nonzero(as_tuple=True)
        penalties = (
            (self.lexical_weights, self._words_differ),
            (self.first_token_weights, self._tokens_differ),
        )
        for weights, differ in penalties:
            inside = likeness[rows, keys] > self.radii[keys]  # one penalty may be enough
            rows, keys = rows[inside], keys[inside]
            weighted = weights[keys] > 0
            for some, those in _in_parts(rows[weighted], keys[weighted]):
                likeness[some, those] -= weights[those] * differ(lookups, inputs[some], those)
        return likeness

    def _words_differ(self, lookups: Lookups, rows: Tensor, keys: Tensor) -> Tensor:
        """The weight of the words that inputs have in place of those of keys -> [r]."""
        distinct, place = torch.unique(keys, return_inverse=True)
        known = unpack_words(self.words[distinct])
        pairs = zip(lookups.words(rows), place.tolist(), strict=True)
        weights = [counts.exchanged_weight(known[key], self.metric.word_weights) for counts, key in pairs]
        return torch.tensor(weights, dtype=torch.float32, device=keys.device)

    def _tokens_differ(self, lookups: Lookups, rows: Tensor, keys: Tensor) -> Tensor:
        """The distance between the base's first tokens at inputs and at keys -> [r]."""
        distinct, place = torch.unique(rows, return_inverse=True)
        return lookups.first_tokens(distinct).rows(place).distance(self.first_tokens.rows(keys))

    def fire(self, reading: Reading, ages: Tensor | None = None) -> Firing:
        """Which entry acts on each input that was read. The reading holds the points of the metric."""
        return self.fire_at(reading.points[self.reader], reading.lookups, ages)

    def fire_at(self, points: Tensor, lookups: Lookups, ages: Tensor | None = None) -> Firing:
        """Which entry acts at these points [n, m]: the owner of the key that each lies deepest inside.

        For most inputs, which lie outside every scope by their cosines alone, one matrix product decides.

        Args:
            ages: [k] a number per key. Of the keys that hold an input, only those with the largest one count.
        """
        cosines = points @ self.keys.T  # [n, k]
        margin, nearest = (cosines - self.radii).max(-1)
        held = (margin > 0).nonzero()[:, 0]
        if len(held):
            margins = self._penalized(cosines[held], held, lookups) - self.radii
            if ages is not None:
                claims = torch.where(margins > 0, ages, -1)
                margins = margins.masked_fill(claims < claims.amax(-1, keepdim=True), -torch.inf)
            margin[held], nearest[held] = margins.max(-1)
        return Firing(entry=self.owners[nearest].long(), margin=margin, gate=(margin > 0).float())

    def rows(self, index: Tensor) -> StateScope:
        """The scope with only the keys at `index` [r]."""
        picked = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return StateScope(self.metric, **picked)

    @staticmethod
    def joined(parts: Sequence[StateScope]) -> StateScope:
        """Scopes in one metric as one.

        Padding changes nothing: it has probability 0, and words end before it.
        """
        if len(parts) == 1:
            return parts[0]
        found = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("keys", "radii", "owners", "first_token_weights", "lexical_weights")
        }
        for name in ("token_ids", "token_probabilities", "words"):
            found[name] = joined_columns([getattr(part, name) for part in parts])
        return StateScope(parts[0].metric, **found)

    def to(self, device: torch.device) -> StateScope:
        """The scope on a device. Tensors keep their types."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return StateScope(self.metric.to(device), **moved)

    def fits(self, num_entries: int) -> bool:
        """Whether all shapes agree, every value is in its range, and every key belongs to an entry."""
        k, s, w = len(self.keys), self.token_ids.shape[1], self.words.shape[1]
        expected = {
            "keys": (k, len(self.metric.projection)),
            "token_ids": (k, s),
            "token_probabilities": (k, s),
            "words": (k, w),
        } | dict.fromkeys(("radii", "owners", "first_token_weights", "lexical_weights"), (k,))
        if k == 0 or any(getattr(self, name).shape != shape for name, shape in expected.items()):
            return False
        owners, probabilities = self.owners, self.token_probabilities
        return (
            bool(((owners >= 0) & (owners < num_entries) & (owners % 1 == 0)).all())
            and bool(((probabilities >= 0) & (probabilities <= 1)).all())
            and bool((self.first_token_weights >= 0).all() and (self.lexical_weights >= 0).all())
            and (s > 0 or not self.first_token_weights.any())
            and (w > 0 or not self.lexical_weights.any())
            and is_text(self.words)
        )


def joined_columns(tables: Sequence[Tensor]) -> Tensor:
    """Tables [k, w] of different widths, one below the other, padded with zeros to the widest."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([F.pad(table, (0, width - table.shape[1])) for table in tables])


def _in_parts(rows: Tensor, keys: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of an input and a key, both [r], `PAIRS` at a time."""
    if len(rows):
        yield from zip(torch.split(rows, PAIRS), torch.split(keys, PAIRS), strict=True)
