"""Reads and checks a reference set, and turns it into one JSONL file. Pure functions.

Must not know HTTP, the blob store, or the model: its labels are not known yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from app.validation.samples import ReferenceSampleIn, words_of
from app.validation.texts import check_input, check_text
from salem.errors import MAX_PLACES, InvalidRequest, Pointer
from salem.messages import quote


class BadSamples:
    """The first bad samples of a set, and a count of all: in a file of the wrong kind, every line is bad."""

    def __init__(self, found: Iterable[Pointer] = ()) -> None:
        self.count = 0
        self.first: list[Pointer] = []
        for place in found:
            self.add(place)

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, place: Pointer) -> None:
        self.count += 1
        if len(self.first) < MAX_PLACES:
            self.first.append(place)


def parse_jsonl(data: bytes) -> list[ReferenceSampleIn]:
    """Read one sample per line, and skip blank lines. Pointers are `/<index>` of the sample, from 0.

    Raises:
        InvalidRequest: the file is not UTF-8, or a line is not a sample.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the file is not UTF-8: byte {error.start} is not valid; save it as UTF-8"
        ) from error
    samples: list[ReferenceSampleIn] = []
    bad = BadSamples()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                samples.append(ReferenceSampleIn.model_validate(json.loads(line)))
            except (ValueError, RecursionError) as error:
                bad.add(Pointer(f"/{len(samples) + bad.count}", f"line {number}: {_reason(error)}"))
    if bad:
        raise _invalid_reference(bad)
    return samples


def check_reference(samples: Sequence[ReferenceSampleIn], prefix: str = "") -> Iterator[Pointer]:
    """Empty texts and targets, and rows with the same words but different targets.

    Pointers are `<prefix>/<index>`.
    """
    if not samples:
        yield Pointer(
            prefix, "the reference set is empty; send labeled samples of the inputs that the model gets"
        )
    first: dict[tuple[str, str], int] = {}
    for index, sample in enumerate(samples):
        pointer = f"{prefix}/{index}"
        yield from check_input(pointer, sample)
        yield from check_text(f"{pointer}/target", sample.target, "target")
        for place, text in enumerate(sample.paraphrases):
            yield from check_text(f"{pointer}/paraphrases/{place}", text, "paraphrase")
        earlier = first.setdefault(sample.words, index)
        target = samples[earlier].target
        if words_of(target) != words_of(sample.target):
            yield Pointer(
                f"{pointer}/target",
                f"the target of this input is {quote(sample.target)} here but {quote(target)} at "
                f"{prefix}/{earlier} (only the words count, not the white space); keep the row with the "
                "correct target",
            )


def as_jsonl(samples: Sequence[ReferenceSampleIn], prefix: str = "") -> bytes:
    """The set as it is stored: one sample per line, without exact duplicates, in the order given.

    Raises:
        InvalidRequest: a sample is bad (`check_reference`).
    """
    if bad := BadSamples(check_reference(samples, prefix)):
        raise _invalid_reference(bad)
    lines = dict.fromkeys(sample.checked().model_dump_json(exclude_defaults=True) for sample in samples)
    return "".join(f"{line}\n" for line in lines).encode()


def _invalid_reference(bad: BadSamples) -> InvalidRequest:
    """The error of a set with these bad samples. Its message is about the first."""
    first = bad.first[0]
    more = f" (and {bad.count - 1} more)" if bad.count > 1 else ""
    return InvalidRequest(
        f"{first.pointer or 'the set'}: {first.detail}{more}",
        remedy='Write each sample as {"input": "...", "text_pair": null, "target": "...", "paraphrases": []}',
        errors=bad.first,
    )


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return "the line is not valid JSON"
