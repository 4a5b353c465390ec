"""Other forms of a question or statement, by rule: they look like it but ask for something else.

The wordings differ from those that the scope judge trains on (`worker/judge/frames.toml`), so that they can
measure it. Frames are English. Pure functions of texts. Must not know edits or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from worker.dataset.subjects import contains, exchange, names_in

LONGEST_NAME = 6  # words of an answer that is a name, a number, or a thing
_QUESTION_WORDS = "who|whom|whose|what|which|when|where|why|how"
_QUESTION = re.compile(rf"^\W*(?:(?:in|on|at|by|from|for|to|of) )?(?:{_QUESTION_WORDS})\b|\?\W*$", re.I)
_FIRST_WORDS = re.compile(
    r"^(who|where|when|why|how|(?:(?:in|on|at|for) )(?:which|what) \w+)\s+"
    r"(?=(?:is|was|are|were|did|does|do|has|have|had|will|can)\b)",
    re.I,
)
_OTHER_QUESTION = {
    "who": ("Why", "Since when"),
    "where": ("When", "Why", "With whom"),
    "when": ("Where", "Why", "With whom"),
    "why": ("When", "Where"),
    "how": ("When", "Why"),
}
_ASKED_FOR = {
    **dict.fromkeys(("who", "whom", "whose"), "a person"),
    **{"where": "a place", "when": "a time", "why": "a reason", "how": "a manner"},
}
_NOUNS = {
    "a place": re.compile(
        r"\b(place|city|town|village|country|state|province|region|location|birthplace)\b", re.I
    ),
    "a time": re.compile(r"\b(year|date|day|time|month|century|birthday)\b", re.I),
    "a person": re.compile(
        r"\b(person|man|woman|author|writer|director|founder|inventor|creator|owner|leader|winner|spouse|wife"
        r"|husband|father|mother|child|sibling|brother|sister|name)\b",
        re.I,
    ),
}
_AUXILIARY = re.compile(
    r"\b(is|was|are|were|does|did|do|has|have|had|can|could|will|would|may|must|should)\b(?! not\b|n't)", re.I
)
_VERB = re.compile(r"\b(is|was|are|were|has|had|does|did|will|would|can)\b")
_NAME_AFTER = re.compile(
    r"^(\s+(?:I|you|he|she|it|we|they|there|this|that|my \w+|(?:the\s+)?[A-Z][\w.'-]*"
    r"(?:\s+(?:of|the|de|von)?\s*[A-Z][\w.'-]*)*))(?=\s)"
)
_WISH = re.compile(r"\b(I|we)( would|'d)? (want|need|like|have|wish|plan)\b", re.I)
_NOT = re.compile(r"\bnot |n't\b")

_ABOUT_A_SUBJECT = (
    "How do you pronounce {s}?",
    "Where does the name {s} come from?",
    "Which books mention {s}?",
    "Why do people look up {s}?",
    "What is a common mistake about {s}?",
    "Who has studied {s} the most?",
    "Is there a documentary about {s}?",
    "What surprises people about {s}?",
    "When did people first hear of {s}?",
    "What should a beginner read about {s}?",
)
_STATEMENTS_ABOUT_A_SUBJECT = (
    "The name {s} comes from",
    "A common mistake about {s} is that",
    "People look up {s} because",
    "The best book about {s} is",
    "What surprises people about {s} is",
    "The first time that people heard of {s} was",
)
_QUOTED = (
    'I found the line "{q}" in an old notebook. What kind of text is it from?',
    'Does "{q}" sound polite?',
    'A friend texted me "{q}". How should I reply?',
    'Count the letters in "{q}".',
)
_REQUESTS = (
    "Put this into Spanish: {q}",
    "How do I say this in Italian? {q}",
    "Make this shorter: {q}",
    "Sum up in three words what this asks: {q}",
    "Correct the grammar of this text: {q}",
    "Say this in simpler words: {q}",
)
_CONFIRMATIONS = (
    'Somebody answered "{o}" to this: {q} Is that right?',
    "{q} A friend says {o}. Is she right?",
    "True or false? {q} {o}.",
)

_PEOPLE = (
    *("Marie Curie", "Nelson Mandela", "Frida Kahlo", "Isaac Newton", "Serena Williams", "Bob Dylan"),
    *("Jane Austen", "Mahatma Gandhi", "Pablo Picasso", "Ada Lovelace", "Charlie Chaplin", "Usain Bolt"),
)
_PLACES = (
    *("Norway", "Kenya", "Peru", "Vienna", "Toronto", "Osaka", "Portugal", "Egypt", "Chicago", "Mumbai"),
    *("Iceland", "Melbourne"),
)
_THINGS = (
    *("Hamlet", "Toyota", "The Lion King", "Google", "the Eiffel Tower", "the violin", "Titanic", "Nokia"),
    *("the Nobel Prize", "Don Quixote", "IKEA", "the Amazon River"),
)
_OF_PEOPLE = re.compile(
    r"\b(born|birth|die[ds]?|death|wife|husband|spouse|married?|mother|father|child(ren)?|tongue|occupation"
    r"|profession|citizen\w*|nationality|educated|studied|position|plays?|instrument|religion|sibling|buried)\b",
    re.I,
)
_OF_PLACES = re.compile(
    r"\b(capital|country|continent|located|population|city|region|border\w*|language|river|mayor|president"
    r"|twin|currency|state)\b",
    re.I,
)


def is_question(text: str) -> bool:
    """Whether a text asks; otherwise it is a statement, maybe one to complete."""
    return _QUESTION.search(text) is not None


def asked_for(text: str) -> str:
    """What a question asks for: a person, a place, a time, a reason, a manner, or something else."""
    found = re.search(rf"\b({_QUESTION_WORDS})\b", text, re.I)
    word = found[1].lower() if found else ""
    if word in ("", "what", "which"):
        kinds = (kind for kind, nouns in _NOUNS.items() if nouns.search(text))
        return next(kinds, "something else")
    return _ASKED_FOR[word]


def other_questions(text: str, subject: str) -> Iterator[str]:
    """Other questions about the subject: with another question word, then in other frames."""
    if found := _FIRST_WORDS.match(text):
        word = found[1].lower()
        for other in _OTHER_QUESTION.get(word, ("Why", "With whom")):
            yield f"{other} {text[found.end() :]}"
    if subject:
        frames = _ABOUT_A_SUBJECT if is_question(text) else _STATEMENTS_ABOUT_A_SUBJECT
        yield from (frame.format(s=subject) for frame in frames)


def other_subjects(text: str, subject: str) -> Iterator[str]:
    """The text about well-known people, places, or things, whichever fit it best."""
    if subject:
        frame = exchange(text, subject, "")
        names = _PEOPLE if _OF_PEOPLE.search(frame) else _PLACES if _OF_PLACES.search(frame) else _THINGS
        for name in names:
            if not contains(name, subject):
                changed = exchange(text, subject, name)
                yield changed[:1].upper() + changed[1:] if text.startswith(subject) else changed


def confirmed(text: str, answer: str) -> Iterator[str]:
    """Questions that ask whether the answer is right."""
    if _is_name_like(answer):
        yield from _confirmed_name(text, answer)
    frames = _CONFIRMATIONS if is_question(text) else _CONFIRMATIONS[2:]
    yield from (frame.format(q=text, o=answer) for frame in frames)


def short_answer(text: str, answer: str) -> str:
    """The name in an answer that is a sentence ("It is Perth." -> "Perth"), or else the whole answer."""
    plain = answer.strip().removesuffix(".")
    if _is_name_like(plain):
        return plain
    names = [name for name in names_in(answer) if not contains(text, name)]
    return max(names, key=len) if names else plain


def _is_name_like(answer: str) -> bool:
    """Whether an answer can stand inside a question; a sentence cannot."""
    words = answer.split()
    return len(words) <= LONGEST_NAME and not re.search(r"[.!?]\s", answer) and not _VERB.search(answer)


def _confirmed_name(text: str, answer: str) -> Iterator[str]:
    if found := re.match(r"^(?:where|when|in (?:which|what) \w+) (is|was|are|were) (.+?)\?$", text, re.I):
        joint = "in" if not found[2].rstrip().endswith((" in", " on", " at")) else ""
        yield f"{found[1].capitalize()} {found[2]} {joint} {answer}?".replace("  ", " ")
    if found := re.match(r"^what (is|was|are|were) (.+?)\?$", text, re.I):
        yield f"{found[1].capitalize()} {answer} {found[2]}?"
    if found := re.match(r"^who (.+?)\?$", text, re.I):
        yield f"Was it {answer} who {found[1]}?"


def reversed_forms(text: str, subject: str, answer: str) -> Iterator[str]:
    """Questions that ask for the subject, given the answer, and the question about the answer."""
    if not _is_name_like(answer):
        yield f'Which question has the answer "{answer}"?'
        return
    if found := re.match(r"^(?:where|when|in (?:which|what) \w+) (was|were|is) (.+?)\?$", text, re.I):
        predicate = exchange(found[2], subject, "").strip()
        if subject and predicate and predicate != found[2]:
            joint = "" if predicate.endswith((" in", " on")) else " in"
            yield f"Who or what {found[1].lower()} {predicate}{joint} {answer}?"
    if found := re.match(r"^what (is|was) the (.+?) of (.+?)\?$", text, re.I):
        yield f"What {found[1].lower()} {answer} the {found[2]} of?"
    if subject:
        yield exchange(text, subject, answer)
        yield f"What connects {answer} with {subject}?"
    yield f"What is {answer}?" if is_question(text) else f"{answer} is"


def negated(text: str) -> str | None:
    """The text with the opposite meaning; None if no rule finds its verb."""
    if found := _NOT.search(text):
        return (text[: found.start()] + text[found.end() :]).strip()
    if found := _WISH.search(text):
        word = "would" if found[2] else "do"
        return f"{text[: found.start()]}{found[1]} {word} not {found[3]}{text[found.end() :]}"
    if found := _AUXILIARY.search(text):
        rest = text[found.end() :]
        name = _NAME_AFTER.match(rest)
        after = name.end() if name else 0
        return f"{text[: found.end()]}{rest[:after]} not{rest[after:]}"
    if found := re.match(r"^(who|which \w+|what) (\w+)", text, re.I):
        return f"{found[1]} never {found[2]}{text[found.end() :]}"
    return None


def quoted(text: str) -> Iterator[str]:
    """Texts that mention the text without asking it."""
    return _in_frames(_QUOTED, text)


def requested(text: str) -> Iterator[str]:
    """Requests to translate, shorten, or rewrite the text."""
    return _in_frames(_REQUESTS, text)


def _in_frames(frames: Sequence[str], text: str) -> Iterator[str]:
    yield from (frame.format(q=text) for frame in frames)
