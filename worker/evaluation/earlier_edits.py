"""Checks what a new delta does to the edits of earlier jobs, and notes those that it breaks.

Must not know what a job is or how deltas are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from salem.inference.predict import is_right
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import MAX_NEW_TOKENS, EditBatch, Sample, TextInput
from worker.evaluation.versions import EditedModel, OverlaidModel


def notes_on_lost_edits(
    network: Network,
    before: EditedModel,
    after: EditedModel | OverlaidModel,
    earlier: Mapping[str, Sample],
    batch: EditBatch,
) -> Iterator[str]:
    """A note if the new version breaks edits of earlier jobs. Edits that this job corrects again do not
    count.

    Args:
        earlier: edits by id, newest first.
        batch: the edit dataset of the new delta.
    """
    corrected_again = {sample.words_hash for sample in batch.corrections}
    edits = {name: edit for name, edit in earlier.items() if edit.words_hash not in corrected_again}
    lost = {
        name
        for limit, part in _by_new_tokens(network, edits, before.max_new_tokens).items()
        for name in _lost(before.writing(limit), after.writing(limit), part)
    }
    if lost:
        newest = next(name for name in edits if name in lost)
        text = network.turns.quote(edits[newest].input)
        yield (
            f"{len(lost)} of {len(edits)} earlier edits no longer hold; the newest is {newest}, {text}. "
            "Correct it again on top of this version, or roll back to the version before"
        )


def _by_new_tokens(network: Network, edits: Mapping[str, Sample], usual: int) -> dict[int, dict[str, Sample]]:
    """Edits by the number of new tokens that their answers need, so that no answer is cut off."""
    if not network.task.generates:
        return {usual: dict(edits)}
    lengths = count_tokens(network.tokenizer, [TextInput(input=edit.answer) for edit in edits.values()])
    found: dict[int, dict[str, Sample]] = {}
    for (name, edit), length in zip(edits.items(), lengths, strict=True):
        needed = length + 2  # the end of sequence, and a space before the first word
        limit = usual if needed <= usual else min(MAX_NEW_TOKENS, 1 << (needed - 1).bit_length())
        found.setdefault(limit, {})[name] = edit
    return found


def _lost(
    before: EditedModel, after: EditedModel | OverlaidModel, edits: Mapping[str, Sample]
) -> Iterator[str]:
    affected = after.may_differ(list(edits.values()))
    checked = {name: edits[name] for name, may_differ in zip(edits, affected, strict=True) if may_differ}
    inputs = list(checked.values())
    answers = zip(before.answers(inputs), after.answers(inputs), strict=True)
    for (name, edit), (old, new) in zip(checked.items(), answers, strict=True):
        if is_right(old, edit) and not is_right(new, edit):
            yield name
