"""One row of the chat benchmark, with a made-up model and method; and retrieval with a made-up encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from benchmarks.chat_quality import unit_run
from benchmarks.chat_quality.chat import Conversation, Turn, last_question, user
from benchmarks.chat_quality.edits import ChatEdit
from benchmarks.chat_quality.facts import Fact, Pool
from benchmarks.chat_quality.model import TOGETHER, ChatModel, parts
from benchmarks.chat_quality.retrieval import DEFAULT_SYSTEM, Encoder, Retrieval
from benchmarks.chat_quality.unit_run import OPEN, Ground, measured
from benchmarks.chat_quality.units import Unit

NAMES = [f"Ada Lark {number}" for number in range(40)]
FACTS = tuple(
    Fact(
        "zsre",
        name,
        f"In which city was {name} born?",
        f"Ulm {row}",
        (),
        f"Where is {name} from?",
        None,
        None,
    )
    for row, name in enumerate(NAMES)
)
POOL = Pool(FACTS[:30], FACTS[30:])


class QuietModel:
    """A base that always says the same."""

    def base_answers(self, conversations: Sequence[Conversation], max_new_tokens: int = 0) -> list[str]:
        return ["I do not know."] * len(conversations)


@dataclass
class Parrot:
    """An edited model that answers its edits, and everything that begins like one of them."""

    edits: list[ChatEdit]
    job_s: float = 12.34
    elsewhere: bool = True

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        known = {edit.question: edit.target for edit in self.edits}
        return [known.get(last_question(each), "I do not know.") for each in conversations]


class ParrotMethod:
    """Keeps the edits of earlier jobs, except the first one."""

    def edit(self, edits: Sequence[ChatEdit], before: Any = None) -> Parrot:
        return Parrot([*(before.edits[1:] if before else []), *edits])


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ground:
    monkeypatch.setattr(unit_run, "CACHE", tmp_path)
    text = "A paragraph about something else entirely."
    monkeypatch.setattr(
        "benchmarks.chat_quality.questions.paragraphs", lambda: [f"{text} {n}" for n in range(10)]
    )
    return Ground(cast(ChatModel, QuietModel()), POOL, lambda step: None)


def test_a_row_counts_every_kind(ground: Ground, tmp_path: Path) -> None:
    row = measured(Unit("edits", "parrot", "x", 10, 1, 2), ParrotMethod(), ground)
    counts = row["counts"]
    assert (counts["edit"]["asked"], counts["edit"]["exact"]) == (10, 10)
    assert (counts["second_turn"]["asked"], counts["second_turn"]["contain"]) == (20, 20)
    assert counts["generalization"]["contain"] == 0
    assert (counts["same_relation"]["asked"], counts["same_relation"]["changed"]) == (20, 0)
    assert (counts[OPEN]["asked"], counts[OPEN]["changed"]) == (160, 0)
    assert row["job_s"] == 12.3 and row["draw"] == 1
    (transcript,) = (tmp_path / "chat-quality" / "transcripts").iterdir()
    first = json.loads(transcript.read_text().splitlines()[0])
    assert first["asked"]["conversation"] == [
        {"role": "user", "content": "In which city was Ada Lark 10 born?"}
    ]
    assert (first["asked"]["kind"], first["asked"]["target"]) == ("edit", "Ulm 10")
    assert (first["base"], first["after"]) == ("I do not know.", "Ulm 10")


def test_a_chain_asks_the_edits_of_all_its_jobs(ground: Ground) -> None:
    row = measured(Unit("chain", "parrot", "", 30), ParrotMethod(), ground)
    assert (row["asked"], row["contain"], row["exact"]) == (30, 28, 28)  # each later job drops one edit


def test_questions_are_asked_in_equal_parts() -> None:
    prompts = [str(number) for number in range(TOGETHER + 3)]
    assert [len(part) for part in parts(prompts)] == [TOGETHER, 3]
    assert parts([]) == []


# Retrieval


class LetterEncoder:
    """Texts are alike if they begin with the same letter."""

    def points(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([torch.eye(26)[ord(text[0].lower()) - 97] for text in texts])


class EchoModel:
    """A base that answers with its system prompt."""

    def base_answers(self, conversations: Sequence[Conversation], max_new_tokens: int = 0) -> list[str]:
        return [" ".join(t.content for t in each if t.role == "system") or "none" for each in conversations]


def test_retrieval_states_the_fact_of_the_nearest_edit_only_where_it_is_near() -> None:
    method = Retrieval(cast(ChatModel, EchoModel()), cast(Encoder, LetterEncoder()))
    first = method.edit([ChatEdit("apples?", "red", ("fruit?",))])
    both = method.edit([ChatEdit("bananas?", "blue", ())], first)
    asked = [
        user("about apples"),
        user("fruit"),
        user("bread"),
        user("cheese"),
        (Turn("system", "Hm."), *user("fig")),
    ]
    answers = both.answers(asked)
    assert answers[0] == f'{DEFAULT_SYSTEM}\nUse this fact: the answer to "apples?" is red.'
    assert "red" in answers[1] and "blue" in answers[2]
    assert answers[3] == "none"
    assert answers[4].startswith("Hm.\n") and "red" in answers[4]
    assert both.job_s >= 0
