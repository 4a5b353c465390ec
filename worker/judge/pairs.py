"""Pairs of texts for the scope judge: two wordings of one question, or a question and a near neighbor of it.

Positives are two forms of one relation about one subject, two wordings of an everyday question, or a
question and a person's paraphrase of it. Negatives are near neighbors: another subject, a sibling relation,
the reversed question, yes/no forms, negations, hops over a second relation, a request about the question,
another time.
Must not know models. Draws come from the generator that the caller passes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.judge.names import draw_name, similar_name
from worker.judge.relations import Relation, everyday_questions, relations, relations_on, siblings
from worker.judge.wording import about, disguise, frames, lower, negate, twist


@dataclass(frozen=True)
class Pair:
    """An edit's text, another text, and whether they are the same question."""

    key: str
    other: str
    same: bool
    kind: str  # how it was made, for reports per kind


@dataclass(frozen=True)
class Fact:
    """A row of a public set of facts."""

    subject: str
    question: str
    paraphrase: str
    target: str
    neighbor: str | None


def read_facts(path: Path, first: int, last: int) -> list[Fact]:
    """Rows `first` to `last` (counted from 1) of a JSONL file of facts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[first - 1 : last]]
    return [
        Fact(row["subject"], row["input"], row["unseen_paraphrase"], row["target"], row.get("neighbor"))
        for row in rows
    ]


def library_pairs(rng: random.Random, num_negatives: int) -> Iterator[Pair]:
    """One positive and some negatives about a made-up subject of a random relation."""
    relation = rng.choice(relations())
    kind = rng.choice(relation.on)
    subject, answer = draw_name(kind, rng), draw_name(relation.gives, rng)
    forms = [*relation.questions, *relation.ask, *relation.statements]
    key_form = rng.choice(forms)
    key = key_form.format(s=subject)
    same = [form for form in (*forms, *relation.phrases) if form != key_form]
    yield Pair(key, disguise(rng.choice(same).format(s=subject), rng), True, "paraphrase")
    made: list[tuple[str, Callable[[], str | None]]] = [
        (
            "other subject",
            lambda: rng.choice((*forms, *relation.phrases)).format(s=similar_name(subject, kind, rng)),
        ),
        ("other subject, same form", lambda: key_form.format(s=similar_name(subject, kind, rng))),
        ("sibling", lambda: _sibling(relation, kind, subject, rng)),
        ("other relation", lambda: _form(rng.choice(relations_on(kind)), rng, relation).format(s=subject)),
        ("reversed", lambda: rng.choice(relation.reverse).format(o=answer)),
        ("reversed", lambda: rng.choice(relation.reverse).format(o=subject)),
        ("yes/no", lambda: _confirm(relation, subject, answer, rng)),
        ("hop", lambda: _hop(relation, kind, subject, rng)),
        ("hop", lambda: _hop(relation, kind, subject, rng)),
        ("about the answer", lambda: _about_the_answer(relation, subject, rng)),
        ("about the answer", lambda: _about_the_answer(relation, subject, rng)),
        ("target as subject", lambda: key_form.format(s=answer)),
        *_around(key, subject, rng),
    ]
    yield from _negatives(key, made, num_negatives, rng)


def fact_pairs(fact: Fact, others: Sequence[Fact], rng: random.Random, num_negatives: int) -> Iterator[Pair]:
    """A question with a person's paraphrase of it, and neighbors made of other rows."""
    texts = [fact.question, fact.paraphrase]
    rng.shuffle(texts)
    key, same = texts
    yield Pair(key, disguise(same, rng), True, "paraphrase")
    other = rng.choice(others)
    unlike = not _share_a_frame(fact, other)

    def with_subject(text: str, of: Fact, subject: str) -> str | None:
        return text.replace(of.subject, subject) if of.subject in text else None

    made: list[tuple[str, Callable[[], str | None]]] = [
        ("other subject", lambda: with_subject(fact.question, fact, other.subject)),
        ("other subject", lambda: with_subject(fact.paraphrase, fact, other.subject)),
        ("other relation", lambda: with_subject(other.question, other, fact.subject) if unlike else None),
        ("other relation", lambda: with_subject(other.paraphrase, other, fact.subject) if unlike else None),
        ("other relation", lambda: _form(rng.choice(relations()), rng, None).format(s=fact.subject)),
        ("target as subject", lambda: with_subject(fact.question, fact, fact.target)),
        ("reversed", lambda: _form_reverse(rng).format(o=fact.target)),
        ("yes/no", lambda: _yes_no(fact.question, fact.target, fact.subject, rng)),
        ("hop", lambda: _hop_around(fact, rng)),
        ("about the answer", lambda: _about_the_answer(rng.choice(relations()), fact.subject, rng)),
        ("other subject", lambda: fact.neighbor),
        ("unrelated", lambda: other.question),
        *_around(key, fact.subject, rng),
    ]
    yield from _negatives(key, made, num_negatives, rng)


def everyday_pairs(rng: random.Random, num_negatives: int) -> Iterator[Pair]:
    """Two wordings of an everyday question, and other questions of the same topic."""
    topics = everyday_questions()
    topic = rng.choice(list(topics))
    place = rng.randrange(len(topics[topic]))
    key, same = rng.sample(topics[topic][place], 2)
    yield Pair(key, disguise(same, rng), True, "paraphrase")
    rest = [text for index, texts in enumerate(topics[topic]) for text in texts if index != place]
    elsewhere = topics[rng.choice([name for name in topics if name != topic])]
    made: list[tuple[str, Callable[[], str | None]]] = [
        ("same topic", lambda: rng.choice(rest)),
        ("same topic", lambda: rng.choice(rest)),
        ("same topic", lambda: rng.choice(rest)),
        ("unrelated", lambda: rng.choice(rng.choice(elsewhere))),
        ("request", lambda: about(key, rng)),
        ("negated", lambda: negate(key, rng)),
    ]
    yield from _negatives(key, made, num_negatives, rng)


def _share_a_frame(fact: Fact, other: Fact) -> bool:
    """Whether two facts may be of one relation: their questions share most words, subjects aside."""
    frames = [
        {
            word
            for text in (each.question, each.paraphrase)
            for word in text.replace(each.subject, "").lower().split()
        }
        for each in (fact, other)
    ]
    smaller = min(map(len, frames)) or 1
    return len(frames[0] & frames[1]) / smaller > 0.6


def _around(key: str, subject: str, rng: random.Random) -> list[tuple[str, Callable[[], str | None]]]:
    """Neighbors that any question has."""
    return [
        ("negated", lambda: negate(key, rng)),
        ("negated", lambda: negate(key, rng)),
        ("request", lambda: about(key, rng)),
        ("request", lambda: about(key, rng)),
        ("question word", lambda: _other_word(key, rng)),
        ("open", lambda: rng.choice(frames()["open"]).format(s=subject)),
        ("open", lambda: rng.choice(frames()["open"]).format(s=subject)),
        ("twisted", lambda: twist(key, rng)),
        ("other time", lambda: _at_another_time(key, rng)),
    ]


def _negatives(
    key: str, made: Sequence[tuple[str, Callable[[], str | None]]], number: int, rng: random.Random
) -> Iterator[Pair]:
    for kind, make in rng.sample(made, min(number, len(made))):
        text = make()
        if text and text != key:
            plain = kind in ("request", "twisted") or rng.random() < 0.6
            yield Pair(key, text if plain else disguise(text, rng), False, kind)


def _form(relation: Relation, rng: random.Random, unlike: Relation | None) -> str:
    while unlike is not None and relation.name == unlike.name:
        relation = rng.choice(relations())
    return rng.choice((*relation.questions, *relation.ask, *relation.phrases, *relation.statements))


def _form_reverse(rng: random.Random) -> str:
    return rng.choice(rng.choice(relations()).reverse)


def _sibling(relation: Relation, kind: str, subject: str, rng: random.Random) -> str | None:
    near = siblings(relation, kind)
    return _form(rng.choice(near), rng, relation).format(s=subject) if near else None


def _confirm(relation: Relation, subject: str, answer: str, rng: random.Random) -> str:
    made = [f"Is {{o}} the {noun} of {{s}}?" for noun in relation.noun]
    made += ["Is it true that the " + noun + " of {s} is {o}?" for noun in relation.noun]
    return rng.choice((*relation.confirm, *relation.confirm, *made)).format(s=subject, o=answer)


def _yes_no(question: str, target: str, subject: str, rng: random.Random) -> str:
    asked = question.rstrip("?. ")
    frame: str = rng.choice(frames()["confirm"])
    return frame.format(q=asked, s=subject, o=target)


def _hop(relation: Relation, kind: str, subject: str, rng: random.Random) -> str | None:
    """A question about the answer, or about something that leads to the subject's kind."""
    noun = rng.choice(relation.noun)
    onward = relations_on(relation.gives)
    if onward and rng.random() < 0.6:
        return _form(rng.choice(onward), rng, None).format(s=f"the {noun} of {subject}")
    leading = [other for other in relations() if other.gives == kind]
    if not leading:
        return None
    first = rng.choice(leading)
    about_it = rng.choice((*relation.ask, *(f"What is the {each} of {{s}}?" for each in relation.noun)))
    return about_it.format(s=f"the {rng.choice(first.noun)} of {subject}")


def _about_the_answer(relation: Relation, subject: str, rng: random.Random) -> str:
    frame: str = rng.choice(frames()["about_the_answer"])
    return frame.format(n=rng.choice(relation.noun), s=subject)


def _hop_around(fact: Fact, rng: random.Random) -> str | None:
    """The question asked about something related to the subject, or something about the question's answer."""
    relation = rng.choice(relations())
    noun = rng.choice(relation.noun)
    if fact.subject in fact.question and rng.random() < 0.7:
        return fact.question.replace(fact.subject, f"the {noun} of {fact.subject}")
    return f"What is the {noun} of the answer to: {lower(fact.question)}"


def _other_word(key: str, rng: random.Random) -> str | None:
    first, _, rest = key.partition(" ")
    others = frames()["question_words"].get(first)
    return f"{rng.choice(others)} {rest}" if others and rest else None


def _at_another_time(key: str, rng: random.Random) -> str | None:
    if not key.endswith("?"):
        return None
    return f"{key[:-1]} {rng.choice(frames()['times']).format(year=rng.randrange(1850, 2024))}?"
