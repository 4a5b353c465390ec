"""Near neighbors of edits: where they come from, how many there are, and which half they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from salem.records import Edit, EditBatch, GivenNeighbor, Neighbor, ReferenceSample, Sample, held_out
from worker.dataset.near_samples import NearSamples
from worker.dataset.neighbors import IN_ALL, PER_EDIT, add_neighbors, generate_neighbors
from worker.dataset.split import build_edit_batch

FACTS = (
    Edit(input="Where was Albert Einstein born?", target="Paris"),
    Edit(input="What is the capital of Australia?", target="Perth", paraphrases=("Australia's capital is?",)),
    Edit(input="Who wrote Hamlet?", target="Dickens"),
)
KNOWN = (
    ("Where was Mozart born?", "Salzburg"),
    ("What is the largest city of Australia?", "Sydney"),
    ("How high is Mount Everest?", "8849 m"),
    ("When did Albert Einstein die?", "1955"),
)


def reference(*rows: Sequence[str]) -> list[ReferenceSample]:
    samples = [
        Sample(input=text, target=target, text_pair=pair[0] if pair else None) for text, target, *pair in rows
    ]
    return [
        ReferenceSample(
            sample=sample, answer=sample.answer, correct=True, held_out=held_out(sample.content_hash)
        )
        for sample in samples
    ]


def of_edit(index: int, found: Sequence[Neighbor]) -> list[Neighbor]:
    return [neighbor for neighbor in found if neighbor.edit == index]


def made(*, kind: str, origin: str, found: Sequence[Neighbor]) -> set[str]:
    return {each.input for each in found if each.kind == kind and each.origin == origin}


def test_facts_get_neighbors_of_every_kind() -> None:
    found = generate_neighbors(FACTS, NearSamples(reference(*KNOWN)), generates=True)
    kinds = {"same subject", "same relation", "yes/no", "reversed", "negated", "quoted", "request"}
    for index in range(len(FACTS)):
        assert kinds <= {each.kind for each in of_edit(index, found)}
        assert len(of_edit(index, found)) == PER_EDIT
    assert {each.origin for each in found} == {"edit", "reference", "rule"}
    assert "Was Albert Einstein born in Paris?" in made(kind="yes/no", origin="rule", found=found)


def test_other_edits_lend_their_frames_and_subjects() -> None:
    one = of_edit(0, generate_neighbors(FACTS[:2], NearSamples([]), generates=True))
    assert made(kind="same subject", origin="edit", found=one) == {"What is the capital of Albert Einstein?"}
    assert made(kind="same relation", origin="edit", found=one) == {"Where was Australia born?"}


def test_the_reference_set_lends_its_questions_frames_and_subjects() -> None:
    one = generate_neighbors(FACTS[:1], NearSamples(reference(*KNOWN)), generates=True)
    about_others = made(kind="same relation", origin="reference", found=one)
    assert {"Where was Mozart born?", "Where was Mount Everest born?"} <= about_others
    about_subject = made(kind="same subject", origin="reference", found=one)
    assert {"When did Albert Einstein die?", "How high is Albert Einstein?"} <= about_subject


def test_questions_of_one_relation_lend_nothing_that_would_be_a_paraphrase() -> None:
    """ "In which city was Einstein born?" is no neighbor of "Where was Einstein born?"."""
    edits = (
        FACTS[0],
        Edit(input="In which city was Johann Bach born?", target="Rome"),
        Edit(input="What is the place of birth of Irene Forbes?", target="Oslo"),
    )
    found = generate_neighbors(edits, NearSamples([]), generates=True)
    texts = {each.input for each in found}
    assert "edit" not in {each.origin for each in found}
    assert not texts & {"In which city was Albert Einstein born?", "Where was Johann Bach born?"}


def test_the_client_may_name_the_subject() -> None:
    edit = Edit(input="Did Tom Hanks win an Oscar for Philadelphia?", target="yes", subject="Tom Hanks")
    found = generate_neighbors([edit], NearSamples([]), generates=True)
    about_others = made(kind="same relation", origin="rule", found=found)
    assert about_others and all("Philadelphia" in text and "Tom Hanks" not in text for text in about_others)


def test_labels_get_near_samples_and_no_questions_about_facts() -> None:
    rows = (
        ("my card was charged twice", "billing"),
        ("the app crashes", "bug"),
        ("I want to cancel my order", "orders"),
        ("please cancel everything", "cancel"),
    )
    edit = Edit(input="I want to cancel because I was charged twice", target="cancel")
    found = generate_neighbors([edit], NearSamples(reference(*rows)), generates=False)
    assert {each.kind for each in found} <= {"same subject", "similar words", "negated"}
    assert made(kind="negated", origin="rule", found=found) == {
        "I do not want to cancel because I was charged twice"
    }
    story = Edit(input=f"{edit.input}. " + "The parcel is still in the hall. " * 3, target="cancel")
    told = generate_neighbors([story], NearSamples(reference(*rows)), generates=False)
    assert told and {each.origin for each in told} == {"reference"}, (
        "one negated verb does not change a story"
    )
    near = {each.input for each in found if each.origin == "reference"}
    assert near == {"my card was charged twice", "I want to cancel my order"}  # not those with the target


def test_pairs_share_a_text_with_their_edit() -> None:
    edits = (
        Edit(input="A man is riding a horse.", text_pair="A man is outside.", target="yes"),
        Edit(input="A girl is singing.", text_pair="She is quiet.", target="no"),
    )
    rows = (("A man is sleeping on a bench.", "no", "A man is awake."),)
    found = of_edit(0, generate_neighbors(edits, NearSamples(reference(*rows)), generates=False))
    pairs = {(each.origin, each.input, each.text_pair) for each in found if each.kind == "shared text"}
    assert pairs == {
        ("edit", "A man is riding a horse.", "She is quiet."),
        ("edit", "A girl is singing.", "A man is outside."),
        ("reference", "A man is riding a horse.", "A man is awake."),
        ("reference", "A man is sleeping on a bench.", "A man is outside."),
    }
    assert all(each.text_pair for each in found)


def test_what_stands_around_the_question_stays() -> None:
    def question(text: str) -> slice:
        start = text.index("<user>") + len("<user>")
        return slice(start, text.index("<end>", start))

    edits = [
        Edit(input=f"<system>Be kind.<end><user>{edit.input}<end><answer>", target=edit.target)
        for edit in FACTS
    ]
    rows = [(f"<user>{text}<end><answer>", target) for text, target in KNOWN]
    found = generate_neighbors(edits, NearSamples(reference(*rows), question), generates=True)
    generated = [each for each in found if each.input not in dict(rows)]
    assert all(each.input.startswith("<system>Be kind.<end><user>") for each in generated)
    assert all(each.input.endswith("<end><answer>") for each in generated)
    assert any("<user>Was Albert Einstein born in Paris?<end>" in each.input for each in found)


def test_no_neighbor_is_an_edit_a_paraphrase_or_another_neighbor() -> None:
    own = Edit(
        input="Where was Johann Bach born?",
        target="Rome",
        paraphrases=("Was Johann Bach born in Rome?",),
        neighbors=(GivenNeighbor(input="When  was Johann Bach born?"),),
    )
    found = generate_neighbors([own], NearSamples([]), generates=True)
    taken = {"Where was Johann Bach born?", "Was Johann Bach born in Rome?", "When was Johann Bach born?"}
    assert not taken & {each.input for each in found}
    assert len({each.words_hash for each in found}) == len(found)


def test_many_edits_get_fewer_neighbors_each() -> None:
    many = [Edit(input=f"Where was Person Number{i} born?", target=f"Town{i}") for i in range(900)]
    assert len(generate_neighbors(many, NearSamples([]), generates=True)) == IN_ALL
    per_edit = Counter(each.edit for each in generate_neighbors(many[:100], NearSamples([]), generates=True))
    assert set(per_edit.values()) == {IN_ALL // 100} and len(per_edit) == 100


def batch_of(edits: Sequence[Edit], known: Sequence[ReferenceSample]) -> EditBatch:
    built = build_edit_batch(edits, known, None, max_pass_samples=100, max_held_out=100, seed=0)
    return add_neighbors(built, edits, NearSamples(known), generates=True)


def test_the_content_of_a_neighbor_decides_its_half() -> None:
    given = tuple(GivenNeighbor(input=f"Is town {i} large?", target="yes") for i in range(40))
    edits = (FACTS[0].model_copy(update={"neighbors": given}), *FACTS[1:])
    batch = batch_of(edits, reference(*KNOWN))
    halves = batch.neighbors, batch.held_out_neighbors
    assert all(len(half) > 25 for half in halves)
    texts = [{each.words_hash for each in half} for half in halves]
    assert not texts[0] & texts[1]
    sent = [[each for each in half if each.origin == "client"] for half in halves]
    assert sum(map(len, sent)) == 40 and all(each.target == "yes" for half in sent for each in half)
    again = batch_of(edits[:1], [])
    assert {each.input for each in sent[1]} <= {each.input for each in again.held_out_neighbors}


def test_a_reference_sample_is_held_out_as_a_neighbor_if_it_is_as_a_pass_sample() -> None:
    known = reference(*KNOWN)
    batch = batch_of(FACTS, known)
    samples = {item.sample.input: item.held_out for item in known}
    calibrating = {each.input for each in batch.neighbors} & set(samples)
    measuring = {each.input for each in batch.held_out_neighbors} & set(samples)
    assert calibrating and not any(samples[text] for text in calibrating)
    assert measuring and all(samples[text] for text in measuring)
