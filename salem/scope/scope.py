"""Scope: where an edit applies. A gate per input, from what the base model makes of its prompt.

Each entry owns keys in the hosted model's metric (its edit and the paraphrases), each with a radius. The
nearest key, by how far inside its radius the input lies, decides which entry fires. The gate is open or shut:
an input outside every radius is answered by the base, bit for bit, so the share of inputs inside any scope
bounds what a version can break. A key also knows its own words and how the base begins its answer there.
Where an input has other words in their place, or the base begins otherwise, it counts as farther away: this
is asked only about inputs that the cosine alone would let in, which few are.
Relatives: SERAC's scope classifier (Mitchell et al. 2022), GRACE's codebook with deferral radii (Hartvigsen
et al. 2023).

Features always read the base model, so versions share them and an entry means the same in every version.
Does not know what an entry does when it fires, nor how the metric is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.records import Layer
from salem.scope.first_token import Openings
from salem.scope.lexical import is_text, unpacked
from salem.scope.lookups import Ask
from salem.scope.metric import Metric

PAIRS = 1_024  # of an input and a key that are compared at a time


@dataclass(frozen=True)
class Firing:
    """Which entry acts on each of n inputs, and how strongly."""

    entry: Tensor  # [n] int64; where no scope holds the input, that of the key whose scope is the least far
    inside: Tensor  # [n] likeness to the nearest key minus its radius; positive inside the scope
    strength: Tensor  # [n] in [0, 1]
    starts: Tensor | None = None  # [n] first answer position, where a batch holds prompts with their answers

    def rows(self, index: Tensor) -> Firing:
        starts = None if self.starts is None else self.starts[index]
        return Firing(self.entry[index], self.inside[index], self.strength[index], starts)


class Writing:
    """Counts a generator's passes over one batch: the first reads prompts, each other adds a token.

    A decoder's prompts end in the last column of the first pass; a decoder beside an encoder starts with one
    token. With a cache a later pass brings the new token alone, without one all columns again.
    """

    def __init__(self) -> None:
        self._prompt = 0  # columns of the first pass
        self._written = 0

    def positions(self, num_columns: int, device: torch.device) -> Tensor:
        """To be asked once per pass: which token of the answer each column speaks about -> [1, t]."""
        columns = torch.arange(num_columns, device=device)
        if not self._prompt:
            self._prompt = num_columns
        else:
            self._written += 1
        first = self._prompt - 1 + self._written if self._written and num_columns == 1 else 0
        return (columns + first - (self._prompt - 1)).clamp(min=0)[None]


@dataclass(frozen=True)
class Scope:
    """The keys of entries in a metric: `k` keys.

    The likeness of an input to a key is the cosine between them, less the key's toll times the weight of the
    words that were exchanged, and less its doubt times the difference between the two openings.
    """

    metric: Metric
    keys: Tensor  # [k, m] unit rows
    radii: Tensor  # [k] likeness from which on the gate is open
    owners: Tensor  # [k] the entry that each key belongs to
    said: Tensor  # [k, s] the opening of the base at each key; s may be 0
    shares: Tensor  # [k, s]
    doubts: Tensor  # [k] of a cosine: what it costs an input that the base begins altogether otherwise
    words: Tensor  # [k, w] uint8: the wording of each key, as text; w may be 0
    tolls: Tensor  # [k] of a cosine: what it costs an input that it exchanges a word of weight 1

    @property
    def openings(self) -> Openings:
        return Openings(self.said, self.shares)

    def likeness(self, points: Tensor, ask: Ask) -> Tensor:
        """Of points [n, m] of the unit sphere to every key -> [n, k], with one matrix product over all keys.

        Exact where it is above the key's radius, and elsewhere no less than it is: tolls and doubts only take
        away, so nobody outside needs to be asked.
        """
        return self._priced(points @ self.keys.T, torch.arange(len(points), device=points.device), ask)

    def _priced(self, found: Tensor, inputs: Tensor, ask: Ask) -> Tensor:
        """Cosines [r, k] of the inputs at these places [r], less what they pay where they lie inside."""
        rows, keys = (found > self.radii).nonzero(as_tuple=True)
        for prices, differ in ((self.tolls, self._exchanged), (self.doubts, self._begun_otherwise)):
            held = found[rows, keys] > self.radii[keys]  # whom one price has shut out is not asked again
            rows, keys = rows[held], keys[held]
            dear = prices[keys] > 0
            for some, those in _some_at_a_time(rows[dear], keys[dear]):
                found[some, those] -= prices[those] * differ(ask, inputs[some], those)
        return found

    def _exchanged(self, ask: Ask, rows: Tensor, keys: Tensor) -> Tensor:
        """The weight of the words that inputs have in place of those of keys -> [r]."""
        compared, place = torch.unique(keys, return_inverse=True)
        known = unpacked(self.words[compared])
        pairs = zip(ask.words(rows), place.tolist(), strict=True)
        found = [wording.exchanged(known[key], self.metric.tells) for wording, key in pairs]
        return torch.tensor(found, dtype=torch.float32, device=keys.device)

    def _begun_otherwise(self, ask: Ask, rows: Tensor, keys: Tensor) -> Tensor:
        """How much the base's openings at inputs differ from those at keys -> [r]."""
        asked, place = torch.unique(rows, return_inverse=True)
        return ask.openings(asked).rows(place).differ(self.openings.rows(keys))

    def fire_at(self, points: Tensor, ask: Ask) -> Firing:
        """Which entry acts at these points [n, m]: that of the key whose radius they are deepest in.

        Most inputs lie outside every scope by their cosines alone: for them one product decides.
        """
        found = points @ self.keys.T
        deepest, nearest = (found - self.radii).max(-1)
        held = (deepest > 0).nonzero()[:, 0]
        if len(held):
            inside = self._priced(found[held], held, ask) - self.radii
            deepest[held], nearest[held] = inside.max(-1)
        return Firing(entry=self.owners[nearest].long(), inside=deepest, strength=(deepest > 0).float())


@dataclass(frozen=True)
class Scoped:
    """A term of `e` entries, each acting only on inputs inside its scope.

    Where entry i fires, the layer's output gets strength * (values[i, j] + (x down[i]ᵀ) up[i]) at every token
    that speaks about the answer's j-th: 0 for the whole prompt, p - 1 also for what comes later. A value that
    reads no token does to a paraphrase what it does to its edit.
    """

    metric: Metric
    keys: Tensor  # [k, m]
    radii: Tensor  # [k]
    owners: Tensor  # [k]
    said: Tensor  # [k, s]
    shares: Tensor  # [k, s]
    doubts: Tensor  # [k]
    words: Tensor  # [k, w]
    tolls: Tensor  # [k]
    values: Tensor  # [e, p, d_out]; p is 1 where a layer does not take part in writing an answer
    down: Tensor  # [e, r, d_in]; r may be 0
    up: Tensor  # [e, r, d_out]

    kind: ClassVar[str] = "scoped"
    rank: ClassVar[None] = None

    @property
    def scope(self) -> Scope:
        return Scope(**{field.name: getattr(self, field.name) for field in fields(Scope)})

    def act(self, x: Tensor, firing: Firing, writing: Writing | None = None) -> Tensor:
        """The addition for inputs x [n * t, d_in] or [n, t, d_in], n rows firing as given -> [.., d_out].

        Args:
            writing: of the answer that is being generated; not needed where `firing` knows the starts.
        """
        rows = x.reshape(len(firing.entry), -1, x.shape[-1]).float()  # [n, t, d_in]
        addition = self._values_at(firing, rows.shape[1], writing)  # [n, 1 or t, d_out]
        if self.down.shape[1]:
            down, up = _rows(self.down, firing.entry), _rows(self.up, firing.entry)
            addition = addition + rows @ down.mT @ up
        addition = (addition * firing.strength[:, None, None]).expand(len(rows), rows.shape[1], -1)
        return addition.reshape(*x.shape[:-1], -1).to(x.dtype)

    def _values_at(self, firing: Firing, num_columns: int, writing: Writing | None) -> Tensor:
        last = self.values.shape[1] - 1
        values = _rows(self.values, firing.entry)  # [n, p, d_out]
        if not last:
            return values
        if firing.starts is not None:
            columns = torch.arange(num_columns, device=self.values.device)
            positions = (columns - firing.starts.to(columns.device)[:, None]).clamp(min=0)  # [n, t]
        else:
            assert writing is not None, "who generates counts the passes"
            positions = writing.positions(num_columns, self.values.device)
        return F.one_hot(positions.clamp(max=last), last + 1).to(values.dtype) @ values

    def fits(self, layer: Layer) -> bool:
        """Whether all shapes agree with one another and with the layer, and every key has an entry."""
        e, m, k, r = len(self.values), len(self.metric.projection), len(self.keys), self.down.shape[1]
        s, w = self.said.shape[1], self.words.shape[1]
        expected = {
            "keys": (k, m),
            "radii": (k,),
            "owners": (k,),
            "said": (k, s),
            "shares": (k, s),
            "doubts": (k,),
            "words": (k, w),
            "tolls": (k,),
            "values": (e, max(self.values.shape[1], 1), layer.d_out),
            "down": (e, r, layer.d_in),
            "up": (e, r, layer.d_out),
        }
        owned = bool(((self.owners >= 0) & (self.owners < e) & (self.owners % 1 == 0)).all())
        heard = bool(((self.shares >= 0) & (self.shares <= 1)).all() and (self.doubts >= 0).all())
        heard = heard and (s > 0 or not self.doubts.any())
        worded = bool((self.tolls >= 0).all()) and (w > 0 or not self.tolls.any()) and is_text(self.words)
        shaped = all(getattr(self, name).shape == shape for name, shape in expected.items())
        return k > 0 and owned and heard and worded and shaped

    def to(self, device: torch.device, dtype: torch.dtype) -> Scoped:
        """On a device; numbers stay float32, where cosines are resolved."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, metric=self.metric.to(device), **tensors)


def _some_at_a_time(rows: Tensor, keys: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs [r] of inputs and keys, as many as are compared at once."""
    if len(rows):
        yield from zip(torch.split(rows, PAIRS), torch.split(keys, PAIRS), strict=True)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table [e, ..] at an index [n] -> [n, ..].

    While they are trained, by a product: the gradient of a selection adds up in whatever order threads come.
    """
    if not table.requires_grad:
        return table[index]
    picked = F.one_hot(index, len(table)).to(table.dtype) @ table.flatten(1)
    return picked.reshape(len(index), *table.shape[1:])


def prevailing(firings: Sequence[Firing | None]) -> tuple[Firing | None, ...]:
    """Of several terms' firings on the same inputs, oldest first, let one act on each input.

    The newest whose scope holds the input: a later correction overrides an earlier one wherever both apply.
    """
    present = [firing for firing in firings if firing is not None]
    if len(present) < 2:
        return tuple(firings)
    claims = torch.stack([firing.inside for firing in present])  # [terms, n]
    age = torch.arange(len(present), device=claims.device).unsqueeze(-1)
    rank = torch.where(claims > 0, claims.new_tensor(2.0) * (1 + age), claims)  # cosines are below 2
    winner = rank.argmax(0)
    places = iter(range(len(present)))
    return tuple(
        firing and replace(firing, strength=firing.strength * (winner == next(places))) for firing in firings
    )
