"""Checks the neighbors and the subject of edits. Each problem has a JSON pointer and a remedy.

Pure functions on a request's samples and the hosted model's row. Must not know HTTP, SQL, or what
the model answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from app.validation.samples import EditIn, NeighborIn, words_of
from app.validation.texts import TextReader, check_lengths, check_target, check_text, readable
from salem.errors import Pointer
from salem.messages import quote
from salem.records import HostedModel

MOST_NEIGHBORS = 64  # of one edit


def check_neighbors(model: HostedModel, edits: Sequence[EditIn], reader: TextReader) -> Iterator[Pointer]:
    """Every problem of the edits' neighbors and subjects, in their order."""
    corrected = dict(_corrected(edits))
    places = [
        (f"/edits/{index}/neighbors/{number}", edit, neighbor)
        for index, edit in enumerate(edits)
        for number, neighbor in enumerate(edit.whole_neighbors)
    ]
    first: dict[tuple[str, tuple[str, str]], str] = {}
    for pointer, edit, neighbor in places:
        yield from _check_texts(pointer, neighbor, model)
        yield from _check_target(pointer, edit, neighbor, reader)
        if at := corrected.get(neighbor.words):
            yield Pointer(
                pointer,
                f"{reader.quote(neighbor.input)} is also the text at {at}, whose answer must change, but a "
                "neighbor keeps its answer; leave out one of the two",
            )
        earlier = first.setdefault((pointer.split("/")[2], neighbor.words), pointer)
        if earlier != pointer:
            yield Pointer(pointer, f"{reader.quote(neighbor.input)} is already at {earlier}; leave it out")
    fit = [(pointer, neighbor) for pointer, _, neighbor in places if _readable(neighbor)]
    yield from check_lengths(model, fit, reader)
    for index, edit in enumerate(edits):
        yield from _check_subject(f"/edits/{index}/subject", edit, reader)


def check_number_of_neighbors(edits: Sequence[EditIn]) -> Iterator[Pointer]:
    """Edits with more neighbors than a job measures."""
    for index, edit in enumerate(edits):
        if (count := len(edit.neighbors)) > MOST_NEIGHBORS:
            detail = f"{count} neighbors, but the limit is {MOST_NEIGHBORS}; leave some out"
            yield Pointer(f"/edits/{index}/neighbors", detail)


def _corrected(edits: Sequence[EditIn]) -> Iterator[tuple[tuple[str, str], str]]:
    """The words of each text whose answer must change, with its place."""
    for index, edit in enumerate(edits):
        for number, text in enumerate(edit.paraphrases):
            words = (words_of(text), words_of(edit.text_pair))
            yield words, f"/edits/{index}/paraphrases/{number}"
        yield edit.words, f"/edits/{index}/input"


def _check_texts(pointer: str, neighbor: NeighborIn, model: HostedModel) -> Iterator[Pointer]:
    yield from check_text(pointer, neighbor.input, "neighbor")
    if neighbor.text_pair is not None:
        yield from check_text(f"{pointer}/text_pair", neighbor.text_pair, "text_pair")
    if neighbor.target is not None:
        yield from check_target(f"{pointer}/target", neighbor.target, model)


def _check_target(pointer: str, edit: EditIn, neighbor: NeighborIn, reader: TextReader) -> Iterator[Pointer]:
    """At most one problem: the neighbor wants what the edit wants, or has no answer that it may keep."""
    target = words_of(neighbor.target)
    if target and target == words_of(edit.target):
        yield Pointer(
            f"{pointer}/target",
            f"{reader.quote(neighbor.input)} has the target of its edit, so it cannot show whether the edit "
            "reaches it; send it in `paraphrases` if the edit should, or leave it out",
        )


def _readable(neighbor: NeighborIn) -> bool:
    return readable(neighbor.input, neighbor.text_pair)


def _check_subject(pointer: str, edit: EditIn, reader: TextReader) -> Iterator[Pointer]:
    """At most one problem: the subject is empty, or is not a part of the text."""
    if edit.subject is None:
        return
    problems = list(check_text(pointer, edit.subject, "subject"))
    if not problems and edit.subject not in edit.input:
        hint = "; spell it as the text does" if edit.subject.lower() in edit.input.lower() else ""
        detail = f"{quote(edit.subject)} is not a part of {reader.quote(edit.input)}{hint}"
        problems.append(
            Pointer(
                pointer,
                f"{detail}, or leave it out to let the job find it"
                if hint
                else (f"{detail}; copy it from the text, or leave it out to let the job find it"),
            )
        )
    yield from problems
