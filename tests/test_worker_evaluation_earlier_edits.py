"""Which edits of earlier jobs a new delta breaks, with enough new tokens for their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import tiny_network

from salem.deltas.terms import Dense, LayerDelta
from salem.records import EditBatch, Sample, TextInput
from worker.evaluation.earlier_edits import notes_on_lost_edits
from worker.evaluation.versions import EditedModel, on_top

LONG = " ".join(["refund"] * 50)


@dataclass(frozen=True)
class Told:
    """A version with given answers; its newest delta may have changed these inputs."""

    known: dict[str, str]
    changed: str = ""
    max_new_tokens: int = 32
    rooms: list[int] = field(default_factory=list)

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        return [self.known[item.input] for item in inputs]

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        return [item.input in self.changed for item in inputs]

    def writing(self, max_new_tokens: int) -> Told:
        self.rooms.append(max_new_tokens)
        return self


def notes(before: Told, after: Told, earlier: dict[str, Sample], architecture: str = "bert") -> list[str]:
    again = Sample(input="c", target="once more")
    batch = EditBatch(
        edit_samples=(again,),
        adapt_samples=(),
        pass_samples=(),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
    )
    return list(notes_on_lost_edits(tiny_network(architecture), before, after, earlier, batch))  # type: ignore[arg-type]


def test_a_note_names_the_earlier_edits_that_no_longer_hold() -> None:
    """Of five edits, a and d are lost, b never held, c is corrected again, and nothing changed e."""
    earlier = {f"1.{place}": Sample(input=text, target="new") for place, text in enumerate("dabce")}
    before = Told({"a": "new", "b": "old", "c": "new", "d": "new"})
    after = Told({"a": "other", "b": "other", "c": "other", "d": "old"}, changed="abcd")
    (note,) = notes(before, after, earlier)
    assert note.startswith('2 of 4 earlier edits no longer hold; the newest is 1.0, "d". Correct it again')
    assert notes(before, Told(before.known, "abcd"), earlier) == []
    assert notes(before, after, {}) == []


@pytest.mark.parametrize(("architecture", "rooms"), [("gpt2", [64, 32]), ("bert", [32])])
def test_long_answers_get_enough_new_tokens(architecture: str, rooms: list[int]) -> None:
    """A truncated answer is never correct, so its edit could not be reported as lost."""
    earlier = {"2.0": Sample(input="a", target=LONG), "1.0": Sample(input="b", target="refund")}
    before, after = Told({"a": LONG, "b": "refund"}), Told({"a": "no", "b": "no"}, changed="ab")
    (note,) = notes(before, after, earlier, architecture)
    assert note.startswith('2 of 2 earlier edits no longer hold; the newest is 2.0, "a"')
    assert before.rooms == after.rooms == rooms


def test_more_new_tokens_mean_smaller_batches() -> None:
    network = tiny_network("gpt2")
    layer = network.layers[-1]
    noise = torch.randn(layer.d_out, layer.d_in, generator=torch.Generator().manual_seed(3))
    below = EditedModel(network, (), 2)
    asked = [TextInput(input="where is my order"), TextInput(input="log in")]
    for short in (below, on_top(below, LayerDelta(layer.path, (Dense(noise),)))):
        assert short.writing(2) is short
        roomy = short.writing(6)
        assert isinstance(roomy, EditedModel) and roomy.batch_size == 64 // 3
        cut, whole = short.answers(asked), roomy.answers(asked)
        assert all(long.startswith(start) for long, start in zip(whole, cut, strict=True)) and whole != cut
