"""A chain: all deltas of a version, joined so that a thousand of them cost about what one does.

The scoped deltas of a chain act as one term. One scope per reader (a metric, or the scope encoder) decides
which entry fires, and one hook per layer adds that entry's value. If several scopes hold an input, the newest
delta prevails: a later correction overrides an earlier one. Joining copies entries and changes none of them,
so a chain without an edit equals a chain that never had it.

Must not know how deltas are made, where they are stored, or which version they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from salem.deltas.terms import TAIL, DecodingPosition, LayerDelta, Scoped, adding, answer_positions
from salem.scope.firing import Firing, Reading
from salem.scope.scope import Scope, joined_scope


@dataclass(frozen=True)
class EntryMatch:
    """The entry that acted on an input."""

    delta: int  # its place in the chain
    entry: int  # its number in that delta
    margin: float  # how far inside its scope the input lies


@dataclass(frozen=True)
class LayerEntries:
    """What all entries of one layer add: `e` entries, `v` values, and `q` rank-one factors in all.

    Deltas differ in how many values and factors an entry has, so both are stored one after the other.
    """

    layer: str
    values: Tensor  # [v, d_out]
    value_starts: Tensor  # [e + 1] int64: entry i has the values from value_starts[i] to value_starts[i + 1]
    down: Tensor  # [q, d_in]
    up: Tensor  # [q, d_out]
    factor_starts: Tensor  # [e + 1] int64, likewise for `down` and `up`

    def act(self, x: Tensor, firing: Firing, position: DecodingPosition) -> Tensor:
        """The addition for inputs x [n * t, d_in] or [n, t, d_in] -> [.., d_out], as in `Scoped.act`.

        Args:
            firing: the entry of each row is its number at this layer.
        """
        rows = x.reshape(len(firing.entry), -1, x.shape[-1])  # [n, t, d_in]
        place, gate = self.value_starts[firing.entry][:, None], firing.gate[:, None]  # [n, 1] each
        if len(self.values) > len(self.value_starts) - 1:  # some entries have more than one value
            positions = answer_positions(firing, rows.shape[1], position)  # [n or 1, t]
            last = self.value_starts[firing.entry + 1][:, None] - 1
            gate = gate * ((positions > -TAIL) | (last == place))  # [n, t]
            place = (place + positions.clamp(min=0)).minimum(last)
        addition = self.values[place]  # [n, 1 or t, d_out]
        if len(self.down):
            addition = addition + self._low_rank(rows.float(), firing)
        addition = (addition * gate[..., None]).expand(len(rows), rows.shape[1], -1)
        return addition.reshape(*x.shape[:-1], -1).to(x.dtype)

    def _low_rank(self, rows: Tensor, firing: Firing) -> Tensor:
        """(x downᵀ) up of each row's entry, for rows [n, t, d_in] -> [n, t, d_out]."""
        first, end = self.factor_starts[firing.entry], self.factor_starts[firing.entry + 1]  # [n]
        rank = torch.arange(int((end - first).max()), device=rows.device)
        index = (first[:, None] + rank).clamp(max=len(self.down) - 1)  # [n, r]
        down = self.down[index] * (rank < (end - first)[:, None])[..., None]  # [n, r, d_in]
        return rows @ down.mT @ self.up[index]

    def to(self, device: torch.device) -> LayerEntries:
        """On a device. Tensors stay float32."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return LayerEntries(self.layer, **moved)


@dataclass(frozen=True)
class Chain:
    """Deltas in the order of application, the parent's first; `e` entries in all."""

    num_deltas: int
    plain: tuple[LayerDelta, ...]  # terms that act on every input
    scopes: tuple[Scope, ...]  # one per reader; owners are numbers of the chain's entries
    layers: tuple[LayerEntries, ...]  # one per layer
    delta_of: Tensor  # [e] int64, ascending: the delta that each entry comes from
    layer_of: Tensor  # [e] int64: the place of its layer in `layers`
    row_of: Tensor  # [e] int64: its number at that layer

    @classmethod
    def of(cls, deltas: Sequence[LayerDelta]) -> Chain:
        """Join deltas, oldest first."""
        return cls.concat([_single(delta) for delta in deltas])

    @classmethod
    def concat(cls, chains: Sequence[Chain]) -> Chain:
        """Join chains, oldest first."""
        layers: dict[str, list[LayerEntries]] = {}
        scopes: dict[str, list[Scope]] = {}
        num_entries = 0
        for chain in chains:
            for scope in chain.scopes:
                shifted = replace(scope, owners=scope.owners + num_entries)
                scopes.setdefault(scope.reader, []).append(shifted)
            for entries in chain.layers:
                layers.setdefault(entries.layer, []).append(entries)
            num_entries += len(chain.delta_of)
        return cls(
            sum(chain.num_deltas for chain in chains),
            tuple(delta for chain in chains for delta in chain.plain),
            tuple(joined_scope(parts) for parts in scopes.values()),
            tuple(_joined_entries(parts) for parts in layers.values()),
            *_joined_places(chains, list(layers)),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors; metrics, which chains share, not counted."""
        terms = [term for delta in self.plain for term in delta.terms]
        holders = [*self.scopes, *self.layers, *terms, self]
        tensors = [each for holder in holders for each in vars(holder).values() if isinstance(each, Tensor)]
        return sum(each.numel() * each.element_size() for each in tensors)

    def to(self, device: torch.device, dtype: torch.dtype) -> Chain:
        """On a device, in the model's type; scopes and entries stay in float32."""
        return Chain(
            self.num_deltas,
            tuple(delta.to(device, dtype) for delta in self.plain),
            tuple(scope.to(device) for scope in self.scopes),
            tuple(entries.to(device) for entries in self.layers),
            self.delta_of.to(device),
            self.layer_of.to(device),
            self.row_of.to(device),
        )

    def fire(self, reading: Reading) -> Firing | None:
        """Which entry acts on each input that was read; None if the chain has no entries."""
        found: Firing | None = None
        for scope in self.scopes:
            ages = self.delta_of[scope.owners.long().to(self.delta_of.device)]  # [k]
            firing = scope.fire(reading, ages)
            found = firing if found is None else self._newest(found, firing)
        return found

    def _newest(self, one: Firing, other: Firing) -> Firing:
        """Row by row, the firing of the newer delta; if neither scope holds the input, the larger margin."""
        newer = self.delta_of[other.entry] > self.delta_of[one.entry]
        both = (one.gate > 0) & (other.gate > 0)
        takes = torch.where(both, newer, other.margin > one.margin)
        pairs = zip((one.entry, one.margin, one.gate), (other.entry, other.margin, other.gate), strict=True)
        return Firing(*(torch.where(takes, theirs, ours) for ours, theirs in pairs))

    def matches(self, firing: Firing | None, num_inputs: int) -> list[EntryMatch | None]:
        """The entry that acts on each input; None where the base answers, with the plain deltas."""
        found: list[EntryMatch | None] = [None] * num_inputs
        if firing is None:
            return found
        for row in firing.gate.nonzero()[:, 0].tolist():
            entry = int(firing.entry[row])
            delta = int(self.delta_of[entry])
            number = int((self.delta_of[:entry] == delta).sum())
            found[row] = EntryMatch(delta, number, float(firing.margin[row]))
        return found

    @contextmanager
    def applied(
        self,
        model: nn.Module,
        firing: Callable[[], Firing | None] = lambda: None,
        paused: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """While active, the model answers as the version with this chain.

        Args:
            firing: what fires on the inputs about to be answered. It is called when an entry would act, so it
                may still be decided while the model runs.
            paused: while it returns True, the model answers as its base.
        """
        with ExitStack() as stack:
            for delta in self.plain:
                stack.enter_context(adding(model.get_submodule(delta.layer), delta.addition(), paused))
            for place, entries in enumerate(self.layers):
                addition = self._addition(place, entries, firing)
                stack.enter_context(adding(model.get_submodule(entries.layer), addition, paused))
            yield

    def _addition(
        self, place: int, entries: LayerEntries, firing: Callable[[], Firing | None]
    ) -> Callable[[Tensor], Tensor]:
        """What the entries of one layer add, as a function of the layer's input [.., d_in]."""
        position = DecodingPosition()

        def add(x: Tensor) -> Tensor:
            fired = firing()
            assert fired is not None, "a scoped term needs to know what fires"
            here = self.layer_of[fired.entry] == place
            own = replace(fired, entry=self.row_of[fired.entry] * here, gate=fired.gate * here)
            return entries.act(x, own, position)

        return add


def joined(deltas: Chain | Sequence[LayerDelta]) -> Chain:
    """Deltas as a chain; a chain as itself."""
    return deltas if isinstance(deltas, Chain) else Chain.of(deltas)


def _single(delta: LayerDelta) -> Chain:
    """A chain of one delta."""
    scoped = delta.scoped
    others = tuple(term for term in delta.terms if not isinstance(term, Scoped))
    plain = (LayerDelta(delta.layer, others),) if others else ()
    if scoped is None:
        none = torch.zeros(0, dtype=torch.long)
        return Chain(1, plain, (), (), none, none, none)
    e, p, r = *scoped.values.shape[:2], scoped.down.shape[1]
    rows = torch.arange(e + 1, device=scoped.values.device)
    entries = LayerEntries(
        delta.layer,
        values=scoped.values.flatten(0, 1),
        value_starts=rows * p,
        down=scoped.down.flatten(0, 1),
        up=scoped.up.flatten(0, 1),
        factor_starts=rows * r,
    )
    nowhere = torch.zeros_like(rows[:-1])
    return Chain(1, plain, (scoped.scope,), (entries,), nowhere, nowhere, rows[:-1])


def _joined_places(chains: Sequence[Chain], names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each entry of all chains: delta, place of its layer in `names`, number there -> 3 x [e]."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    num_deltas, num_rows = 0, dict.fromkeys(names, 0)
    for chain in chains:
        if len(chain.delta_of):
            own = [entries.layer for entries in chain.layers]
            layer_numbers = chain.layer_of.new_tensor([names.index(name) for name in own])
            row_offsets = chain.row_of.new_tensor([num_rows[name] for name in own])
            deltas, rows = chain.delta_of + num_deltas, chain.row_of + row_offsets[chain.layer_of]
            found.append((deltas, layer_numbers[chain.layer_of], rows))
        num_deltas += chain.num_deltas
        for entries in chain.layers:
            num_rows[entries.layer] += len(entries.value_starts) - 1
    if not found:
        none = torch.zeros(0, dtype=torch.long)
        return none, none, none
    deltas, layers, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return deltas, layers, rows


def _joined_entries(parts: Sequence[LayerEntries]) -> LayerEntries:
    """The entries of one layer, one part after the other."""
    return LayerEntries(
        parts[0].layer,
        torch.cat([part.values for part in parts]),
        _joined_starts([part.value_starts for part in parts]),
        torch.cat([part.down for part in parts]),
        torch.cat([part.up for part in parts]),
        _joined_starts([part.factor_starts for part in parts]),
    )


def _joined_starts(parts: Sequence[Tensor]) -> Tensor:
    """Starts [e + 1] of each part -> starts of all, each part's after those before it."""
    offsets = list(accumulate((int(part[-1]) for part in parts), initial=0))
    shifted = [part[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return torch.cat([*shifted, parts[0].new_tensor(offsets[-1:])])
