"""Deltas: what a version adds to the output of one layer.

A delta is a sum of terms. A term maps the layer's input x [.., d_in] to an addition [.., d_out]; applying a
delta adds that to the layer's output with a hook, so the base weights are never written and how the layer
stores its weight (Linear or Conv1D) does not matter.

Does not know how a delta is made, how its file looks, or which version it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salem.records import Layer
from salem.scope.scope import Firing, Scoped, Writing

Addition = Callable[[Tensor], Tensor]  # [.., d_in] -> [.., d_out]


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


Term = LowRank | Dense | Scoped


@dataclass(frozen=True)
class LayerDelta:
    """The terms that a version adds to one layer."""

    layer: str
    terms: tuple[Term, ...]

    @property
    def scoped(self) -> Scoped | None:
        """The scoped term, where it has one; a delta holds at most one."""
        return next((term for term in self.terms if isinstance(term, Scoped)), None)

    def addition(self, firing: Callable[[], Firing | None] = lambda: None) -> Addition:
        """What the delta adds, as a function of the layer's input; `firing` is asked when it acts.

        Serves one batch: of a generated answer it is to see every pass, once.
        """
        writing = Writing()

        def add(x: Tensor) -> Tensor:
            parts = [act(term, firing(), writing)(x) for term in self.terms]
            return sum(parts[1:], start=parts[0])

        return add

    def to(self, device: torch.device, dtype: torch.dtype) -> LayerDelta:
        """On a device, in the model's type; scopes stay in float32."""
        return LayerDelta(self.layer, tuple(term.to(device, dtype) for term in self.terms))


def act(term: Term, firing: Firing | None, writing: Writing | None = None) -> Addition:
    """A term as a function of the layer's input alone."""
    if not isinstance(term, Scoped):
        return term
    assert firing is not None, "a scoped term needs to know what fires"
    return partial(term.act, firing=firing, writing=writing)


def _never() -> bool:
    return False


@contextmanager
def adding(module: nn.Module, addition: Addition, resting: Callable[[], bool] = _never) -> Iterator[None]:
    """While active, `module` returns its output plus `addition` of its input, but when it is `resting`."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if resting() else output + addition(args[0])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def applied(
    model: nn.Module,
    deltas: Sequence[LayerDelta],
    firings: Sequence[Firing | None] | None = None,
    resting: Callable[[], bool] = _never,
) -> Iterator[None]:
    """While active, the model answers as the version with these deltas; the parent's come first.

    `firings` holds one item per delta, for the inputs about to be answered; plain deltas have None. An item
    is read when its delta acts, so it may still be decided while the model runs. While `resting` says so, the
    model answers as its base.
    """
    firings = [None] * len(deltas) if firings is None else firings
    with ExitStack() as stack:
        for index, delta in enumerate(deltas):
            addition = delta.addition(partial(firings.__getitem__, index))
            stack.enter_context(adding(model.get_submodule(delta.layer), addition, resting))
        yield
