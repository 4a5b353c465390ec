"""Every method of the benchmark on a tiny model of every task: it edits and does not change the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from baseline_cases import EDIT_TEXTS, LATER_TEXTS, assert_untouched, contents, editing_of, loss_of
from torch import Tensor

from benchmarks.baselines.interface import EditedNetwork, Editing, SharedWork
from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from benchmarks.quality.methods import METHODS, method
from salem.errors import Misconfigured
from salem.inference.predict import predict
from salem.models.batching import encode, forward
from worker.activations.cache import SampleCache
from worker.recipes.scoped.options import ScopedOptions

pytestmark = pytest.mark.slow  # every rival, on every layout: only benchmarks use them

SEQUENTIAL = tuple(one.name for one in METHODS if one.sequential)
ONCE = tuple(one.name for one in METHODS if not one.sequential)
AHEAD = ("mend-ahead", "enn")
# Where random weights a few numbers wide need other settings than the models that the grids are for.
TINY = {
    "fine-tune": 0.02, "fine-tune-layer": 0.3, "fine-tune-kl": 0.01, "lora": 0.03, "mend-top3": 0.01,
    "mend-ahead": 0.01, "mend-traced": 0.01, "ultraedit": 0.2, "alphaedit": 0.5,
}  # fmt: skip
# The loop keeps no update under which no correction holds, and a middle layer this narrow may have none.
NOTHING_HOLDS = {
    ("fine-tune-layer", "t5"), ("fine-tune-kl", "t5"),
}  # fmt: skip


def setting_of(name: str) -> float:
    return TINY.get(name, method(name).grid[1])


def test_every_baseline_gets_at_least_as_much_search_as_the_product() -> None:
    assert len({one.name for one in METHODS}) == len(METHODS) == 14
    for one in METHODS:
        assert len(set(one.grid)) == len(one.grid) >= len(method("salem").grid) == 3
        assert one.largest in (100, 1_000) and one.source and one.setting_name
        assert method(one.name) is one
    assert method("salem").grid[0] == ScopedOptions().scope_budget_per_edit, "ties go to the first"


@pytest.mark.parametrize("architecture", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("name", [one.name for one in METHODS])
def test_a_method_edits_and_leaves_the_base_alone(name: str, architecture: str) -> None:
    under_test = method(name)
    editing = editing_of(architecture, setting_of(name))
    network, samples = editing.network, editing.batch.edit_samples
    before, plain = contents(network), loss_of(editing, None)
    edited = under_test.edit(editing)
    assert_untouched(network, before)
    after = loss_of(editing, edited)
    assert after <= plain and (after == plain) is ((name, architecture) in NOTHING_HOLDS)
    assert_untouched(network, before)
    assert edited.delta_bytes > 0
    with edited.answering(samples):
        assert len(predict(network, samples, max_new_tokens=4)) == len(samples)
    assert loss_of(editing, None) == plain


@pytest.mark.parametrize("name", ["lora", "mend-ahead"])
def test_results_do_not_depend_on_the_global_generator(name: str) -> None:
    editing = editing_of("bert", setting_of(name))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = loss_of(editing, method(name).edit(editing))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert loss_of(editing, method(name).edit(editing)) == first


@pytest.mark.parametrize("name", AHEAD)
def test_without_a_corpus_pass_samples_serve_as_episodes(name: str) -> None:
    editing = editing_of("bert", setting_of(name), corpus=False)
    assert loss_of(editing, method(name).edit(editing)) < loss_of(editing, None)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_later_batch_is_added_to_the_earlier_one(name: str) -> None:
    early = editing_of("bert", setting_of(name), texts=EDIT_TEXTS)
    first = method(name).edit(early)
    late = editing_of("bert", setting_of(name), texts=LATER_TEXTS, before=first)
    held = loss_of(early, first)
    second = method(name).edit(late)
    # Equal where the first batch already corrects the second: then there is nothing to add.
    assert loss_of(late, second) <= loss_of(late, first)
    assert loss_of(late, second) < loss_of(late, None)
    assert loss_of(early, first) == held  # the earlier result is not written
    assert loss_of(early, second) < loss_of(early, None)


@pytest.mark.parametrize("name", ONCE)
def test_other_methods_refuse_an_earlier_result(name: str) -> None:
    first = method("grace").edit(editing_of("bert", 0.3))
    with pytest.raises(Misconfigured):
        method(name).edit(editing_of("bert", method(name).grid[1], before=first))


def test_later_batches_of_the_product_reuse_the_first_metric() -> None:
    first = method("salem").edit(editing_of("bert", setting_of("salem")))
    later = editing_of("bert", setting_of("salem"), texts=LATER_TEXTS, before=first)
    edited = method("salem").edit(later)
    assert isinstance(edited, NetworkWithDeltas)
    metrics = [delta.scoped.scope.metric.sha256 for delta in edited.deltas if delta.scoped]
    assert len(metrics) == 2 and len(set(metrics)) == 1


@pytest.mark.parametrize("name", sorted({one.name for one in METHODS} - {"grace", "ultraedit"}))
def test_preparing_ahead_does_not_change_the_result(name: str, tmp_path: Path) -> None:
    """The second of two edits in a row reuses work of the first, but gives the same result as alone."""
    shared_work = SharedWork(SampleCache(tmp_path, 2**24, "tiny"))
    first, second = (editing_of("bert", setting_of(name), texts=texts) for texts in (EDIT_TEXTS, LATER_TEXTS))
    method(name).edit(replace(first, shared_work=shared_work))
    shared = method(name).edit(replace(second, shared_work=shared_work))
    assert torch.equal(logits(second, shared), logits(second, method(name).edit(second)))


@pytest.mark.parametrize("name", AHEAD)
def test_training_ahead_happens_once(name: str) -> None:
    shared_work, editing = SharedWork(), editing_of("bert", setting_of(name))
    method(name).edit(replace(editing, shared_work=shared_work))
    (kept,) = shared_work.results.values()
    method(name).edit(replace(editing, shared_work=shared_work))
    assert list(shared_work.results.values()) == [kept]


def test_the_cache_of_the_base_is_not_used_on_top_of_edits(tmp_path: Path) -> None:
    first = method("ultraedit").edit(editing_of("bert", setting_of("ultraedit")))
    editing = editing_of("bert", 1.0, before=first)
    cache = SampleCache(tmp_path, 2**24, "tiny")
    assert replace(editing, shared_work=SharedWork(cache)).cache is None
    assert replace(editing, before=None, shared_work=SharedWork(cache)).cache is cache


@torch.no_grad()
def logits(editing: Editing, edited: EditedNetwork) -> Tensor:
    batch = encode(editing.network, editing.batch.corrections)
    with edited.answering(editing.batch.corrections, batch):
        return forward(editing.network, batch).logits
