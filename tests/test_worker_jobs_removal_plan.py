"""Removing edits from a chain: the new deltas, the tensors of a term, and what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from salem.deltas.terms import LayerDelta, LowRank, Scoped
from salem.records import Delta, Edit, EditBatch, EditRequest, Neighbor, RecipeOptions, Sample
from salem.scope.features import FeatureSpec
from salem.scope.first_token import FirstTokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.lookups import KnownLookups
from salem.scope.metric import Metric
from salem.scope.state_scope import StateScope
from worker.jobs.removal_plan import Change, cut, plan, reduced, remaining_batch, without

METRIC = Metric(
    FeatureSpec("layer", 0, False, torch.ones(3)),
    torch.zeros(5),
    torch.ones(5),
    torch.ones(4, 5),
    torch.ones(WORD_BUCKETS),
    torch.ones(WORD_BUCKETS),
    "a" * 64,
)
KEEP, DROP, REPLAY = Change.KEEP, Change.DROP, Change.REPLAY


def delta(version: int, kind: str, removed: tuple[int, ...] = ()) -> Delta:
    return Delta(
        layer="l", blob="a" * 64, num_bytes=1, kind=kind, rank=None, version=version, removed=removed
    )


@pytest.mark.parametrize(
    ("kinds", "gone", "expected"),
    [
        # scoped: only the delta that loses something changes, and it goes when it is empty
        ("sss", {2: {0}}, [(1, KEEP, ()), (2, DROP, (0,)), (3, KEEP, ())]),
        ("sss", {2: {0, 1}, 1: {1}}, [(1, DROP, (1,)), (3, KEEP, ())]),
        # plain: everything from there on is made again
        ("pps", {2: {1}}, [(1, KEEP, ()), (2, REPLAY, (1,)), (3, REPLAY, ())]),
        ("pps", {2: {0, 1}}, [(1, KEEP, ()), (3, REPLAY, ())]),
        ("psp", {1: {0, 1}, 2: {0}}, [(2, REPLAY, (0,)), (3, REPLAY, ())]),
        ("sps", {1: {0}, 3: {1}}, [(1, DROP, (0,)), (2, KEEP, ()), (3, DROP, (1,))]),
        ("s", {1: {0, 1}}, []),
    ],
)
def test_the_chain_after_a_removal(
    kinds: str, gone: dict[int, Collection[int]], expected: list[tuple[int, Change, tuple[int, ...]]]
) -> None:
    chain = [delta(number, {"s": "scoped", "p": "low_rank"}[kind]) for number, kind in enumerate(kinds, 1)]
    steps = plan(chain, gone, {number: 2 for number in (1, 2, 3)})
    assert [(step.delta.version, step.change, step.removed) for step in steps] == expected


def test_edits_removed_before_stay_removed() -> None:
    steps = plan([delta(1, "scoped", (0, 3)), delta(2, "dense", (1,))], {1: [2]}, {1: 5, 2: 2})
    assert [(step.change, step.removed) for step in steps] == [(DROP, (0, 2, 3)), (KEEP, (1,))]
    assert plan([delta(1, "scoped", (0, 1))], {1: [2]}, {1: 3}) == ()


def test_edits_are_taken_out_of_a_request() -> None:
    edits = tuple(Edit(input=text, target="y") for text in "abc")
    request = EditRequest(model="m", parent=0, edits=edits, options=RecipeOptions(recipe="mend"))
    assert [edit.input for edit in reduced(request, (1,)).edits] == ["a", "c"]
    assert reduced(request, ()) == request


def term(num_entries: int, owners: list[int]) -> Scoped:
    draw = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    scope = StateScope(
        metric=METRIC,
        keys=torch.nn.functional.normalize(some(len(owners), 4), dim=-1),
        radii=torch.full((len(owners),), -1.0),
        owners=torch.tensor(owners, dtype=torch.float32),
        token_ids=torch.arange(2.0 * len(owners)).reshape(-1, 2),
        token_probabilities=some(len(owners), 2).sigmoid() / 2,
        first_token_weights=some(len(owners)).abs(),
        words=pack_words([WordCounts(Counter([f"word{place}"])) for place in range(len(owners))]),
        lexical_weights=some(len(owners)).abs(),
    )
    return Scoped(
        scope,
        values=some(num_entries, 2, 3),
        down=some(num_entries, 2, 6),
        up=some(num_entries, 2, 3),
    )


def test_dropping_entries_leaves_the_others_bit_for_bit() -> None:
    whole = term(4, [0, 1, 2, 3, 1, 0, 3])
    left = without(whole, [0, 2])
    assert left.scope.owners.tolist() == [0, 1, 0, 1] and left.scope.owners.dtype == torch.float32
    for name in (
        "keys",
        "radii",
        "token_ids",
        "token_probabilities",
        "first_token_weights",
        "words",
        "lexical_weights",
    ):
        assert torch.equal(getattr(left.scope, name), getattr(whole.scope, name)[[1, 3, 4, 6]])
    for name in ("values", "down", "up"):
        assert torch.equal(getattr(left, name), getattr(whole, name)[[1, 3]])
    assert left.scope.metric is METRIC


def test_remaining_entries_fire_on_the_same_inputs_and_add_the_same() -> None:
    whole = term(4, [0, 1, 2, 3, 1])
    draw = torch.Generator().manual_seed(4)
    points, x = torch.randn(50, 4, generator=draw), torch.randn(50, 7, 6, generator=draw)
    left = cut(LayerDelta("l", (whole,)), [0, 2]).scoped
    assert left is not None
    starts = torch.arange(50) % 7
    token_ids = FirstTokens(torch.arange(100.0).reshape(50, 2) % 12, torch.full((50, 2), 0.4))
    ask = KnownLookups([WordCounts(Counter([f"word{place % 7}"])) for place in range(50)], token_ids)
    before, after = (replace(each.scope.fire_at(points, ask), answer_starts=starts) for each in (whole, left))
    same = (before.entry == 1) | (before.entry == 3)
    assert 5 < same.sum() < 45
    assert torch.equal(torch.tensor([1, 3])[after.entry[same]], before.entry[same])
    assert torch.equal(left.act(x, after)[same], whole.act(x, before)[same])
    plain = LayerDelta("l", (LowRank(torch.ones(1, 6), torch.ones(3, 1)),))
    assert cut(plain, [0]) == plain


def sample(text: str, target: str = "y") -> Sample:
    return Sample(input=text, target=target)


def test_remaining_samples_are_measured_unless_training_saw_them() -> None:
    first = EditBatch(
        edit_samples=(sample("a"), sample("b"), sample("c")),
        adapt_samples=((0, sample("a1")), (2, sample("c1"))),
        pass_samples=(sample("seen"),),
        held_out_paraphrases=((1, sample("b1")), (2, sample("c2"))),
        held_out_pass_samples=(sample("p"), sample("q"), sample("d")),
    )
    second = first.model_copy(
        update={
            "edit_samples": (sample("a", "z"), sample("d")),
            "adapt_samples": ((1, sample("c2", "z")),),
            "held_out_paraphrases": (),
            "held_out_pass_samples": (sample("q"), sample("r")),
        }
    )
    batch = remaining_batch([(first, (0, 2)), (second, (0, 1))])
    # 1.0 is overridden by 2.0, 1.1 is removed, and 2.1 says something else about c2
    assert batch.edit_samples == (sample("c"), sample("a", "z"), sample("d"))
    assert batch.adapt_samples == ((0, sample("c1")), (2, sample("c2", "z")))
    assert batch.held_out_paraphrases == ()
    assert batch.held_out_pass_samples == (sample("p"), sample("q"), sample("r"))
    assert batch.pass_samples == ()
    alone = remaining_batch([(first, (2, 0))])
    assert alone.edit_samples == (sample("a"), sample("c"))
    assert alone.held_out_paraphrases == ((1, sample("c2")),)
    assert remaining_batch([]).edit_samples == ()


def test_samples_that_another_delta_was_trained_on_are_not_measured() -> None:
    nothing = EditBatch(
        edit_samples=(sample("a"),),
        adapt_samples=(),
        pass_samples=(),
        held_out_paraphrases=((0, sample("a1")), (0, sample("a2"))),
        held_out_pass_samples=(),
    )
    again = nothing.model_copy(
        update={"adapt_samples": ((0, sample("a1")),), "held_out_paraphrases": ((0, sample("a3")),)}
    )
    batch = remaining_batch([(nothing, (0,)), (again, ())])
    assert batch.held_out_paraphrases == ((0, sample("a2")),), (
        "a1 was trained on, even though its edit is gone"
    )


def test_white_space_does_not_make_a_different_question_in_a_removal() -> None:
    first = EditBatch(
        edit_samples=(sample("to  whom"),),
        adapt_samples=(),
        pass_samples=(),
        held_out_paraphrases=(),
        held_out_pass_samples=(sample("to whom "), sample("p")),
    )
    second = first.model_copy(update={"edit_samples": (sample("to whom", "z"),)})
    batch = remaining_batch([(first, (0,)), (second, (0,))])
    assert batch.edit_samples == (sample("to whom", "z"),), "the later one prevails"
    assert batch.held_out_pass_samples == (sample("p"),)


def neighbor(edit: int, text: str) -> Neighbor:
    return Neighbor(input=text, edit=edit, kind="negated", origin="rule")


def test_neighbors_of_the_remaining_edits_are_measured_unless_a_delta_knows_them() -> None:
    first = EditBatch(
        edit_samples=(sample("a"), sample("b")),
        adapt_samples=(),
        pass_samples=(sample("p"),),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
        neighbors=(neighbor(0, "known"),),
        held_out_neighbors=(neighbor(0, "of a"), neighbor(1, "of b"), neighbor(1, "c"), neighbor(1, "p")),
    )
    second = first.model_copy(
        update={
            "edit_samples": (sample("c"),),
            "held_out_neighbors": (neighbor(0, "known"), neighbor(0, "of  b"), neighbor(0, "of c")),
        }
    )
    batch = remaining_batch([(first, (1,)), (second, (0,))])
    assert {(each.edit, each.input) for each in batch.held_out_neighbors} == {(0, "of b"), (1, "of c")}
    assert batch.neighbors == ()
