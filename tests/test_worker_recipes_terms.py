"""Every recipe on tiny models of every task: it corrects, is repeatable, and does not change the base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from recipe_cases import RECIPES, recipe, trained
from scope_readers import reads_states
from tiny_models import LABELS, build_network, tiny_network

from salem.deltas.files import pack, term_tensors, unpack
from salem.deltas.terms import Dense, LayerDelta, LowRank, Scoped, Term
from salem.inference.predict import predict, same_answer
from salem.models.batching import IGNORED, encode
from salem.models.network import Network
from salem.records import Edit, EditBatch, Sample
from salem.scope.metric import Metric
from salem.scope.metric_files import pack_metric, unpack_metric
from worker.dataset.split import build_edit_batch
from worker.recipes.base import Trained
from worker.recipes.compression import smallest_that_holds
from worker.recipes.scoped.recipe import attainable_margin
from worker.training.loop import prepare_dataset, score_term
from worker.training.options import MARGIN

BASE = "0" * 64
KEPT_TEXTS = tuple(
    f"{start} {subject}"
    for start in ("where is my", "i want the", "who wrote the", "please send a")
    for subject in ("order", "parcel", "lamp", "password", "account")
)
EDIT_TEXTS = ("the capital of Peru", "Anna wrote it in Rome now", "i cannot log in today")
ANSWERS: tuple[str, ...] = ("order", "the", "now")  # one token each: a width of 16 cannot hold long ones


@dataclass(frozen=True)
class Case:
    """A tiny model with edits that it answers wrongly and pass samples that it answers correctly."""

    network: Network
    batch: EditBatch


def answered(network: Network, texts: tuple[str, ...]) -> list[str]:
    samples = [Sample(input=text, target="x") for text in texts]
    return [prediction.output for prediction in predict(network, samples, max_new_tokens=4)]


@cache
def case(architecture: str) -> Case:
    network = tiny_network(architecture)
    before = answered(network, EDIT_TEXTS)
    targets = ANSWERS
    if not network.task.generates:
        targets = tuple(LABELS[(LABELS.index(answer) + 1) % len(LABELS)] for answer in before)
    edits = [Edit(input=text, target=target) for text, target in zip(EDIT_TEXTS, targets, strict=True)]
    edits[0] = edits[0].model_copy(update={"paraphrases": ("Peru, its capital",)})
    kept = [
        Sample(input=text, target=answer)
        for text, answer in zip(KEPT_TEXTS, answered(network, KEPT_TEXTS), strict=True)
        if answer
    ]
    batch = build_edit_batch(edits, (), kept, max_pass_samples=50, max_held_out=50, seed=0)
    assert len(batch.pass_samples) > 3
    return Case(network, batch)


def train(
    of: Case, name: str, parent: tuple[LayerDelta, ...] = (), *, block: int = 1, **more: object
) -> Trained:
    return trained(of.network, of.batch, of.network.layers[block], recipe(name, **more), parent)


def num_right(of: Case, samples: tuple[Sample, ...], deltas: tuple[LayerDelta, ...]) -> int:
    found = predict(of.network, samples, deltas, max_new_tokens=16)
    return sum(same_answer(a.output, s.target) for a, s in zip(found, samples, strict=True))


def as_delta(of: Case, found: Trained, *, block: int = 1) -> LayerDelta:
    return LayerDelta(of.network.layers[block].path, (found.term,))


def weights_sha256(network: Network) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def tree(network: Network) -> list[tuple[str, int, int, int, bool]]:
    """The module tree by identity, with all hooks and parameters that could be left in it."""
    return [
        (name, id(module), len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in network.model.named_modules()
    ]


def metric_sha256(term: Term) -> str:
    return term.scope.metric.sha256 if isinstance(term, Scoped) else "no metric"


def assert_equal(one: Term, other: Term) -> None:
    assert type(one) is type(other)
    found = term_tensors(other)
    for name, value in term_tensors(one).items():
        assert torch.equal(value, found[name]), name
    assert metric_sha256(one) == metric_sha256(other) != ""


def enough(name: str, of: Case) -> int:
    """The closed form does not correct every edit of a random network; recipes that train do."""
    if name == "ridge":
        return 0 if of.network.task.generates else 1
    return len(EDIT_TEXTS)


def metric_of(found: Trained) -> Callable[[str], Metric]:
    """A function that reads the metric of a term from its file."""

    def read(name: str) -> Metric:
        assert isinstance(found.term, Scoped)
        data = pack_metric(found.term.scope.metric)
        assert hashlib.sha256(data).hexdigest() == name
        return unpack_metric(data)

    return read


@pytest.mark.parametrize(("architecture", "block"), [("bert", 1), ("t5", -1), ("gpt2", 1), ("llama", 1)])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_corrects_repeatably_and_leaves_the_base_alone(
    architecture: str, block: int, name: str
) -> None:
    of = case(architecture)
    weights, modules = weights_sha256(of.network), tree(of.network)
    found = train(of, name, block=block)
    assert weights_sha256(of.network) == weights and tree(of.network) == modules
    assert not any(w.requires_grad or w.grad is not None for w in of.network.model.parameters())
    assert num_right(of, of.batch.edit_samples, ()) == 0
    delta = as_delta(of, found, block=block)
    assert num_right(of, of.batch.edit_samples, (delta,)) >= enough(name, of)
    assert isinstance(found.term, Scoped if name == "scoped" else LowRank | Dense)
    assert not any(value.requires_grad for value in term_tensors(found.term).values())
    data = pack(delta, base_sha256=BASE)
    again = unpack(data, base_sha256=BASE, layers=of.network.layers, readers=reads_states(metric_of(found)))
    assert_equal(again.terms[0], found.term)
    assert_equal(train(of, name, block=block).term, found.term)


@pytest.mark.parametrize("name", ["scoped", "mend"])
def test_another_seed_gives_another_term(name: str) -> None:
    of = case("gpt2")
    one, other = (train(of, name, seed=seed, max_steps=30).term for seed in (0, 1))
    assert type(one) is type(other)
    found = term_tensors(other)
    same = [torch.equal(value, found[name]) for name, value in term_tensors(one).items() if value.numel()]
    assert same and not all(same)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_on_top_of_a_plain_parent(name: str) -> None:
    of = case("bert")
    layer, draw = of.network.layers[1], torch.Generator().manual_seed(5)
    a, b = torch.randn(2, layer.d_in, generator=draw), torch.randn(layer.d_out, 2, generator=draw)
    parent = LayerDelta(layer.path, (LowRank(a, b / 2),))
    assert predict(of.network, of.batch.edit_samples, [parent]) != predict(of.network, of.batch.edit_samples)
    found = train(of, name, (parent,))
    assert num_right(of, of.batch.edit_samples, (parent, as_delta(of, found))) >= enough(name, of)


@pytest.mark.parametrize("name", RECIPES)
def test_a_scoped_parent_keeps_its_edits(name: str) -> None:
    of = case("bert")
    first = of.batch.model_copy(update={"edit_samples": of.batch.edit_samples[:1]})
    later = of.batch.model_copy(update={"edit_samples": of.batch.edit_samples[1:], "adapt_samples": ()})
    parent = as_delta(of, train(Case(of.network, first), "scoped"))
    found = train(Case(of.network, later), name, (parent,), block=2)
    both = (parent, as_delta(of, found, block=2))
    assert num_right(of, later.edit_samples, both) == 2
    assert num_right(of, first.edit_samples, both) >= (1 if name == "scoped" else 0)


def test_scopes_read_the_base_even_below_a_parents_delta() -> None:
    of = case("bert")
    below = of.network.layers[0]
    draw = torch.Generator().manual_seed(5)
    parent = LayerDelta(below.path, (Dense(torch.randn(below.d_out, below.d_in, generator=draw) / 4),))
    bare, on_top = (train(of, "scoped", plain, max_steps=2).term for plain in ((), (parent,)))
    assert isinstance(bare, Scoped) and isinstance(on_top, Scoped)
    for name in ("keys", "radii", "owners"):
        assert torch.equal(getattr(bare.scope, name), getattr(on_top.scope, name)), name
    assert bare.scope.metric.sha256 == on_top.scope.metric.sha256


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("num_pass", [0, 1])
def test_few_pass_samples_are_enough(name: str, num_pass: int) -> None:
    of = case("bert")
    kept = of.batch.pass_samples[:num_pass]
    few = Case(of.network, of.batch.model_copy(update={"pass_samples": kept}))
    found = train(few, name)
    assert num_right(few, few.batch.edit_samples, (as_delta(few, found),)) == len(EDIT_TEXTS)


@pytest.mark.parametrize(("architecture", "block"), [("gpt2", 1), ("t5", -1), ("t5", 0), ("bert", 1)])
def test_an_entry_has_a_value_for_each_token_of_the_longest_answer(architecture: str, block: int) -> None:
    of = case(architecture)
    layer = of.network.layers[block]
    found = train(of, "scoped", block=block, max_steps=2)
    assert isinstance(found.term, Scoped)
    lengths = (encode(of.network, of.batch.edit_samples).targets != IGNORED).sum(-1)
    written = of.network.task.generates and "encoder" not in layer.path
    assert found.term.values.shape == (len(EDIT_TEXTS), 1 + int(lengths.max()) if written else 1, layer.d_out)
    after = found.term.values[:, -1:] if written else found.term.values[:, 1:]
    assert not after.any(), "after its answer an entry adds nothing"


@pytest.mark.parametrize(("architecture", "block"), [("gpt2", 1), ("llama", 1), ("t5", -1)])
def test_values_without_a_term_can_hold_an_answer_of_several_tokens(architecture: str, block: int) -> None:
    of = case(architecture)
    edit = of.batch.edit_samples[0].model_copy(update={"target": "Anna wrote the book"})
    few = Case(of.network, of.batch.model_copy(update={"edit_samples": (edit,), "adapt_samples": ()}))
    found = train(few, "scoped", block=block, entry_rank=0, max_steps=300)
    assert num_right(few, few.batch.edit_samples, (as_delta(few, found, block=block),)) == 1


@pytest.mark.parametrize("rank", [0, 2])
def test_an_entry_has_a_value_and_a_term_of_the_requested_rank(rank: int) -> None:
    of = case("bert")
    found = train(of, "scoped", entry_rank=rank)
    assert isinstance(found.term, Scoped) and found.term.down.shape[1] == rank
    assert found.term.values.any() and (rank == 0 or found.term.up.any())
    assert num_right(of, of.batch.edit_samples, (as_delta(of, found),)) == len(EDIT_TEXTS)


@pytest.mark.parametrize("name", ["scoped", "mend"])
@pytest.mark.parametrize("block", [0, -1])
def test_the_first_and_the_last_block_can_be_edited(name: str, block: int) -> None:
    of = case("gpt2")
    delta = as_delta(of, train(of, name, block=block), block=block)
    assert num_right(of, of.batch.edit_samples, (delta,)) == len(EDIT_TEXTS)


@pytest.mark.parametrize("tolerance", [1e-3, 0.999])
def test_compression_never_loses_a_correction(tolerance: float) -> None:
    of = case("bert")
    layer = of.network.layers[1]
    prepared = prepare_dataset(of.network, of.batch.edit_samples, of.batch.pass_samples, layer)
    trained = train(of, "mend").term
    assert isinstance(trained, LowRank | Dense)
    noise = torch.randn(layer.d_out, layer.d_in, generator=torch.Generator().manual_seed(0))
    term = Dense(trained.dense() + 0.05 * trained.dense().abs().mean() * noise)
    found = smallest_that_holds(of.network, prepared, term, MARGIN, tolerance)
    held = [score_term(of.network, prepared, part, MARGIN).held for part in (term, found)]
    assert held[1] >= held[0] > 0


def test_the_margin_is_at_most_what_the_base_reaches() -> None:
    of = case("bert")
    own = attainable_margin(of.network, of.batch, 1e9)
    assert 0 < own < 1e3
    assert attainable_margin(of.network, of.batch, own / 2) == own / 2
    assert attainable_margin(of.network, of.batch.model_copy(update={"pass_samples": ()}), 6.0) == 6.0, (
        "there are no pass samples"
    )
    assert attainable_margin(of.network, of.batch, 0.0) == 0.0, "plain likelihood stays plain"
    wrong = [
        s.model_copy(update={"target": LABELS[LABELS.index(s.target) - 1]}) for s in of.batch.pass_samples
    ]
    unsure = of.batch.model_copy(update={"pass_samples": tuple(wrong)})
    assert attainable_margin(of.network, unsure, 6.0) == 6.0, (
        "samples that the base answers wrongly do not count"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_in_half_precision_is_edited(name: str) -> None:
    of = case("llama")
    network = build_network("llama")
    network.model.to(torch.bfloat16)
    found = train(Case(network, of.batch), name, max_steps=3)
    tensors = term_tensors(found.term)
    words = tensors.pop("words", torch.empty(0, dtype=torch.uint8))
    assert words.dtype == torch.uint8
    assert tensors and all(v.dtype == torch.float32 and v.isfinite().all() for v in tensors.values())
