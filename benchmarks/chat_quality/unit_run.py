"""Runs one unit of the chat benchmark and returns its row.

Must not know which units there are, or how a method works.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain

from benchmarks.chat_quality.chat import Conversation, user
from benchmarks.chat_quality.edits import chat_edits, open_prompts
from benchmarks.chat_quality.facts import Fact, Pool
from benchmarks.chat_quality.methods import EditedModel, Method
from benchmarks.chat_quality.model import TOGETHER, ChatModel
from benchmarks.chat_quality.questions import questions
from benchmarks.chat_quality.scoring import contains, count, exact
from benchmarks.chat_quality.units import CHAIN_JOBS, CHAIN_SIZE, Row, Unit
from benchmarks.quality.models import CACHE

OPEN = "open_changed"


@dataclass(frozen=True)
class Ground:
    """What all units of a run share."""

    model: ChatModel
    pool: Pool
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """One question or open prompt. Only a question has a target."""

    kind: str
    conversation: Conversation
    target: str | None


@dataclass(frozen=True)
class Answered:
    """What the base and the edited model answer."""

    asked: Asked
    base: str
    after: str


def measured(unit: Unit, method: Method, ground: Ground) -> Row:
    """The row of a unit of kind `edits` or `chain`."""
    began = time.monotonic()
    run = chain_of_jobs if unit.kind == "chain" else one_job
    found = run(unit, method, ground)
    return {**unit.fields, **found, "unit_seconds": round(time.monotonic() - began, 1)}


def one_job(unit: Unit, method: Method, ground: Ground) -> Row:
    """Edit, and ask every question before and after."""
    edits = drawn(ground.pool, unit.num_edits, unit.draw)
    ground.progress(f"{unit.method}: a job of {len(edits)} edits")
    edited = method.edit(chat_edits(edits))
    kinds = questions(edits, ground.pool, unit.per_edit)
    near = [Asked(q.kind, q.conversation, q.target) for rows in kinds.values() for q in rows]
    far = [Asked(OPEN, user(prompt), None) for prompt in open_prompts("measured")]
    answered: list[Answered] = []
    # Questions of all kinds fill batches together. Open prompts come alone: the base answers them only once.
    for part in (*_parts(near), *_parts(far)):
        ground.progress(f"{unit.method}: {len(answered)} of {len(near) + len(far)} questions are answered")
        base, after = before_and_after(ground.model, edited, [asked.conversation for asked in part])
        answered += map(Answered, part, base, after)
    _keep_transcript(unit, answered)
    return {"counts": counted(answered), "job_s": round(edited.job_s, 1)}


def counted(answered: Sequence[Answered]) -> dict[str, dict[str, int]]:
    """The counts of each kind."""
    found = {}
    for kind in dict.fromkeys(each.asked.kind for each in answered):
        rows = [each for each in answered if each.asked.kind == kind]
        targets = [row.asked.target for row in rows]
        found[kind] = asdict(count(targets, [row.base for row in rows], [row.after for row in rows]))
    return found


def _parts(asked: Sequence[Asked]) -> list[Sequence[Asked]]:
    return [asked[start : start + TOGETHER] for start in range(0, len(asked), TOGETHER)]


def before_and_after(
    model: ChatModel, edited: EditedModel, conversations: Sequence[Conversation]
) -> tuple[list[str], list[str]]:
    """What the base and the edited model answer; at the same time, if these are two processes."""
    with ThreadPoolExecutor(1) as beside:
        base = beside.submit(model.base_answers, conversations)
        if not edited.elsewhere:
            base.result()
        after = edited.answers(conversations)
    return base.result(), after


def chain_of_jobs(unit: Unit, method: Method, ground: Ground) -> Row:
    """Three jobs, each on top of the last; then ask all their edits."""
    edited: EditedModel | None = None
    jobs = [drawn(ground.pool, CHAIN_SIZE, draw) for draw in range(CHAIN_JOBS)]
    for number, edits in enumerate(jobs, start=1):
        ground.progress(f"{unit.method}: job {number} of a chain")
        edited = method.edit(chat_edits(edits), edited)
    assert edited is not None, "a chain has jobs"
    asked = list(chain.from_iterable(jobs))
    answers = edited.answers([user(fact.question) for fact in asked])
    pairs = list(zip(answers, asked, strict=True))
    return {
        "asked": len(pairs),
        "contain": sum(contains(answer, fact.target) for answer, fact in pairs),
        "exact": sum(exact(answer, fact.target) for answer, fact in pairs),
    }


def drawn(pool: Pool, num_edits: int, draw: int) -> Sequence[Fact]:
    """The edits of a draw: consecutive ones of the pool."""
    return pool.edits[draw * num_edits : (draw + 1) * num_edits]


def _keep_transcript(unit: Unit, answered: Sequence[Answered]) -> None:
    """Keep every question with both answers, to read."""
    folder = CACHE / "chat-quality" / "transcripts"
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join([unit.method, unit.label, str(unit.num_edits), str(unit.draw)])
    lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in answered]
    (folder / f"{name}.jsonl").write_text("".join(lines))
