"""The split of a request: what training sees, what it never sees, and what is in neither part."""

from __future__ import annotations

import pytest

from salem.records import Edit, EditBatch, ReferenceSample, Sample, held_out
from worker.dataset.split import build_edit_batch, without_seen_paraphrases


def edit(name: str, num_paraphrases: int) -> Edit:
    paraphrases = tuple(f"{name} in words {number}" for number in range(num_paraphrases))
    return Edit(input=name, target="refund", paraphrases=paraphrases)


EDITS = (edit("none", 0), edit("one", 1), edit("two", 2), edit("five", 5))
PASS = tuple(Sample(input=f"question {number}", target="login") for number in range(60))


def reference(*samples: Sample, correct: bool = True) -> list[ReferenceSample]:
    return [
        ReferenceSample(
            sample=sample, answer=sample.target, correct=correct, held_out=held_out(sample.content_hash)
        )
        for sample in samples
    ]


def build(
    *,
    edits: tuple[Edit, ...] = EDITS,
    known: list[ReferenceSample] | None = None,
    given: tuple[Sample, ...] | None = None,
    seed: int = 0,
    most_pass: int = 1_000,
    most_held_out: int = 1_000,
) -> EditBatch:
    known = reference(*PASS) if known is None else known
    limits = {"max_pass_samples": most_pass, "max_held_out": most_held_out}
    return build_edit_batch(edits, known, given, seed=seed, **limits)


def test_one_paraphrase_is_held_out_of_every_edit_with_two_or_more() -> None:
    batch = build()
    assert batch.edit_samples == tuple(item.sample for item in EDITS)
    assert [index for index, _ in batch.held_out_paraphrases] == [2, 3]
    assert [index for index, _ in batch.adapt_samples] == [1, 2, 3, 3, 3, 3]
    for index, item in enumerate(EDITS):
        found = [s for i, s in (*batch.adapt_samples, *batch.held_out_paraphrases) if i == index]
        assert sorted(s.input for s in found) == sorted(item.paraphrases)
        assert all(s.target == item.target for s in found)


def test_the_seed_chooses_the_pass_samples() -> None:
    assert build(seed=3) == build(seed=3)
    assert len({build(seed=seed, most_pass=5).pass_samples for seed in range(5)}) > 1


def test_a_changed_pass_sample_leaves_the_others_in_place() -> None:
    before = build(given=PASS).pass_samples
    changed = next(number for number, sample in enumerate(PASS) if sample == before[len(before) // 2])
    other = Sample(input="an other question", target="login")
    assert not held_out(other.content_hash)
    after = build(given=(*PASS[:changed], other, *PASS[changed + 1 :])).pass_samples
    assert [sample for sample in after if sample != other] == [
        sample for sample in before if sample != PASS[changed]
    ]


def test_paraphrases_that_an_earlier_job_was_trained_on_do_not_count() -> None:
    batch, edit = build(), EDITS[3]
    held = next(sample for index, sample in batch.held_out_paraphrases if index == 3)
    assert without_seen_paraphrases(batch, EDITS) == batch, "the same edits hold out the same paraphrases"
    alone = edit.model_copy(update={"paraphrases": (held.input,)})  # one paraphrase is trained on
    left = without_seen_paraphrases(batch, [alone])
    assert left.held_out_paraphrases == tuple(p for p in batch.held_out_paraphrases if p[0] != 3)
    assert left.adapt_samples == batch.adapt_samples
    others = edit.model_copy(update={"paraphrases": tuple(p for p in edit.paraphrases if p != held.input)})
    assert without_seen_paraphrases(batch, [others]) == batch
    assert left.num_seen == 1


def test_known_paraphrases_that_were_trained_on_do_not_count() -> None:
    edits = tuple(edit(f"text {number}", 2) for number in range(12))
    batch = build(edits=edits)
    asked = next(each for each in reference(*PASS) if not each.held_out)
    taught = asked.model_copy(
        update={"paraphrases": tuple(text for each in edits for text in each.paraphrases)}
    )
    left = without_seen_paraphrases(batch, [], [taught])
    # of a reference sample's paraphrases, too, some are held out and teach nothing
    assert left.held_out_paraphrases == tuple(
        (index, sample) for index, sample in batch.held_out_paraphrases if held_out(sample.content_hash)
    )
    assert 0 < left.num_seen == len(edits) - len(left.held_out_paraphrases) < len(edits)
    assert without_seen_paraphrases(batch, [], [taught.model_copy(update={"held_out": True})]) == batch


def test_an_edit_always_holds_out_the_same_paraphrase() -> None:
    """This holds for any other edits, order, and seed. Otherwise some job would train on that paraphrase."""
    first = {sample.input for _, sample in build().held_out_paraphrases}
    assert len(first) == 2
    for edits, seed in ((EDITS, 7), (EDITS[::-1], 0), (EDITS[3:], 0), (EDITS[2:], 3)):
        assert {sample.input for _, sample in build(edits=edits, seed=seed).held_out_paraphrases} <= first
    mixed = EDITS[3].model_copy(update={"paraphrases": EDITS[3].paraphrases[::-1]})
    assert build(edits=(mixed,)).held_out_paraphrases[0][1].input in first


@pytest.mark.parametrize("given", [None, PASS])
def test_nothing_held_out_is_trained_on(given: tuple[Sample, ...] | None) -> None:
    batch = build(given=given)
    seen = {s.content_hash for s in (*batch.edit_samples, *batch.pass_samples)}
    seen |= {s.content_hash for _, s in batch.adapt_samples}
    unseen = {s.content_hash for s in batch.held_out_pass_samples}
    unseen |= {s.content_hash for _, s in batch.held_out_paraphrases}
    assert unseen and not seen & unseen
    assert {*batch.pass_samples, *batch.held_out_pass_samples} == set(PASS)
    assert all(held_out(sample.content_hash) for sample in batch.held_out_pass_samples)


@pytest.mark.parametrize("as_reference", [True, False])
def test_pass_samples_that_touch_an_edit_are_left_out_on_both_sides(as_reference: bool) -> None:
    corrected = [Sample(input=f"question {number}", target="refund") for number in range(20)]
    edits = (
        *(Edit(**sample.model_dump()) for sample in corrected[:10]),
        Edit(input="x", target="refund", paraphrases=tuple(sample.input for sample in corrected[10:])),
    )
    batch = build(edits=edits, known=None if as_reference else [], given=None if as_reference else PASS)
    left = {*batch.pass_samples, *batch.held_out_pass_samples}
    assert left == set(PASS[20:])


@pytest.mark.parametrize("as_reference", [True, False])
def test_samples_that_differ_only_in_white_space_are_the_same(as_reference: bool) -> None:
    spaced = [f" question\t{number}\n" for number in range(20)]
    edits = (
        *(Edit(input=text, target="refund") for text in spaced[:10]),
        Edit(input="x", target="refund", paraphrases=tuple(spaced[10:])),
        Edit(input="question 20", text_pair=" ", target="refund"),
        Edit(input="question", text_pair="21", target="refund"),
    )
    batch = build(edits=edits, known=None if as_reference else [], given=None if as_reference else PASS)
    assert {*batch.pass_samples, *batch.held_out_pass_samples} == set(PASS[21:])


def test_a_pair_is_a_different_input_from_its_first_text() -> None:
    pair = Sample(input="none", text_pair="with a second text", target="login")
    batch = build(known=reference(pair))
    assert [*batch.pass_samples, *batch.held_out_pass_samples] == [pair]


def test_only_reference_samples_with_a_correct_answer_are_pass_samples() -> None:
    batch = build(known=reference(*PASS[:30]) + reference(*PASS[30:], correct=False))
    assert {*batch.pass_samples, *batch.held_out_pass_samples} == set(PASS[:30])


def test_given_pass_samples_replace_the_reference_set() -> None:
    given = tuple(Sample(input=f"given {number}", target="login") for number in range(20))
    batch = build(given=given)
    assert {*batch.pass_samples, *batch.held_out_pass_samples} == set(given)


@pytest.mark.parametrize("as_reference", [False, True])
def test_a_pass_sample_that_is_repeated_counts_once(as_reference: bool) -> None:
    spaced = [sample.model_copy(update={"input": f"{sample.input}  "}) for sample in PASS]
    often = (*PASS, *PASS, *spaced)
    batch = build(known=reference(*often)) if as_reference else build(given=often)
    kept = [*batch.pass_samples, *batch.held_out_pass_samples]
    assert len(kept) == len(PASS) and set(kept) == set(PASS)


def test_the_limits_on_pass_samples_are_kept() -> None:
    batch = build(most_pass=3, most_held_out=2)
    assert (len(batch.pass_samples), len(batch.held_out_pass_samples)) == (3, 2)
    nothing = build(known=[])
    assert not nothing.pass_samples and not nothing.held_out_pass_samples


def test_known_paraphrases_are_included_unless_held_out_or_touched_by_an_edit() -> None:
    known = [
        item.model_copy(update={"paraphrases": tuple(f"{item.sample.input} reworded {n}" for n in range(3))})
        for item in reference(*PASS)
    ]
    touching = Edit(input="question 1", target="refund", paraphrases=("question 2 reworded 0", "question 3"))
    pairs = build(edits=(touching,), known=known).equivalents
    spaced = touching.model_copy(
        update={"input": "question  1", "paraphrases": ("question 2\nreworded 0", " question 3")}
    )
    assert build(edits=(spaced,), known=known).equivalents == pairs
    texts = {text.input for pair in pairs for text in pair}
    assert pairs and not texts & {"question 1", "question 2 reworded 0", "question 3"}
    assert all(second.input.startswith(f"{first.input} reworded") for first, second in pairs)
    assert not any(held_out(text.content_hash) for pair in pairs for text in pair)
