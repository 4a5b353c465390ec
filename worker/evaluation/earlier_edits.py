"""What a new delta does to the corrections of earlier jobs: a note about those that hold no more.

Knows a version and its parent as subjects to be asked. Does not know what a job is, or how deltas are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from salem.inference.predict import is_right
from salem.messages import quoted
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import MOST_NEW_TOKENS, EditBatch, Sample, TextInput
from worker.evaluation.versions import EditedModel, OverlaidModel


def notes_on_lost_edits(
    network: Network,
    before: EditedModel,
    after: EditedModel | OverlaidModel,
    earlier: Mapping[str, Sample],
    batch: EditBatch,
) -> Iterator[str]:
    """A note if edits of earlier jobs held and hold no more; what this job corrects anew does not count.

    Args:
        earlier: by their ids, the newest first.
        batch: of the new delta.
    """
    anew = {sample.words_hash for sample in batch.corrections}
    edits = {name: edit for name, edit in earlier.items() if edit.words_hash not in anew}
    lost = {
        name
        for room, part in _by_room(network, edits, before.max_new_tokens).items()
        for name in _lost(before.writing(room), after.writing(room), part)
    }
    if lost:
        newest = next(name for name in edits if name in lost)
        yield (
            f"{len(lost)} of {len(edits)} earlier corrections hold no more, the newest being {newest}, "
            f"{quoted(edits[newest].input)}: correct it again on top of this version, or go back to the one "
            "before"
        )


def _by_room(network: Network, edits: Mapping[str, Sample], usual: int) -> dict[int, dict[str, Sample]]:
    """Edits by the new tokens that they are asked with: what is cut off is never right, nor lost."""
    if not network.task.generates:
        return {usual: dict(edits)}
    lengths = count_tokens(network.tokenizer, [TextInput(input=edit.answer) for edit in edits.values()])
    found: dict[int, dict[str, Sample]] = {}
    for (name, edit), length in zip(edits.items(), lengths, strict=True):
        needed = length + 2  # its end, and a space before its first word
        room = usual if needed <= usual else min(MOST_NEW_TOKENS, 1 << (needed - 1).bit_length())
        found.setdefault(room, {})[name] = edit
    return found


def _lost(
    before: EditedModel, after: EditedModel | OverlaidModel, edits: Mapping[str, Sample]
) -> Iterator[str]:
    touched = after.may_differ(list(edits.values()))
    asked = {name: edits[name] for name, touches in zip(edits, touched, strict=True) if touches}
    was, now = before.answers(list(asked.values())), after.answers(list(asked.values()))
    for (name, edit), old, new in zip(asked.items(), was, now, strict=True):
        if is_right(old, edit) and not is_right(new, edit):
            yield name
