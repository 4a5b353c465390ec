"""Samples as a client wrote them: the shape is checked, the content is not checked yet.

The records of `salem.records` refuse an empty text at once. These accept it, so that the checks can report
every bad place of a request together.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from salem.records import MAX_ITEMS, Edit, Record, Sample, TextInput


def _check_size(items: Any) -> Any:
    if isinstance(items, list) and len(items) > MAX_ITEMS:
        raise ValueError(f"the list has {len(items)} items, but the limit is {MAX_ITEMS}; send fewer")
    return items


BOUNDED = BeforeValidator(_check_size)
"""For lists in requests: refuses a list beyond the overall limit before it reads the items."""


def words_of(text: str | None) -> str:
    """The text with single spaces. Two texts with the same words count as the same text."""
    return " ".join((text or "").split())


class TextIn(Record):
    """An input: one text or a pair."""

    input: str
    text_pair: str | None = None

    @property
    def words(self) -> tuple[str, str]:
        """The identity of the input: its words and those of its pair, whatever the white space."""
        return words_of(self.input), words_of(self.text_pair)

    def checked(self) -> TextInput:
        """The record, once the checks have passed."""
        return TextInput(input=self.input, text_pair=self.text_pair)


class SampleIn(TextIn):
    """A labeled input."""

    target: str

    @property
    def answer(self) -> str:
        """The answer that the sample is about."""
        return self.target

    @property
    def goal(self) -> tuple[str | None, str | None]:
        """The target, and no answer to forget: as in `Sample.goal`."""
        return self.target, None

    def checked(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target)


class ReferenceSampleIn(SampleIn):
    """A row of a reference set: a labeled input and paraphrases of it."""

    paraphrases: Annotated[tuple[str, ...], BOUNDED] = ()

    def checked(self) -> Edit:
        return Edit(**self.model_dump())


class NeighborIn(TextIn):
    """A near neighbor of an edit: an input that must keep its answer."""

    target: str | None = Field(None, description="Its correct answer: then this answer is fine, too")


def as_object(item: Any) -> Any:
    """A plain string as an input without a pair."""
    return {"input": item} if isinstance(item, str) else item


class EditIn(TextIn):
    """A correction: the correct answer, or an answer to forget."""

    target: str | None = Field(None, description="The correct answer; null to forget an answer")
    forget: str | None = Field(None, description="Without a target: the answer to move away from")
    paraphrases: Annotated[tuple[str, ...], BOUNDED] = ()
    neighbors: Annotated[tuple[Annotated[NeighborIn, BeforeValidator(as_object)], ...], BOUNDED] = Field(
        (),
        description="Similar inputs that must keep their answers: texts, or objects with `input`, "
        "`text_pair`, and `target`. Without a `text_pair`, they have that of the edit",
    )
    subject: str | None = Field(
        None, description="The part of `input` that the edit is about. Default: the job finds it"
    )

    @property
    def answer(self) -> str:
        """The answer that the edit is about; an empty text if there is none."""
        return self.target or self.forget or ""

    @property
    def goal(self) -> tuple[str | None, str | None]:
        """The target and the answer to forget."""
        return self.target, self.forget

    @property
    def whole_neighbors(self) -> tuple[NeighborIn, ...]:
        """The neighbors; those without a second text have that of the edit."""
        return tuple(
            neighbor if neighbor.text_pair else neighbor.model_copy(update={"text_pair": self.text_pair})
            for neighbor in self.neighbors
        )

    def checked(self) -> Edit:
        neighbors = [neighbor.model_dump() for neighbor in self.whole_neighbors]
        return Edit(**self.model_dump() | {"neighbors": neighbors})
