"""Checks single texts and answers: empty, not storable, too long, or an unknown label.

Pure functions on a request's samples and the hosted model's row. Must not know HTTP, SQL, or the
tokenizer: the caller passes in a `TextReader`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz, process

from app.validation.samples import EditIn, SampleIn, TextIn
from salem.errors import Pointer
from salem.messages import MAX_QUOTED, quote
from salem.records import MAX_NEW_TOKENS, HostedModel, Task, TextInput

MAX_LABELS_SHOWN = 12
LEAST_SIMILARITY = 60  # percent, for a suggestion
CHARACTERS_PER_TOKEN = 64
"""More than real texts have. A text with more characters per token of the model's window is not tokenized."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TextReader:
    """What a hosted model's tokenizer knows about texts."""

    count_tokens: Callable[[Sequence[TextInput]], list[int]]  # of each input, with special tokens
    quote: Callable[[str], str] = quote  # an input as messages show it: of a chat prompt, the last user turn


def check_text(pointer: str, text: str, what: str = "text") -> Iterator[Pointer]:
    """At most one problem: the text is empty, or has a character that cannot be stored or tokenized."""
    if not text.strip():
        yield Pointer(pointer, f"the {what} is empty; write it, or leave out the sample")
    elif "\x00" in text:
        yield Pointer(pointer, f"the {what} contains a NUL character; remove it")
    elif _SURROGATE.search(text):
        yield Pointer(pointer, f"the {what} contains half of a surrogate pair; write the whole character")


def readable(*texts: str | None) -> bool:
    """Whether `check_text` finds no problem in any of these texts, so that a tokenizer can read them."""
    return not any(problem for text in texts if text is not None for problem in check_text("", text))


def check_input(pointer: str, sample: TextIn) -> Iterator[Pointer]:
    """Problems of an input and its pair. `pointer` is that of the object that has both."""
    yield from check_text(f"{pointer}/input", sample.input)
    if sample.text_pair is not None:
        yield from check_text(f"{pointer}/text_pair", sample.text_pair, "text_pair")


def wanted_answer(goal: tuple[str | None, str | None]) -> str:
    """What the answer to a sample should be, in words. `goal` is as in `Sample.goal`."""
    target, forget = goal
    return quote(target or "") if forget is None else f"anything but {quote(forget)}"


def check_target(
    pointer: str, target: str, model: HostedModel, what: str = "target", *, hint: bool = True
) -> Iterator[Pointer]:
    """At most one problem: the target is empty, or is not a label of a classifier.

    Args:
        hint: suggest a similar label. This compares the target with every label.
    """
    problems = list(check_text(pointer, target, what))
    if not problems and not model.task.generates and target not in model.labels:
        problems.append(Pointer(pointer, _unknown_label(target, model, hint=hint)))
    yield from problems


def countable(model: HostedModel, sample: TextIn) -> bool:
    """Whether a text is short enough to tokenize. `check_lengths` reports the ones that are not."""
    return _num_characters(sample) <= _max_characters(model)


def _num_characters(sample: TextIn) -> int:
    answer = sample.answer if isinstance(sample, SampleIn | EditIn) else ""
    return len(sample.input) + len(sample.text_pair or "") + len(answer)


def _max_characters(model: HostedModel) -> float:
    limit = model.max_input_tokens
    return math.inf if limit is None else CHARACTERS_PER_TOKEN * limit


def check_lengths(
    model: HostedModel, places: Sequence[tuple[str, TextIn]], reader: TextReader
) -> Iterator[Pointer]:
    """Inputs that do not fit the model's window.

    A decoder reads the input and writes the answer and its end into one window, so all of them count.

    Args:
        places: the pointer of each text, and its sample; all texts are readable.
    """
    limit = model.max_input_tokens
    if limit is None:
        return
    counted = [(pointer, sample) for pointer, sample in places if countable(model, sample)]
    for pointer, sample in places:
        if not countable(model, sample):
            length = f"{_num_characters(sample)} characters, but {model.name} takes {limit} tokens"
            yield Pointer(pointer, f"the text has {length}; shorten {reader.quote(sample.input)}")
    counts = reader.count_tokens([_as_read(sample, model.task) for _, sample in counted])
    for (pointer, sample), num_tokens in zip(counted, counts, strict=True):
        with_answer = isinstance(sample, SampleIn | EditIn) and model.task is Task.TEXT_GENERATION
        what, end = ("the input, the answer, and its end have", 1) if with_answer else ("the text has", 0)
        if num_tokens + end > limit:
            length = f"{num_tokens + end} tokens, but {model.name} takes {limit}"
            yield Pointer(pointer, f"{what} {length}; shorten {reader.quote(sample.input)}")
        elif num_tokens == 0:
            detail = f"{model.name}'s tokenizer produces no tokens for {reader.quote(sample.input)}"
            yield Pointer(pointer, f"{detail}; rewrite the text")


def check_answers(
    model: HostedModel,
    places: Sequence[tuple[str, SampleIn | EditIn]],
    max_new_tokens: int,
    reader: TextReader,
) -> Iterator[Pointer]:
    """Answers that a generating model cannot write completely.

    A truncated answer never equals the target and always differs from the answer to forget. Pass samples must
    fit the window, but may be longer than `max_new_tokens`: the model's present answer is what stays. Edits
    without an answer are reported elsewhere.

    Args:
        places: the pointer of each answer, and its sample.
    """
    limit = model.max_input_tokens if model.task is Task.TEXT2TEXT_GENERATION else None
    asked = [
        (pointer, sample)
        for pointer, sample in places
        if sample.answer and (limit is not None or isinstance(sample, EditIn)) and countable(model, sample)
    ]
    counts = _count_answers(model.task, [sample for _, sample in asked], reader)
    for (pointer, sample), num_tokens in zip(asked, counts, strict=True):
        answer = quote(sample.answer)
        # An answer to forget may continue: its end need not be written.
        num_written = num_tokens - (sample.goal[1] is not None)
        if limit is not None and num_tokens > limit:
            detail = f"{answer} has {num_tokens} tokens, but {model.name} takes {limit}; shorten it"
            yield Pointer(pointer, detail)
        elif isinstance(sample, EditIn) and num_written > max_new_tokens:
            remedy = _more_tokens(num_written, max_new_tokens)
            yield Pointer(pointer, f"{answer} takes {num_written} tokens to write, {remedy}")


def _more_tokens(num_written: int, max_new_tokens: int) -> str:
    if num_written > MAX_NEW_TOKENS:
        return f"but options.max_new_tokens is at most {MAX_NEW_TOKENS}; shorten it"
    return f"but the limit is {max_new_tokens}; raise options.max_new_tokens to {num_written}"


def _count_answers(task: Task, samples: Sequence[SampleIn | EditIn], reader: TextReader) -> list[int]:
    """Number of tokens of each answer as the model writes it, including its end."""
    if task is Task.TEXT2TEXT_GENERATION:  # its tokenizer marks the end
        return reader.count_tokens([TextInput(input=sample.answer) for sample in samples])
    whole = reader.count_tokens([_as_read(sample, task) for sample in samples])
    prompts = reader.count_tokens(
        [TextInput(input=sample.input, text_pair=sample.text_pair) for sample in samples]
    )
    return [together - prompt + 1 for together, prompt in zip(whole, prompts, strict=True)]


def _as_read(sample: TextIn, task: Task) -> TextInput:
    if isinstance(sample, SampleIn | EditIn) and task is Task.TEXT_GENERATION:
        return TextInput(input=f"{sample.input} {sample.answer}", text_pair=sample.text_pair)
    return TextInput(input=sample.input, text_pair=sample.text_pair)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean "refund"?`, or nothing if no known word is similar."""
    similar = process.extractOne(
        word, known, scorer=fuzz.ratio, processor=str.casefold, score_cutoff=LEAST_SIMILARITY
    )
    return f'; did you mean "{similar[0]}"?' if similar else ""


def _unknown_label(target: str, model: HostedModel, *, hint: bool) -> str:
    suggestion = did_you_mean(target[:MAX_QUOTED], model.labels) if hint else ""
    if not suggestion and len(model.labels) <= MAX_LABELS_SHOWN:
        suggestion = ": " + ", ".join(model.labels)
    elif not suggestion:
        suggestion = f"; GET /models/{model.name} lists them"
    return f"{quote(target)} is not one of the model's {len(model.labels)} labels{suggestion}"
