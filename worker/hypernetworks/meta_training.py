"""Trains editors ahead of time on a corpus of edits, so that new edits take one pass.

MEND, algorithms 1 and 2 (Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, section 3.3): the input
is the gradient of an edit, and the loss is the likelihood of an equivalent edit plus the divergence on
unrelated samples. An episode holds as many edits as will be applied together (at most 32), as in the authors'
batched experiments. Several episodes share one forward pass; each row of a batch gets the update of its own
episode only.

Must not know where the corpus comes from, which part is held out, or how an editor is stored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from salem.deltas.terms import Dense, LayerDelta, LowRank, adding
from salem.models.batching import encode, in_buckets
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.models.trunk import Trunk, capture, resume
from salem.records import Edit, Layer, Sample
from worker.activations.gradients import TokenGradients, token_gradients
from worker.activations.trunk_sets import Chunk
from worker.dataset.augmentation import TYPING, augment_all
from worker.dataset.token_limits import replace_too_long
from worker.hypernetworks.mend import Factors, MendEditor
from worker.numerics.losses import kl_per_sample, nll_per_sample
from worker.training.loop import CHUNK

RELATIVE_STEPS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the weight's norm: grid of initial step sizes


@dataclass(frozen=True)
class MetaBatch:
    """Edits that share a forward pass: the questions that test them, and their gradients before the edit."""

    questions: Trunk
    gradients: dict[str, TokenGradients]  # by layer; u [n, t, d_in], v [n, t, d_out]


@dataclass(frozen=True)
class GroupedUpdate:
    """Updates of g episodes at one layer; each of g equal parts of a batch gets one."""

    a: Tensor  # [g, k, d_in]
    b: Tensor  # [g, k, d_out]

    def __call__(self, x: Tensor) -> Tensor:
        """[n, t, d_in] or [n * t, d_in], n a multiple of g -> the same with d_out"""
        rows = x.reshape(len(self.a), -1, x.shape[-1]).to(self.a.dtype)
        return (rows @ self.a.mT @ self.b).reshape(*x.shape[:-1], -1).to(x.dtype)


@dataclass(frozen=True)
class MetaTrainingSet:
    """What editors are trained on."""

    layers: Sequence[Layer]
    batches: Sequence[MetaBatch]
    keep: Sequence[Chunk] = ()  # of pass samples


@dataclass(frozen=True)
class MetaTrainingOptions:
    """How editors are trained."""

    rank: int
    num_together: int  # edits that the editors learn to apply at once
    num_steps: int
    learning_rate: float
    kl_weight: float  # weight of the divergence on pass samples relative to the likelihood of the edits


def train_editors(
    network: Network,
    data: MetaTrainingSet,
    options: MetaTrainingOptions,
    generator: torch.Generator,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, MendEditor]:
    """Editors trained to apply `num_together` edits at once, by layer path.

    Args:
        progress: gets each step's number and loss.
    """
    editors = initial_editors(network, data, options, generator)
    parameters = [parameter for editor in editors.values() for parameter in editor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate)
    for step in range(options.num_steps):
        batch = shuffled(data.batches[step % len(data.batches)], generator)
        size = _episode_size(batch, options)
        optimizer.zero_grad(set_to_none=True)
        updates = grouped_updates(editors, batch, size)
        with applied_updates(network, updates):
            loss = nll_per_sample(resume(network, _whole(batch.questions, size))).mean()
        if data.keep:
            loss = loss + options.kl_weight * _divergence(network, data.keep[step % len(data.keep)], updates)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1, loss.item())
    return editors


def initial_editors(
    network: Network, data: MetaTrainingSet, options: MetaTrainingOptions, generator: torch.Generator
) -> dict[str, MendEditor]:
    """Editors before training: gradient descent with the step size that is best for the first batch."""
    layers, first = data.layers, data.batches[0]
    factors = {layer.path: _all_rows(data.batches, layer.path) for layer in layers}
    editors = new_editors(network, layers, factors, options.rank, generator)
    size = _episode_size(first, options)
    search_steps(
        network,
        layers,
        editors,
        lambda: [_first_update(editors, first, layer, size) for layer in layers],
        lambda: float(_edit_loss(network, editors, first, size)),
    )
    return editors


def new_editors(
    network: Network,
    layers: Sequence[Layer],
    factors: Mapping[str, Factors],
    rank: int,
    generator: torch.Generator,
) -> dict[str, MendEditor]:
    """One editor per layer: the identity, with its normalizer fitted to the factors."""
    editors: dict[str, MendEditor] = {}
    for layer in layers:
        editor = MendEditor(layer.d_in, layer.d_out, rank, generator).to(network.device)
        editor.fit_normalizer(factors[layer.path])
        editors[layer.path] = editor
    return editors


@torch.no_grad()
def search_steps(
    network: Network,
    layers: Sequence[Layer],
    editors: Mapping[str, MendEditor],
    deltas: Callable[[], Sequence[LayerDelta]],
    loss: Callable[[], float],
) -> None:
    """Set each layer's step so that its update is the share of its weight's norm with the least loss."""
    sizes = {delta.layer: _norm(delta) for delta in deltas()}
    weights = {layer.path: float(network.weight(layer.path).float().norm()) for layer in layers}
    starts = {path: editor.log_step.clone() for path, editor in editors.items()}

    def set_share(share: float) -> float:
        for path, editor in editors.items():
            ratio = torch.tensor(share * weights[path] / max(sizes[path], 1e-12))
            editor.log_step.copy_(starts[path] + ratio.log())
        return loss()

    set_share(min(RELATIVE_STEPS, key=set_share))


def meta_batches(
    network: Network, corpus: Sequence[Edit], layers: Sequence[Layer], rng: random.Random
) -> list[MetaBatch]:
    """All edits once. Every second one is tested with a paraphrase, or an augmentation if it has none."""
    edits = [edit.sample for edit in corpus]
    questions = [
        _in_other_words(edit, rng) if index % 2 else edit.sample for index, edit in enumerate(corpus)
    ]
    questions = replace_too_long(network, edits, questions)
    found: list[MetaBatch] = []
    for rows in in_buckets(count_tokens(network.tokenizer, questions), CHUNK):
        batch = encode(network, [edits[row] for row in rows])
        trunk = capture(network, encode(network, [questions[row] for row in rows]), layers[0])
        found.append(MetaBatch(trunk, token_gradients(network, batch, layers)))
    return found


def _in_other_words(edit: Edit, rng: random.Random) -> Sample:
    return rng.choice(edit.paraphrase_samples or augment_all([edit.sample], rng, TYPING))


def shuffled(batch: MetaBatch, generator: torch.Generator) -> MetaBatch:
    """The same edits in another order, so that other edits share an episode."""
    order = torch.randperm(len(batch.questions.batch), generator=generator)
    gradients = {path: TokenGradients(one.u[order], one.v[order]) for path, one in batch.gradients.items()}
    return MetaBatch(batch.questions.rows(order), gradients)


def grouped_updates(editors: dict[str, MendEditor], batch: MetaBatch, size: int) -> dict[str, GroupedUpdate]:
    """The update of every episode of `size` edits, at every layer; an incomplete last episode has none."""
    return {path: _grouped(editors[path], one, size) for path, one in batch.gradients.items()}


def _grouped(editor: MendEditor, gradients: TokenGradients, size: int) -> GroupedUpdate:
    groups = len(gradients.u) // size
    u = gradients.u[: groups * size].float()  # [n, t, d_in]
    v = gradients.v[: groups * size].float()  # [n, t, d_out]
    term = editor(Factors(u.flatten(0, 1), v.flatten(0, 1)))
    carries = (v != 0).any(-1).flatten().unsqueeze(-1)  # the editor would give padding an update, too
    b = term.b.T * carries
    return GroupedUpdate(term.a.reshape(groups, -1, u.shape[-1]), b.reshape(groups, -1, v.shape[-1]))


@contextmanager
def applied_updates(network: Network, updates: dict[str, GroupedUpdate]) -> Iterator[None]:
    """While active, each row of a batch gets the update of its episode."""
    with ExitStack() as stack:
        for path, update in updates.items():
            stack.enter_context(adding(network.module(path), update))
        yield


def _divergence(network: Network, chunk: Chunk, updates: dict[str, GroupedUpdate]) -> Tensor:
    """Mean KL on a chunk of pass samples, cut to a multiple of the number of episodes."""
    groups = min(len(next(iter(updates.values())).a), len(chunk.samples))
    rows = torch.arange(len(chunk.samples) // groups * groups)
    with applied_updates(
        network, {path: GroupedUpdate(one.a[:groups], one.b[:groups]) for path, one in updates.items()}
    ):
        answers = resume(network, chunk.trunk.rows(rows))
    assert chunk.before is not None
    return kl_per_sample(chunk.before[: len(answers.targets)], answers).mean()


@torch.no_grad()
def _edit_loss(network: Network, editors: dict[str, MendEditor], batch: MetaBatch, size: int) -> Tensor:
    with applied_updates(network, grouped_updates(editors, batch, size)):
        return nll_per_sample(resume(network, _whole(batch.questions, size))).mean()


def _first_update(editors: dict[str, MendEditor], batch: MetaBatch, layer: Layer, size: int) -> LayerDelta:
    update = grouped_updates(editors, batch, size)[layer.path]
    return LayerDelta(layer.path, (Dense(update.b[0].T @ update.a[0]),))


def _whole(trunk: Trunk, size: int) -> Trunk:
    return trunk.rows(torch.arange(len(trunk.batch) // size * size))


def _episode_size(batch: MetaBatch, options: MetaTrainingOptions) -> int:
    return max(1, min(len(batch.questions.batch), options.num_together))


def _all_rows(batches: Sequence[MetaBatch], path: str) -> Factors:
    rows = [batch.gradients[path].token_rows() for batch in batches]
    return Factors(torch.cat([u for u, _ in rows]).float(), torch.cat([v for _, v in rows]).float())


def _norm(delta: LayerDelta) -> float:
    plain = [term for term in delta.terms if isinstance(term, LowRank | Dense)]
    total: Tensor = sum((term.dense() for term in plain), start=torch.zeros(()))
    return float(total.norm())
