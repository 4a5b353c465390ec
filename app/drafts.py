"""Samples as a client wrote them: the shape holds, the content is not checked yet.

The records of `salem.records` refuse an empty text on sight; these do not, so that the checks can report
every bad place of a request together, with words about the sample.
"""

from __future__ import annotations

from salem.records import Edit, Record, Sample, TextInput


class DraftText(Record):
    """What a client asks a model."""

    input: str
    text_pair: str | None = None

    def checked(self) -> TextInput:
        return TextInput(input=self.input, text_pair=self.text_pair)


class DraftSample(DraftText):
    """A labelled input from a client."""

    target: str

    def checked(self) -> Sample:
        return Sample(input=self.input, text_pair=self.text_pair, target=self.target)


class DraftEdit(DraftSample):
    """A correction from a client."""

    paraphrases: tuple[str, ...] = ()

    def checked(self) -> Edit:
        return Edit(**self.model_dump())
