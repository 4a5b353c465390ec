"""Checks an edit request: reports every problem at once, each with a JSON pointer and a remedy.

Pure functions on a request's samples and the hosted model's row. Must not know HTTP, SQL, or the
tokenizer: the caller passes in a `TextReader`. Texts that differ only in white space are the same input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.validation.neighbors import check_neighbors, check_number_of_neighbors
from app.validation.recipes import OptionsIn, RecipeTraits, catalog
from app.validation.samples import EditIn, SampleIn, words_of
from app.validation.texts import (
    TextReader,
    check_answers,
    check_input,
    check_lengths,
    check_target,
    check_text,
    countable,
    did_you_mean,
    readable,
    wanted_answer,
)
from salem.errors import MAX_PLACES, Pointer
from salem.messages import quote
from salem.records import Edit, HostedModel, ListedEntry, SharedOptions


@dataclass(frozen=True)
class EditLimits:
    """Size limits of one request."""

    max_edits: int
    remedy: str = "send several requests"  # for a request with more edits
    max_paraphrases: int = 64  # per edit
    max_pass_samples: int = 20_000


@dataclass(frozen=True)
class Place:
    """A sample, its place in the request, and the edit that it belongs to (None: a pass sample)."""

    pointer: str  # of the sample
    text_pointer: str  # of its text, for problems with its length
    sample: SampleIn | EditIn
    edit: int | None
    paraphrase: bool = False

    @property
    def answer_pointer(self) -> str:
        """Of its answer: the target or the answer to forget."""
        return f"{self.pointer}/{'target' if self.sample.goal[0] else 'forget'}"

    @property
    def readable(self) -> bool:
        """Whether a tokenizer can read all of its texts. Its label may still be unknown."""
        return readable(self.sample.input, self.sample.text_pair, *self.sample.goal)


def check_edit_request(
    model: HostedModel,
    edits: Sequence[EditIn],
    pass_samples: Sequence[SampleIn] | None,
    *,
    options: SharedOptions,
    limits: EditLimits,
    reader: TextReader,
) -> list[Pointer]:
    """Every problem of a request, in the order of the request's parts."""
    kept = pass_samples or ()
    if beyond := list(_check_limits(edits, kept, limits)):
        return beyond  # too large to check in detail
    found = list(_check_presence(edits, pass_samples))
    for index, edit in enumerate(edits):
        found += _check_edit(f"/edits/{index}", edit, model, reader, hint=len(found) < MAX_PLACES)
    for index, sample in enumerate(kept):
        found += check_input(f"/pass_samples/{index}", sample)
        at = f"/pass_samples/{index}/target"
        found += check_target(at, sample.target, model, hint=len(found) < MAX_PLACES)
    places = [place for place in _places(edits, kept) if place.readable]
    found += _check_answers(model, places, options.max_new_tokens, reader)
    found += _check_layer(model, options.layer)
    if isinstance(options, OptionsIn):
        found += _check_recipe(edits, options.traits, reader)
    found += check_lengths(model, [(place.text_pointer, place.sample) for place in places], reader)
    found += check_neighbors(model, edits, reader)
    found += _check_agreement([place for place in places if countable(model, place.sample)], reader)
    return found


def _check_presence(edits: Sequence[EditIn], pass_samples: Sequence[SampleIn] | None) -> Iterator[Pointer]:
    if not edits:
        yield Pointer("/edits", "the list is empty; send at least one corrected sample")
    if pass_samples is not None and not pass_samples:
        yield Pointer("/pass_samples", "the list is empty; leave it out to use the model's reference set")


def _check_limits(
    edits: Sequence[EditIn], pass_samples: Sequence[SampleIn], limits: EditLimits
) -> Iterator[Pointer]:
    if len(edits) > limits.max_edits:
        yield Pointer("/edits", f"{len(edits)} edits, but the limit is {limits.max_edits}; {limits.remedy}")
    for index, edit in enumerate(edits):
        if (count := len(edit.paraphrases)) > (most := limits.max_paraphrases):
            at = f"/edits/{index}/paraphrases"
            yield Pointer(at, f"{count} paraphrases, but the limit is {most}; leave some out")
    yield from check_number_of_neighbors(edits)
    if (count := len(pass_samples)) > (most := limits.max_pass_samples):
        yield Pointer("/pass_samples", f"{count} pass samples, but the limit is {most}; leave some out")


def _check_edit(
    pointer: str, edit: EditIn, model: HostedModel, reader: TextReader, *, hint: bool
) -> Iterator[Pointer]:
    yield from check_input(pointer, edit)
    yield from _check_answer(pointer, edit, model, reader, hint=hint)
    for index, text in enumerate(edit.paraphrases):
        yield from check_text(f"{pointer}/paraphrases/{index}", text, "paraphrase")


def _check_answer(
    pointer: str, edit: EditIn, model: HostedModel, reader: TextReader, *, hint: bool
) -> Iterator[Pointer]:
    """At most one problem: no answer, two answers, or an answer that the model does not have."""
    text = reader.quote(edit.input)
    if edit.target is None and edit.forget is None:
        yield Pointer(
            f"{pointer}/target",
            f"{text} has no target; send its correct answer, or in `forget` the answer to move away from",
        )
    elif edit.forget is None:
        yield from check_target(f"{pointer}/target", edit.answer, model, hint=hint)
    elif edit.target is not None:
        yield Pointer(
            f"{pointer}/forget",
            f"{text} has a target and an answer to forget; leave out `forget` to correct it, or set `target` "
            "to null to forget",
        )
    else:
        yield from check_target(f"{pointer}/forget", edit.forget, model, "answer to forget", hint=hint)


def _check_answers(
    model: HostedModel, places: Sequence[Place], max_new_tokens: int, reader: TextReader
) -> Iterator[Pointer]:
    """Answers that are too long for a generating model to write."""
    if model.task.generates:
        asked = [(place.answer_pointer, place.sample) for place in places if not place.paraphrase]
        yield from check_answers(model, asked, max_new_tokens, reader)


def _check_recipe(edits: Sequence[EditIn], recipe: RecipeTraits, reader: TextReader) -> Iterator[Pointer]:
    forgetting = [edit for edit in edits if edit.forget is not None]
    if forgetting and not recipe.forgets:
        others = " or ".join(other.name for other in catalog().recipes if other.forgets)
        yield Pointer(
            "/options/recipe",
            f"{recipe.name} cannot forget: nothing limits what would replace "
            f"{quote(forgetting[0].answer)} for {reader.quote(forgetting[0].input)}; use {others}",
        )


def _check_layer(model: HostedModel, layer: str | None) -> Iterator[Pointer]:
    paths = [candidate.path for candidate in model.layers]
    if layer is not None and layer not in paths:
        hint = did_you_mean(layer, paths) or f"; GET /models/{model.name} lists all {len(paths)}"
        yield Pointer("/options/layer", f"{quote(layer)} is not an editable layer of {model.name}{hint}")


def _places(edits: Sequence[EditIn], pass_samples: Sequence[SampleIn]) -> Iterator[Place]:
    """Edits, then their paraphrases, then pass samples. If two places conflict, the later one is reported."""
    for index, edit in enumerate(edits):
        yield Place(f"/edits/{index}", f"/edits/{index}/input", edit, index)
    for index, edit in enumerate(edits):
        for number, text in enumerate(edit.paraphrases):
            pointer = f"/edits/{index}/paraphrases/{number}"
            yield Place(pointer, pointer, edit.model_copy(update={"input": text}), index, paraphrase=True)
    for index, sample in enumerate(pass_samples):
        yield Place(f"/pass_samples/{index}", f"/pass_samples/{index}/input", sample, None)


def _check_agreement(places: Sequence[Place], reader: TextReader) -> Iterator[Pointer]:
    """Samples with the same input: duplicates, contradictions, and edits that are also pass samples."""
    first: dict[tuple[str, str], Place] = {}
    for place in places:
        earlier = first.setdefault(place.sample.words, place)
        if earlier is not place:
            yield from _clash(earlier, place, reader)


def _clash(earlier: Place, later: Place, reader: TextReader) -> Iterator[Pointer]:
    """The problem of two places with one input, reported at the later one. Pass samples may repeat."""
    text = reader.quote(later.sample.input)
    if later.edit is None and earlier.edit is not None:
        yield Pointer(
            later.pointer,
            f"{text} is also at {earlier.pointer}; you cannot both correct and keep a sample, so remove one",
        )
    elif later.paraphrase and earlier.edit == later.edit:
        what = "another paraphrase" if earlier.paraphrase else "the edit itself"
        yield Pointer(later.pointer, f"{text} is the same as {what}; use other words, or leave it out")
    elif not _same(earlier.sample.goal, later.sample.goal):
        yield Pointer(
            later.pointer if later.paraphrase else later.answer_pointer,
            f"the answer to {text} should be {wanted_answer(later.sample.goal)} here but "
            f"{wanted_answer(earlier.sample.goal)} at {earlier.pointer}; keep one of them",
        )
    elif later.edit is not None:
        yield Pointer(later.pointer, f"{text} is already at {earlier.pointer}; leave it out")


def override_notes(
    edits: Sequence[Edit], entries: Sequence[ListedEntry], reader: TextReader
) -> tuple[str, ...]:
    """A note for every text that an entry of the parent answers differently. The edit wins from now on.

    Args:
        entries: the parent's entries for these texts, newest first.
    """
    newest: dict[tuple[str, str], ListedEntry] = {}
    for entry in entries:
        for text in (entry.input, *(key.text for key in entry.keys)):
            newest.setdefault((words_of(text), words_of(entry.text_pair)), entry)
    notes = []
    for edit in edits:
        for text in (edit.input, *edit.paraphrases):
            old = newest.get((words_of(text), words_of(edit.text_pair)))
            if old is not None and not _same(old.goal, edit.goal):
                was, now = wanted_answer(old.goal), wanted_answer(edit.goal)
                notes.append(f"{reader.quote(text)} overrides entry {old.id}: it was {was}, now {now}")
    return tuple(notes)


def entry_overrides_edit(note: str, recipe: str) -> Pointer:
    """The problem of a plain edit to what an entry answers: the entry would keep answering."""
    others = " or ".join(other.name for other in catalog().recipes if other.scoped)
    return Pointer(
        "/options/recipe",
        f"{note}; but {recipe} changes the layer below the entries, and the entry would still answer: use "
        f"{others}, or remove the entry first",
    )


def _same(one: tuple[str | None, str | None], other: tuple[str | None, str | None]) -> bool:
    """Whether two samples want the same answer, whatever the white space."""
    return [words_of(text) for text in one] == [words_of(text) for text in other]
