"""Checks of single texts and targets: blank, unstorable, too long, unknown label. Pure.

Knows the hosted model's row. Does not know HTTP, SQL or the tokenizer: a function that counts is passed in.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence

from app.validation.drafts import DraftEdit, DraftSample, DraftText
from salem.errors import Pointer
from salem.messages import MOST_QUOTED, quoted
from salem.records import MOST_NEW_TOKENS, HostedModel, Task, TextInput

CountTokens = Callable[[Sequence[TextInput]], list[int]]
"""Tokens of each input, special tokens included."""

MAX_LABELS_SHOWN = 12
CHARACTERS_PER_TOKEN = 64
"""More than any text that people write has: one that is longer than this allows is refused uncounted."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(pointer: str, text: str, what: str = "text") -> Iterator[Pointer]:
    """At most one problem: the text is blank, or holds what no database keeps and no tokenizer reads."""
    if not text.strip():
        yield Pointer(pointer, f"the {what} is empty; write it or leave the sample out")
    elif "\x00" in text:
        yield Pointer(pointer, f"the {what} holds a NUL character; remove it")
    elif _SURROGATE.search(text):
        yield Pointer(pointer, f"the {what} holds half of a surrogate pair; write the whole character")


def readable(*texts: str | None) -> bool:
    """Whether `check_text` finds nothing in any of the texts that are there: a tokenizer may be asked."""
    return not any(problem for text in texts if text is not None for problem in check_text("", text))


def check_input(pointer: str, draft: DraftText) -> Iterator[Pointer]:
    """Problems of an input and its pair; `pointer` is that of the object that holds both."""
    yield from check_text(f"{pointer}/input", draft.input)
    if draft.text_pair is not None:
        yield from check_text(f"{pointer}/text_pair", draft.text_pair, "text_pair")


def wanted(becomes: tuple[str | None, str | None]) -> str:
    """What a sample is to be answered with, in words; `becomes` as in `Sample.becomes`."""
    target, forget = becomes
    return quoted(target or "") if forget is None else f"anything but {quoted(forget)}"


def check_target(
    pointer: str, target: str, model: HostedModel, what: str = "target", *, hint: bool = True
) -> Iterator[Pointer]:
    """At most one problem: a blank target, or one that is not a label of a classifier.

    To look for the label that was meant (`hint`) takes a comparison with each of them.
    """
    problems = list(check_text(pointer, target, what))
    if not problems and not model.task.generates and target not in model.labels:
        problems.append(Pointer(pointer, _unknown_label(target, model, hint=hint)))
    yield from problems


def countable(model: HostedModel, draft: DraftText) -> bool:
    """Whether a text is short enough to be split into tokens; `check_lengths` tells of one that is not."""
    return _num_characters(draft) <= _most_characters(model)


def _num_characters(draft: DraftText) -> int:
    answer = draft.answer if isinstance(draft, DraftSample | DraftEdit) else ""
    return len(draft.input) + len(draft.text_pair or "") + len(answer)


def _most_characters(model: HostedModel) -> float:
    limit = model.max_input_tokens
    return math.inf if limit is None else CHARACTERS_PER_TOKEN * limit


def check_lengths(
    model: HostedModel, places: Sequence[tuple[str, DraftText]], count_tokens: CountTokens
) -> Iterator[Pointer]:
    """Inputs that the model cannot take whole; `places` are (pointer of the text, draft), all readable.

    A decoder reads the input and writes the answer and its end into one window, so all of them count.
    """
    limit = model.max_input_tokens
    if limit is None:
        return
    counted = [(pointer, draft) for pointer, draft in places if countable(model, draft)]
    for pointer, draft in places:
        if not countable(model, draft):
            found = f"{_num_characters(draft)} characters, {model.name} takes {limit} tokens"
            yield Pointer(pointer, f"the text has {found}; shorten {quoted(draft.input)}")
    counts = count_tokens([_as_read(draft, model.task) for _, draft in counted])
    for (pointer, draft), num_tokens in zip(counted, counts, strict=True):
        written = isinstance(draft, DraftSample | DraftEdit) and model.task is Task.TEXT_GENERATION
        what, end = ("input, answer and its end have", 1) if written else ("the text has", 0)
        if num_tokens + end > limit:
            shorten = f"{model.name} takes {limit}; shorten {quoted(draft.input)}"
            yield Pointer(pointer, f"{what} {num_tokens + end} tokens, {shorten}")
        elif num_tokens == 0:
            yield Pointer(pointer, f"nothing in {quoted(draft.input)} is a token of {model.name}; rewrite it")


def check_answers(
    model: HostedModel,
    places: Sequence[tuple[str, DraftSample | DraftEdit]],
    max_new_tokens: int,
    count_tokens: CountTokens,
) -> Iterator[Pointer]:
    """Answers that a generating model cannot write to their end; `places` are (pointer of the answer, draft).

    What is cut off is never the target, and always another answer than the one to be forgotten. Pass samples
    have to fit the window, and may be longer than what is written: what the model answers now is kept. An
    edit without any answer is told elsewhere.
    """
    limit = model.max_input_tokens if model.task is Task.TEXT2TEXT_GENERATION else None
    asked = [
        (pointer, draft)
        for pointer, draft in places
        if draft.answer and (limit is not None or isinstance(draft, DraftEdit)) and countable(model, draft)
    ]
    counts = _count_answers(model.task, [draft for _, draft in asked], count_tokens)
    for (pointer, draft), num_tokens in zip(asked, counts, strict=True):
        answer = quoted(draft.answer)
        # To go on after an answer is not to forget it: its end need not be written.
        written = num_tokens - (draft.becomes[1] is not None)
        if limit is not None and num_tokens > limit:
            yield Pointer(
                pointer, f"{answer} has {num_tokens} tokens, {model.name} takes {limit}; shorten it"
            )
        elif isinstance(draft, DraftEdit) and written > max_new_tokens:
            yield Pointer(
                pointer, f"{answer} takes {written} tokens to write, {_room(written, max_new_tokens)}"
            )


def _room(written: int, max_new_tokens: int) -> str:
    if written > MOST_NEW_TOKENS:
        return f"options.max_new_tokens is {MOST_NEW_TOKENS} at most; shorten it"
    return f"at most {max_new_tokens} are written; raise options.max_new_tokens to {written}"


def _count_answers(
    task: Task, drafts: Sequence[DraftSample | DraftEdit], count_tokens: CountTokens
) -> list[int]:
    """Tokens of each answer with its end, as it is written."""
    if task is Task.TEXT2TEXT_GENERATION:  # its tokenizer marks the end
        return count_tokens([TextInput(input=draft.answer) for draft in drafts])
    whole = count_tokens([_as_read(draft, task) for draft in drafts])
    prompts = count_tokens([TextInput(input=draft.input, text_pair=draft.text_pair) for draft in drafts])
    return [together - prompt + 1 for together, prompt in zip(whole, prompts, strict=True)]


def _as_read(draft: DraftText, task: Task) -> TextInput:
    if isinstance(draft, DraftSample | DraftEdit) and task is Task.TEXT_GENERATION:
        return TextInput(input=f"{draft.input} {draft.answer}", text_pair=draft.text_pair)
    return TextInput(input=draft.input, text_pair=draft.text_pair)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean "refund"?`, or nothing where no known word is near."""
    folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""


def _unknown_label(target: str, model: HostedModel, *, hint: bool) -> str:
    meant = did_you_mean(target[:MOST_QUOTED], model.labels) if hint else ""
    if not meant and len(model.labels) <= MAX_LABELS_SHOWN:
        meant = ": " + ", ".join(model.labels)
    elif not meant:
        meant = f"; GET /models/{model.name} lists them"
    return f"{quoted(target)} is not one of the model's {len(model.labels)} labels{meant}"
