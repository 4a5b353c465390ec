"""Scope: where an edit applies. A gate in [0, 1] per input, from what enters the edited block in the base
model.

An input's *features* are pooled from the trunk state of its prompt; a small learned linear metric maps them
to the unit sphere; each entry owns keys there (its edit and the paraphrases), each with a radius. The
nearest key, by how far inside its radius the input lies, decides which entry fires. The gate is open or
shut: an input outside every radius is answered by the base, bit for bit, so the share of inputs inside any
scope bounds what a version can break. Relatives: SERAC's scope classifier (Mitchell et al.
2022), GRACE's codebook with deferral radii (Hartvigsen et al. 2023).

Keys always read the base model's trunk, so versions share it and an entry means the same in every version.
Does not know what an entry does when it fires, nor how the metric is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salem.encoding import encode_inputs, in_buckets
from salem.hosting import Network, count_tokens
from salem.records import Layer, Task, TextInput
from salem.trunk import beside_encoder

FEATURE_BATCH = 64


@dataclass(frozen=True)
class Firing:
    """Which entry acts on each of n inputs, and how strongly."""

    entry: Tensor  # [n] int64
    inside: Tensor  # [n] cosine to the nearest key minus its radius; positive inside the scope
    strength: Tensor  # [n] in [0, 1]

    def rows(self, index: Tensor) -> Firing:
        return Firing(self.entry[index], self.inside[index], self.strength[index])


@dataclass(frozen=True)
class Scope:
    """A metric and the keys of the entries. `f` features, `m` dimensions of the metric, `k` keys."""

    centre: Tensor  # [f] subtracted from the features
    spread: Tensor  # [f] then divided by
    projection: Tensor  # [m, f]
    keys: Tensor  # [k, m] unit rows
    radii: Tensor  # [k] cosine from which on the gate is open
    owners: Tensor  # [k] the entry that each key belongs to

    def place(self, features: Tensor) -> Tensor:
        """Features [n, f] -> points on the unit sphere [n, m]."""
        projected = ((features - self.centre) / self.spread) @ self.projection.T
        return nn.functional.normalize(projected, dim=-1)

    def fire(self, features: Tensor) -> Firing:
        """Which entry acts on inputs with these features [n, f]."""
        return self.fire_at(self.place(features))

    def fire_at(self, points: Tensor) -> Firing:
        """Which entry acts at these points [n, m] of the unit sphere: one matrix product over all keys."""
        inside, nearest = (points @ self.keys.T - self.radii).max(dim=-1)
        return Firing(entry=self.owners[nearest].long(), inside=inside, strength=(inside > 0).float())


@dataclass(frozen=True)
class Scoped:
    """A term of `e` entries, each acting only on inputs inside its scope.

    Where entry i fires, the layer's output gets strength * (values[i] + (x down[i]ᵀ) up[i]) at every token.
    The fields of `Scope` stand here too, because a term is stored as a flat set of tensors.
    """

    centre: Tensor  # [f]
    spread: Tensor  # [f]
    projection: Tensor  # [m, f]
    keys: Tensor  # [k, m]
    radii: Tensor  # [k]
    owners: Tensor  # [k]
    values: Tensor  # [e, d_out]
    down: Tensor  # [e, r, d_in]; r may be 0
    up: Tensor  # [e, r, d_out]

    kind: ClassVar[str] = "scoped"
    rank: ClassVar[None] = None

    @property
    def scope(self) -> Scope:
        return Scope(self.centre, self.spread, self.projection, self.keys, self.radii, self.owners)

    def act(self, x: Tensor, firing: Firing) -> Tensor:
        """The addition for inputs x [n * t, d_in] or [n, t, d_in], n rows firing as given -> [.., d_out]."""
        rows = x.reshape(len(firing.entry), -1, x.shape[-1]).float()  # [n, t, d_in]
        addition = self.values[firing.entry].unsqueeze(1)  # [n, 1, d_out]
        if self.down.shape[1]:
            addition = addition + rows @ self.down[firing.entry].mT @ self.up[firing.entry]
        addition = (addition * firing.strength[:, None, None]).expand(len(rows), rows.shape[1], -1)
        return addition.reshape(*x.shape[:-1], -1).to(x.dtype)

    def fits(self, layer: Layer) -> bool:
        """Whether all shapes agree with one another and with the layer, and every key has an entry."""
        e, f, m, k, r = (
            len(self.values),
            len(self.centre),
            len(self.projection),
            len(self.keys),
            self.down.shape[1],
        )
        expected = {
            "centre": (f,),
            "spread": (f,),
            "projection": (m, f),
            "keys": (k, m),
            "radii": (k,),
            "owners": (k,),
            "values": (e, layer.d_out),
            "down": (e, r, layer.d_in),
            "up": (e, r, layer.d_out),
        }
        owned = bool(((self.owners >= 0) & (self.owners < e) & (self.owners % 1 == 0)).all())
        return k > 0 and owned and all(getattr(self, name).shape == shape for name, shape in expected.items())


def prevailing(firings: Sequence[Firing | None]) -> tuple[Firing | None, ...]:
    """Of several terms' firings on the same inputs, oldest first, let one act on each input.

    The newest whose scope holds the input: a later correction overrides an earlier one wherever both apply.
    """
    present = [firing for firing in firings if firing is not None]
    if len(present) < 2:
        return tuple(firings)
    claims = torch.stack([firing.inside for firing in present])  # [terms, n]
    age = torch.arange(len(present), device=claims.device).unsqueeze(-1)
    winner = torch.where(claims > 0, claims.new_tensor(2.0) * (1 + age), claims).argmax(
        0
    )  # cosines are below 2
    places = iter(range(len(present)))
    return tuple(
        firing and Firing(firing.entry, firing.inside, firing.strength * (winner == next(places)))
        for firing in firings
    )


class _Entered(Exception):
    """Ends a forward at the block that was to be reached."""


@torch.no_grad()
def features(network: Network, inputs: Sequence[TextInput], layer: Layer) -> Tensor:
    """Pooled trunk states of prompts at a layer's block -> [n, 5 d] in float32.

    The five pools: mean embedding of the text and of its pair, mean state of the text and of its pair (zero
    where there is no pair), and the state of the token that sums up a text: the first of an encoder, the
    last of a decoder. Embeddings tell words apart, states tell meanings; together they separated better
    than either (docs/log.md). No delta may be applied while this runs.
    """
    pooled: Tensor | None = None
    for rows in in_buckets(count_tokens(network.tokenizer, inputs), FEATURE_BATCH):
        fields = encode_inputs(network, [inputs[row] for row in rows])
        part = _pool(network, *entering(network, fields, layer), fields)
        if pooled is None:
            pooled = part.new_empty(len(inputs), part.shape[-1])
        pooled[rows] = part
    assert pooled is not None, "features of no inputs"
    return pooled


def _pool(network: Network, embedded: Tensor, state: Tensor, fields: dict[str, Tensor]) -> Tensor:
    """Embeddings and states [n, t, d] of right-padded prompts -> [n, 5 d]."""
    mask = fields["attention_mask"].bool()
    second = fields["token_type_ids"].bool() & mask if "token_type_ids" in fields else torch.zeros_like(mask)
    first = mask & ~second
    last = mask.sum(-1) - 1 if network.task is Task.TEXT_GENERATION else torch.zeros_like(mask.sum(-1))
    summary = state[torch.arange(len(state), device=state.device), last].float()
    means = [_mean(tokens.float(), segment) for tokens in (embedded, state) for segment in (first, second)]
    return torch.cat([*means, summary], dim=-1)


def _mean(state: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).float()
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1)


def entering(network: Network, fields: dict[str, Tensor], layer: Layer) -> tuple[Tensor, Tensor]:
    """What enters the first block of a stack, and the block of `layer`, for these prompts -> two [n, t, d].

    For a layer beside an encoder: what enters the encoder's first block, and the encoder's output.
    """
    beside = beside_encoder(network, layer)
    stack = network.layers[0].stack if beside else layer.stack
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Entered

    with ExitStack() as hooks:
        marked = [(0, keep)] if beside else [(0, keep), (layer.block, keep), (layer.block, stop)]
        for block, hook in marked:
            module = network.module(f"{stack}.{block}")
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        body = network.model.get_encoder() if network.model.config.is_encoder_decoder else network.model
        with suppress(_Entered):
            seen.append(body(**fields).last_hidden_state)
    return seen[0], seen[-1]
