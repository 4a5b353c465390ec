"""Warnings about the scopes of a job: which edits overlap, and how many the notes name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_worker_recipes_scoped_state_scopes import EDITS, batch_of, drawn
from tiny_models import LABELS

from salem.messages import MAX_NOTES
from salem.models.chat import TurnFinder
from salem.records import Edit, EditBatch
from salem.scope.lexical import WordCounts
from salem.scope.lookups import KnownLookups
from worker.recipes.scoped import warnings as warned
from worker.recipes.scoped.warnings import Overlaps

SIX = tuple(
    Edit(input=text, target=LABELS[place % 3], paraphrases=(f"{text} please", f"well {text}"))
    for place, text in enumerate(("refund now", "refund today", "log in", "log out", "my lamp", "a lamp"))
)


def warnings(meeting: Overlaps, batch: EditBatch) -> list[str]:
    nobody = torch.zeros(0, len(meeting.owners))
    return list(warned.scope_warnings(nobody > 0, nobody, meeting, batch))


@pytest.mark.parametrize("rows", [1, 4, 1_000])
def test_overlaps_equal_those_of_all_keys_compared_at_once(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(warned, "_ROWS", rows)
    batch = batch_of(20, SIX)
    scope = replace(drawn(batch).scope, radii=torch.full((12,), 0.2))
    known = KnownLookups([WordCounts.of(sample) for sample in batch.corrections], scope.first_tokens)
    depth = scope.likeness(scope.keys, known) - scope.radii
    found = warned.find_overlaps(scope.owners, lambda rows: depth[rows])
    torch.testing.assert_close(found.margin, depth.amax(-1))
    assert torch.equal(found.deepest, scope.owners.long()[depth.argmax(-1)])
    owners = scope.owners.long().tolist()
    expected = torch.eye(6, dtype=torch.bool)
    for row, key in (depth > 0).nonzero().tolist():
        expected[owners[row], owners[key]] = expected[owners[key], owners[row]] = True
    assert torch.equal(found.shared, expected) and 6 < expected.sum() < 36


def test_an_edit_that_is_deeper_in_the_scope_of_another_is_named() -> None:
    batch = batch_of(0, (EDITS[1], Edit(input="x", text_pair="y", target=LABELS[0])))
    both = torch.ones(2, 2, dtype=torch.bool)
    one, deeper = warnings(Overlaps(torch.arange(2), torch.zeros(2), torch.tensor([1, 1]), both), batch)
    assert one.startswith('"log in to France with Peru" and "x" / "y" lie in one scope')
    assert deeper.startswith(
        '"log in to France with Peru" lies deeper in the scope of "x" / "y" than in its own'
    )
    apart = Overlaps(torch.arange(2), torch.zeros(2), torch.tensor([0, 1]), torch.eye(2, dtype=torch.bool))
    assert warnings(apart, batch) == []


def test_messages_quote_the_last_user_turn_instead_of_the_template() -> None:
    edits = tuple(
        Edit(input=f"<|system|>Be kind.<|end|><|user|>{text}<|end|>", target=label)
        for text, label in (("Who is it?", LABELS[0]), ("Who was it?", LABELS[1]))
    )
    both = torch.ones(2, 2, dtype=torch.bool)
    meeting = Overlaps(torch.arange(2), torch.zeros(2), torch.tensor([0, 1]), both)
    nobody = torch.zeros(0, 2)
    turns = TurnFinder("<|user|>", "<|end|>")
    (found,) = warned.scope_warnings(nobody > 0, nobody, meeting, batch_of(0, edits), turns)
    assert found.startswith('"Who is it?" and "Who was it?" lie in one scope')


def test_many_conflicts_are_counted_and_a_few_are_named() -> None:
    edits = tuple(Edit(input=f"text {place}", target=LABELS[place % 2]) for place in range(40))
    all_in_one = torch.ones(40, 40, dtype=torch.bool)
    met = Overlaps(torch.arange(40), torch.zeros(40), torch.zeros(40, dtype=torch.int64), all_in_one)
    found = warnings(met, batch_of(0, edits))
    assert len(found) == MAX_NOTES + 1 + 20
    assert found[MAX_NOTES] == "and 380 more pairs of edits in one scope with different targets"
