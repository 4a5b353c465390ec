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
from benchmarks.chat_quality.model import ChatModel
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
    kinds: dict[str, list[tuple[Conversation, str | None]]] = {
        kind: [(question.conversation, question.target) for question in asked]
        for kind, asked in questions(edits, ground.pool, unit.per_edit).items()
    }
    kinds[OPEN] = [(user(prompt), None) for prompt in open_prompts("measured")]
    counts, transcript = {}, []
    for kind, asked in kinds.items():
        ground.progress(f"{unit.method}: {len(asked)} questions of kind {kind}")
        conversations, targets = [c for c, _ in asked], [t for _, t in asked]
        base, after = before_and_after(ground.model, edited, conversations)
        counts[kind] = asdict(count(targets, base, after))
        transcript += [
            [kind, [turn.content for turn in conversation], target, old, new]
            for (conversation, target), old, new in zip(asked, base, after, strict=True)
        ]
    _keep_transcript(unit, transcript)
    return {"counts": counts, "job_s": round(edited.job_s, 1)}


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


def _keep_transcript(unit: Unit, lines: Sequence[object]) -> None:
    """Keep every question with both answers, to read."""
    folder = CACHE / "chat-quality" / "transcripts"
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join([unit.method, unit.label, str(unit.num_edits), str(unit.draw)])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text)
