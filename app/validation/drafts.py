"""Samples as a client wrote them: the shape holds, the content is not checked yet.

The records of `salem.records` refuse an empty text on sight; these do not, so that the checks can report
every bad place of a request together, with words about the sample.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from salem.records import MOST_ITEMS, Edit, Record, Sample, TextInput


def _read_whole(items: Any) -> Any:
    if isinstance(items, list) and len(items) > MOST_ITEMS:
        raise ValueError(f"a list of {len(items)} items, {MOST_ITEMS} at most are read; give fewer")
    return items


BOUNDED = BeforeValidator(_read_whole)
"""Of a list from a client: one beyond any limit is refused before its items are looked at."""


def words_of(text: str | None) -> str:
    """The text with single spaces: two texts with the same words count as the same text."""
    return " ".join((text or "").split())


class DraftText(Record):
    """What a client asks a model."""

    input: str
    text_pair: str | None = None

    @property
    def words(self) -> tuple[str, str]:
        """What identifies the input: its words and those of its pair, whatever the white space."""
        return words_of(self.input), words_of(self.text_pair)

    def checked(self) -> TextInput:
        return TextInput(input=self.input, text_pair=self.text_pair)


class DraftSample(DraftText):
    """A labeled input from a client."""

    target: str

    @property
    def answer(self) -> str:
        """What is written behind the input."""
        return self.target

    @property
    def becomes(self) -> tuple[str | None, str | None]:
        """As of an edit: target, and nothing to be forgotten."""
        return self.target, None

    def checked(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target)


class DraftReference(DraftSample):
    """A labeled input for a reference set, with the same in other words."""

    paraphrases: Annotated[tuple[str, ...], BOUNDED] = ()

    def checked(self) -> Edit:
        return Edit(**self.model_dump())


class DraftEdit(DraftText):
    """A correction from a client: a right answer, or one that is to be given no more."""

    target: str | None = Field(None, description="The right answer; null where one is to be forgotten")
    forget: str | None = Field(None, description="With no target: the answer to move away from")
    paraphrases: Annotated[tuple[str, ...], BOUNDED] = ()

    @property
    def answer(self) -> str:
        """The answer that it is about; of one that gives two or none, what there is."""
        return self.target or self.forget or ""

    @property
    def becomes(self) -> tuple[str | None, str | None]:
        """Target and what is to be forgotten."""
        return self.target, self.forget

    def checked(self) -> Edit:
        return Edit(**self.model_dump())
