"""MEND as published: editors trained ahead on other edits, then applied to the batch in one pass.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, section 3.3 and algorithms 1 and 2: the gradient
of an edit in, the likelihood of an equivalent of it and the divergence on unrelated samples out. An episode
holds as many edits as will be applied together (at most 32), as in the authors' batched experiments.
Several episodes run in one forward, each row of a batch feeling the update of its own episode only.

Where there is no corpus of other edits, pass samples with another sample's answer make episodes. Never
reads the batch that it edits while it trains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.added import Added, first_batch_only
from benchmarks.baselines.contract import Editing
from benchmarks.baselines.mend import EDITOR_RATE, search_steps, start_editors, top_layers
from benchmarks.baselines.one_layer import NUM_STEPS, generator_of, pass_samples
from salem.deltas import Dense, LayerDelta, adding
from salem.encoding import encode, in_buckets
from salem.hosting import Network, count_tokens
from salem.records import Edit, Layer, Sample
from salem.trunk import Trunk, capture, resume
from worker.editor import Factors, MendEditor
from worker.gradients import TokenGradients, token_gradients
from worker.losses import kl_per_sample, nll_per_sample
from worker.rewording import reword
from worker.training import CHUNK
from worker.trunk_sets import Chunk, prepare_with_answers

CORPUS_SIZE = 256  # edits that editors are trained on; their gradients are kept in memory


@dataclass(frozen=True)
class Lesson:
    """Up to a chunk's size of edits: what each is asked after the edit, and its gradient before it."""

    asked: Trunk
    gradients: dict[str, TokenGradients]  # by layer; u [n, t, d_in], v [n, t, d_out]


@dataclass(frozen=True)
class GroupedUpdate:
    """Updates of g episodes at one layer: rows of a batch, cut into g equal parts, feel one each."""

    a: Tensor  # [g, k, d_in]
    b: Tensor  # [g, k, d_out]

    def __call__(self, x: Tensor) -> Tensor:
        """[n, t, d_in] or [n * t, d_in], n a multiple of g -> the same with d_out"""
        rows = x.reshape(len(self.a), -1, x.shape[-1])
        return (rows @ self.a.mT @ self.b).reshape(*x.shape[:-1], -1)


def mend_ahead(editing: Editing) -> Added:
    """Editors of the top layers, trained ahead. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    network, generator = editing.network, generator_of(editing)
    layers = top_layers(network)
    corpus = editing.corpus[:CORPUS_SIZE] or counterfactual_edits(
        network, pass_samples(editing), editing.seed
    )
    keep, _ = prepare_with_answers(network, pass_samples(editing), layers[0], chunk_size=CHUNK)
    taught = lessons(network, corpus, layers, random.Random(editing.seed))
    editors = train_editors(
        network,
        layers,
        taught,
        keep.chunks,
        num_together=len(editing.batch.edit_samples),
        kl_weight=editing.setting,
        generator=generator,
    )
    return Added(network, one_pass(network, layers, editors, editing.batch.edit_samples))


def train_editors(
    network: Network,
    layers: Sequence[Layer],
    taught: Sequence[Lesson],
    keep: Sequence[Chunk],
    *,
    num_together: int,
    kl_weight: float,
    generator: torch.Generator,
) -> dict[str, MendEditor]:
    """Editors that have learnt to apply `num_together` edits at once."""
    factors = {layer.path: _all_rows(taught, layer.path) for layer in layers}
    editors = start_editors(network, layers, factors, generator)
    first = _episode_size(len(taught[0].asked.batch), num_together)
    search_steps(
        network,
        layers,
        editors,
        lambda: [_first_update(editors, taught[0], layer, first) for layer in layers],
        lambda: float(_edit_loss(network, editors, taught[0], first)),
    )
    parameters = [parameter for editor in editors.values() for parameter in editor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=EDITOR_RATE)
    for step in range(NUM_STEPS):
        lesson = shuffled(taught[step % len(taught)], generator)
        size = _episode_size(len(lesson.asked.batch), num_together)
        optimizer.zero_grad(set_to_none=True)
        updates = grouped_updates(editors, lesson, size)
        with acting(network, updates):
            loss = nll_per_sample(resume(network, _whole(lesson.asked, size))).mean()
        if keep:
            loss = loss + kl_weight * _divergence(network, keep[step % len(keep)], updates)
        loss.backward()
        optimizer.step()
    return editors


def _divergence(network: Network, chunk: Chunk, updates: dict[str, GroupedUpdate]) -> Tensor:
    """Mean KL on a chunk of pass samples, cut to a multiple of the number of episodes."""
    groups = min(len(next(iter(updates.values())).a), len(chunk.samples))
    rows = torch.arange(len(chunk.samples) // groups * groups)
    with acting(
        network, {path: GroupedUpdate(one.a[:groups], one.b[:groups]) for path, one in updates.items()}
    ):
        answers = resume(network, chunk.trunk.rows(rows))
    assert chunk.before is not None
    return kl_per_sample(chunk.before[: len(answers.targets)], answers).mean()


def lessons(
    network: Network, corpus: Sequence[Edit], layers: Sequence[Layer], rng: random.Random
) -> list[Lesson]:
    """Every edit once, asked in its own words or, every second one, in others; in buckets of length."""
    edits = [edit.sample for edit in corpus]
    asked = [
        (rng.choice(edit.paraphrase_samples) if edit.paraphrases else reword(edit.sample, rng))
        if index % 2
        else edit.sample
        for index, edit in enumerate(corpus)
    ]
    made: list[Lesson] = []
    for rows in in_buckets(count_tokens(network.tokenizer, asked), CHUNK):
        batch = encode(network, [edits[row] for row in rows])
        trunk = capture(network, encode(network, [asked[row] for row in rows]), layers[0])
        made.append(Lesson(trunk, token_gradients(network, batch, layers)))
    return made


def counterfactual_edits(network: Network, samples: Sequence[Sample], seed: int) -> tuple[Edit, ...]:
    """Pass samples, each with a wrong answer for its target: another label, or another sample's text."""
    rng = random.Random(seed)
    targets = network.labels or tuple({sample.target for sample in samples})
    edits: list[Edit] = []
    for sample in samples[:CORPUS_SIZE]:
        others = [target for target in targets if target != sample.target]
        target = rng.choice(others) if others else sample.target
        edits.append(Edit(**{**sample.model_dump(), "target": target}))
    return tuple(edits)


def shuffled(lesson: Lesson, generator: torch.Generator) -> Lesson:
    """The same edits in another order, so that other edits share an episode."""
    order = torch.randperm(len(lesson.asked.batch), generator=generator)
    gradients = {path: TokenGradients(one.u[order], one.v[order]) for path, one in lesson.gradients.items()}
    return Lesson(lesson.asked.rows(order), gradients)


def grouped_updates(editors: dict[str, MendEditor], lesson: Lesson, size: int) -> dict[str, GroupedUpdate]:
    """The update of every episode of `size` edits, at every layer; edits left over have none."""
    return {path: _grouped(editors[path], one, size) for path, one in lesson.gradients.items()}


def _grouped(editor: MendEditor, gradients: TokenGradients, size: int) -> GroupedUpdate:
    groups = len(gradients.u) // size
    u = gradients.u[: groups * size].float()  # [n, t, d_in]
    v = gradients.v[: groups * size].float()  # [n, t, d_out]
    term = editor(Factors(u.flatten(0, 1), v.flatten(0, 1)))
    carries = (v != 0).any(-1).flatten().unsqueeze(-1)  # padding would be edited into something
    b = term.b.T * carries
    return GroupedUpdate(term.a.reshape(groups, -1, u.shape[-1]), b.reshape(groups, -1, v.shape[-1]))


@contextmanager
def acting(network: Network, updates: dict[str, GroupedUpdate]) -> Iterator[None]:
    """While active, rows of a batch feel the updates of their episodes."""
    with ExitStack() as stack:
        for path, update in updates.items():
            stack.enter_context(adding(network.module(path), update))
        yield


@torch.no_grad()
def one_pass(
    network: Network, layers: Sequence[Layer], editors: dict[str, MendEditor], samples: Sequence[Sample]
) -> tuple[LayerDelta, ...]:
    """The updates of all samples, summed as matrices."""
    totals = {layer.path: torch.zeros(layer.d_out, layer.d_in, device=network.device) for layer in layers}
    for start in range(0, len(samples), CHUNK):
        with torch.enable_grad():
            taken = token_gradients(network, encode(network, samples[start : start + CHUNK]), layers)
        for path, gradients in taken.items():
            u, v = gradients.token_rows()
            if len(u):
                totals[path] += editors[path](Factors(u.float(), v.float())).dense()
    return tuple(LayerDelta(path, (Dense(total),)) for path, total in totals.items())


@torch.no_grad()
def _edit_loss(network: Network, editors: dict[str, MendEditor], lesson: Lesson, size: int) -> Tensor:
    with acting(network, grouped_updates(editors, lesson, size)):
        return nll_per_sample(resume(network, _whole(lesson.asked, size))).mean()


def _first_update(editors: dict[str, MendEditor], lesson: Lesson, layer: Layer, size: int) -> LayerDelta:
    update = grouped_updates(editors, lesson, size)[layer.path]
    return LayerDelta(layer.path, (Dense(update.b[0].T @ update.a[0]),))


def _whole(trunk: Trunk, size: int) -> Trunk:
    return trunk.rows(torch.arange(len(trunk.batch) // size * size))


def _episode_size(num_rows: int, num_together: int) -> int:
    return max(1, min(num_rows, num_together))


def _all_rows(taught: Sequence[Lesson], path: str) -> Factors:
    rows = [lesson.gradients[path].token_rows() for lesson in taught]
    return Factors(torch.cat([u for u, _ in rows]).float(), torch.cat([v for _, v in rows]).float())
