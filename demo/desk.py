"""The support desk's data: sentences with intents, difficult tickets, and a policy change.

- `intents.jsonl`: sentences that people typed, by intent. One part trains the classifier; the rest is its
  reference set.
- `policy_before.jsonl`: sentences about membership fees under the old policy (`payment_problem`). They train
  the classifier, too.
- `policy_edits.jsonl`: edits with paraphrases for the new policy (`cancel_membership`).
- `tickets.jsonl`: difficult tickets with paraphrases. The ones that the classifier misroutes become edits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from salem.records import Edit, Sample

DATA = Path(__file__).parent / "data"
TRAINING_SHARE = 0.35


@dataclass(frozen=True)
class Desk:
    """All sentences of the demo, split."""

    training: tuple[Sample, ...]
    reference: tuple[Sample, ...]
    policy_edits: tuple[Edit, ...]
    tickets: tuple[Edit, ...]

    @property
    def intents(self) -> tuple[str, ...]:
        return tuple(sorted({sample.target for sample in self.training}))


def load_desk() -> Desk:
    """Read the data. The hash of a sentence decides whether it trains the classifier."""
    sentences = _samples("intents.jsonl")
    training = [sample for sample in sentences if _trains(sample)]
    return Desk(
        training=(*training, *_samples("policy_before.jsonl")),
        reference=tuple(sample for sample in sentences if not _trains(sample)),
        policy_edits=_edits("policy_edits.jsonl"),
        tickets=_edits("tickets.jsonl"),
    )


def _trains(sample: Sample) -> bool:
    # The tail of the hash, because its head decides which reference samples are held out.
    return int(sample.content_hash[-8:], 16) / 2**32 < TRAINING_SHARE


def _samples(name: str) -> tuple[Sample, ...]:
    return tuple(Sample(input=row["text"], target=row["intent"]) for row in _rows(name))


def _edits(name: str) -> tuple[Edit, ...]:
    return tuple(Edit.model_validate(row) for row in _rows(name))


def _rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]
