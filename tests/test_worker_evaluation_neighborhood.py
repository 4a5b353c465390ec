"""Whether near neighbors of edits keep their answer, from known answers, and what the notes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from salem.models.chat import TurnFinder
from salem.records import BrokenNeighbor, DetailedMetrics, EditBatch, Neighbor, Proportion, Sample, TextInput
from worker.evaluation.neighborhood import measure_neighbors, notes_on_neighbors

EDIT = Sample(input="Where was Ann born?", target="Rome")


@dataclass(frozen=True)
class Answering:
    """A version whose answers are written down; what is not is answered with C."""

    known: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answers(self, inputs: Sequence[TextInput]) -> list[str]:
        self.asked.extend(item.input for item in inputs)
        return [self.known.get(item.input, "C") for item in inputs]

    def may_differ(self, inputs: Sequence[TextInput]) -> list[bool]:
        """Like a version with scopes, it runs only where it may answer anew."""
        return [item.input in self.known for item in inputs]


def neighbor(text: str, target: str | None = None, origin: str = "rule", kind: str = "negated") -> Neighbor:
    return Neighbor(input=text, target=target, edit=0, kind=kind, origin=origin)


def batch(calibrating: Sequence[Neighbor] = (), held_out: Sequence[Neighbor] = ()) -> EditBatch:
    return EditBatch(
        edit_samples=(EDIT,),
        adapt_samples=(),
        pass_samples=(),
        held_out_paraphrases=(),
        held_out_pass_samples=(),
        neighbors=tuple(calibrating),
        held_out_neighbors=tuple(held_out),
    )


def test_the_share_counts_held_out_neighbors_that_keep_their_answer() -> None:
    held_out = [neighbor("kept"), neighbor("same", "D"), neighbor("broken"), neighbor("outside")]
    after = Answering({"kept": " C\n", "same": "C", "broken": "Rome"})
    before = Answering()
    share, broken = measure_neighbors(batch([], held_out), before, after)
    assert share is not None and (share.value, share.count) == (0.75, 4)
    assert [(each.input, each.before, each.after, each.held_out) for each in broken] == [
        ("broken", "C", "Rome", True)
    ]
    assert "outside" not in before.asked and "outside" not in after.asked


def test_a_neighbor_that_gets_its_own_target_is_not_broken() -> None:
    held_out = [neighbor("better", "D"), neighbor("other", "D"), neighbor("unsure")]
    share, broken = measure_neighbors(
        batch([], held_out), Answering(), Answering({"better": "D", "other": "E", "unsure": "D"})
    )
    assert share is not None and round(share.value, 4) == 0.3333
    assert [each.input for each in broken] == ["other", "unsure"]


def test_of_the_calibrating_half_only_neighbors_of_the_client_are_checked() -> None:
    calibrating = [neighbor("sent", origin="client"), neighbor("made")]
    after = Answering({"sent": "Rome", "made": "Rome", "kept": "C"})
    share, broken = measure_neighbors(batch(calibrating, [neighbor("kept")]), Answering(), after)
    assert share is not None and (share.value, share.count) == (1.0, 1)
    assert [(each.input, each.held_out) for each in broken] == [("sent", False)]
    assert measure_neighbors(batch(), Answering(), after) == (None, ())


def metrics(num_neighbors: int, *broken: BrokenNeighbor, num_pass: int = 500) -> DetailedMetrics:
    def share(count: int) -> Proportion | None:
        return Proportion(value=0.5, low=0, high=1, count=count) if count else None

    whole = share(1)
    assert whole is not None
    return DetailedMetrics(
        edit_accuracy=whole,
        adapt_accuracy=None,
        generalization=None,
        drawdown=share(num_pass),
        locality=None,
        neighborhood=share(num_neighbors),
        protocol="argmax",
        outcomes=(),
        flips=(),
        broken_neighbors=broken,
    )


def broken_neighbor(
    text: str, origin: str = "rule", kind: str = "negated", apart: bool = True
) -> BrokenNeighbor:
    named = dict(neighbor(text, origin=origin, kind=kind))
    return BrokenNeighbor(**named, before="Ulm", after="Rome", held_out=apart)


def notes(found: DetailedMetrics, finder: TurnFinder | None = None, edit: Sample = EDIT) -> list[str]:
    return list(notes_on_neighbors(found, [edit], finder or TurnFinder()))


def test_a_note_names_broken_neighbors_of_the_client_first_and_of_every_kind() -> None:
    many = [broken_neighbor(f"not {number}") for number in range(5)]
    sent = broken_neighbor("Where did Ann die?", "client", "given")
    (note,) = notes(metrics(40, *many, broken_neighbor("Ask it", kind="request"), sent))
    assert note == (
        '7 of 40 near neighbors changed their answer, such as "Where did Ann die?" (given): it was "Ulm", '
        'now "Rome"; "not 0" (negated): it was "Ulm", now "Rome"; "Ask it" (request): it was "Ulm", '
        'now "Rome"'
    )
    (note,) = notes(metrics(40, broken_neighbor("sent", "client", "given", apart=False)))
    assert note.startswith('1 more neighbors of the request changed their answer, such as "sent"')
    assert notes(metrics(40)) == []


def test_a_note_quotes_what_tells_a_neighbor_from_its_edit() -> None:
    finder = TurnFinder("<user>", "<end>")
    template = "<system>You are a helpful assistant who answers every question.<end><user>{}<end>"
    edit = Sample(input=template.format("Where was Ann born?"), target="Rome")
    (note,) = notes(metrics(40, broken_neighbor(template.format("Where was Bob born?"))), finder, edit)
    assert '"Where was Bob born?" (negated)' in note
    long = "In the long history of the city of Rome and its many provinces there was one "
    edit = Sample(input=f"{long} woman who ruled", target="Rome")
    (note,) = notes(metrics(40, broken_neighbor(f"{long} man who ruled")), edit=edit)
    assert '"\N{HORIZONTAL ELLIPSIS}was one man who ruled" (negated)' in note


def test_notes_say_when_a_figure_rests_on_few_samples() -> None:
    assert notes(metrics(0, num_pass=0)) == [
        "neighborhood was not measured: no near neighbors are held out; send neighbors with the edits"
    ]
    assert notes(metrics(19, num_pass=99)) == [
        "neighborhood rests on only 19 near neighbors; send more with the edits",
        "drawdown rests on only 99 held-out pass samples; add samples to the reference set to see what else "
        "changed",
    ]
    assert notes(metrics(20, num_pass=100)) == []
