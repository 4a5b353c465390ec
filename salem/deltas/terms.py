"""Deltas: what a version adds to the output of one layer.

A delta is a sum of terms. A term maps the layer's input x [.., d_in] to an addition [.., d_out]. A forward
hook adds it to the layer's output, so the base weights are never written, and Linear and Conv1D look alike.
Must not know how a delta is made, what its file looks like, or which version it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salem.records import Layer
from salem.scope.firing import Firing
from salem.scope.scope import Scope

Addition = Callable[[Tensor], Tensor]  # [.., d_in] -> [.., d_out]
TAIL = 4  # last tokens of a prompt that an entry acts on, besides those of the answer


@dataclass(frozen=True)
class LowRank:
    """x -> (x aᵀ) bᵀ: the update b a of rank r."""

    a: Tensor  # [r, d_in]
    b: Tensor  # [d_out, r]

    kind: ClassVar[str] = "low_rank"

    def __call__(self, x: Tensor) -> Tensor:
        return (x.to(self.a.dtype) @ self.a.T @ self.b.T).to(x.dtype)

    def dense(self) -> Tensor:
        """The same update as one matrix [d_out, d_in]."""
        return self.b @ self.a

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        return LowRank(self.a.to(device, dtype), self.b.to(device, dtype))

    def fits(self, layer: Layer) -> bool:
        r = self.a.shape[0]
        return r > 0 and self.a.shape == (r, layer.d_in) and self.b.shape == (layer.d_out, r)


@dataclass(frozen=True)
class Dense:
    """x -> x weightᵀ."""

    weight: Tensor  # [d_out, d_in]

    kind: ClassVar[str] = "dense"
    rank: ClassVar[None] = None

    def __call__(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight.T).to(x.dtype)

    def dense(self) -> Tensor:
        return self.weight

    def to(self, device: torch.device, dtype: torch.dtype) -> Dense:
        return Dense(self.weight.to(device, dtype))

    def fits(self, layer: Layer) -> bool:
        return self.weight.shape == (layer.d_out, layer.d_in)


class DecodingPosition:
    """Counts a generator's passes over one batch: the first pass reads prompts, each later one adds a token.

    A decoder's prompts end in the last column of the first pass. A decoder beside an encoder starts with one
    token. With a cache, a later pass brings the new token alone; without one, it brings all columns again.
    """

    def __init__(self) -> None:
        self._prompt = 0  # columns of the first pass
        self._generated = 0

    def next(self, num_columns: int, device: torch.device) -> Tensor:
        """The position in the answer that each column predicts -> [1, t]; below 0 inside the prompt.

        Call it once per pass.
        """
        columns = torch.arange(num_columns, device=device)
        if not self._prompt:
            self._prompt = num_columns
        else:
            self._generated += 1
        first = self._prompt - 1 + self._generated if self._generated and num_columns == 1 else 0
        return (columns + first - (self._prompt - 1))[None]


@dataclass(frozen=True)
class Scoped:
    """A term of `e` entries, each acting only on inputs inside its scope.

    Where entry i fires, the layer's output gets gate * (values[i, j] + (x down[i]ᵀ) up[i]) at every token
    that predicts the answer's j-th: 0 at the last TAIL tokens of the prompt, p - 1 also at all later tokens.
    Nothing is added at earlier tokens. If the layer does not see the answer, p is 1 and the entry acts on all
    tokens. A value does not depend on x, so it does the same to a paraphrase as to its edit.
    """

    scope: Scope
    values: Tensor  # [e, p, d_out]; p is 1 where the layer does not see the answer
    down: Tensor  # [e, r, d_in]; r may be 0
    up: Tensor  # [e, r, d_out]

    kind: ClassVar[str] = "scoped"
    rank: ClassVar[None] = None

    def act(self, x: Tensor, firing: Firing, position: DecodingPosition | None = None) -> Tensor:
        """The addition for inputs x [n * t, d_in] or [n, t, d_in], n rows firing as given -> [.., d_out].

        Args:
            position: of the answer that is being generated; not needed if `firing` knows the answer starts.
        """
        rows = x.reshape(len(firing.entry), -1, x.shape[-1]).float()  # [n, t, d_in]
        addition = values = _rows(self.values, firing.entry)  # [n, p, d_out]
        gate = firing.gate[:, None]  # [n, 1]
        if (last := values.shape[1] - 1) > 0:
            positions = answer_positions(firing, rows.shape[1], position)  # [n or 1, t]
            addition = F.one_hot(positions.clamp(0, last), last + 1).to(values.dtype) @ values
            gate = gate * (positions > -TAIL)  # [n, t]
        if self.down.shape[1]:
            down, up = _rows(self.down, firing.entry), _rows(self.up, firing.entry)
            addition = addition + rows @ down.mT @ up
        addition = (addition * gate[..., None]).expand(len(rows), rows.shape[1], -1)
        return addition.reshape(*x.shape[:-1], -1).to(x.dtype)

    def fits(self, layer: Layer) -> bool:
        """Whether all shapes agree with one another and with the layer, and every key has an entry."""
        e, r = len(self.values), self.down.shape[1]
        return (
            self.values.shape == (e, max(self.values.shape[1], 1), layer.d_out)
            and self.down.shape == (e, r, layer.d_in)
            and self.up.shape == (e, r, layer.d_out)
            and self.scope.fits(e)
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Scoped:
        """On a device. Tensors stay float32: cosines need its resolution."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Scoped(self.scope.to(device), **moved)


def answer_positions(firing: Firing, num_columns: int, position: DecodingPosition | None) -> Tensor:
    """The position in the answer that each column predicts -> [n or 1, t]; below 0 inside the prompt."""
    if firing.answer_starts is None:
        assert position is not None, "during generation, a decoding position is required"
        return position.next(num_columns, firing.entry.device)
    columns = torch.arange(num_columns, device=firing.entry.device)
    return columns - firing.answer_starts.to(columns.device)[:, None]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table [e, ..] at an index [n] -> [n, ..].

    During training by a matrix product: the gradient of indexing sums in whatever order threads finish.
    """
    if not table.requires_grad:
        return table[index]
    picked = F.one_hot(index, len(table)).to(table.dtype) @ table.flatten(1)
    return picked.reshape(len(index), *table.shape[1:])


Term = LowRank | Dense | Scoped


@dataclass(frozen=True)
class LayerDelta:
    """The terms that a version adds to one layer."""

    layer: str
    terms: tuple[Term, ...]

    @property
    def scoped(self) -> Scoped | None:
        """Its scoped term, if it has one. A delta holds at most one."""
        return next((term for term in self.terms if isinstance(term, Scoped)), None)

    def addition(self) -> Addition:
        """What its terms add, as a function of the layer's input. They must not be scoped."""
        additions = [act(term, None) for term in self.terms]
        return lambda x: sum((add(x) for add in additions[1:]), start=additions[0](x))

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerDelta:
        """On a device, in the model's type; scoped terms stay in float32."""
        return LayerDelta(self.layer, tuple(term.to(device, dtype) for term in self.terms))


def act(term: Term, firing: Firing | None, position: DecodingPosition | None = None) -> Addition:
    """A term as a function of the layer's input alone."""
    if not isinstance(term, Scoped):
        return term
    assert firing is not None, "a scoped term needs to know what fires"
    return partial(term.act, firing=firing, position=position)


def _never() -> bool:
    return False


@contextmanager
def adding(module: nn.Module, addition: Addition, paused: Callable[[], bool] = _never) -> Iterator[None]:
    """While active, `module` returns its output plus `addition` of its input, except while `paused()`."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if paused() else output + addition(args[0])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def applied(model: nn.Module, deltas: Sequence[LayerDelta]) -> Iterator[None]:
    """While active, the model answers with these deltas, the parent's first. They must not be scoped."""
    with ExitStack() as stack:
        for delta in deltas:
            stack.enter_context(adding(model.get_submodule(delta.layer), delta.addition()))
        yield
