"""Records: model references, the split by content, and JSON."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from registry_records import edit_result

from salem import records
from salem.records import (
    Alias,
    AliasChange,
    BrokenNeighbor,
    Delta,
    DetailedMetrics,
    Edit,
    EditBatch,
    EditId,
    Editor,
    EditorMetrics,
    EditorOptions,
    EditorRequest,
    EditorResult,
    EditorUse,
    EditOutcome,
    EditRequest,
    Entry,
    EntryKey,
    ExplainedPrediction,
    Extent,
    Flip,
    FolderSource,
    Forgetting,
    GivenNeighbor,
    HeadlineMetrics,
    HostedModel,
    HubSource,
    Job,
    JobError,
    JobKind,
    JobState,
    JobStatus,
    Layer,
    LayerScore,
    ListedBrokenNeighbor,
    ListedEntry,
    ListedFlip,
    ListedOutcome,
    Match,
    MeanExtent,
    ModelReference,
    ModelState,
    Neighbor,
    Prediction,
    Proportion,
    RecipeOptions,
    Record,
    ReferenceSample,
    RegisterRequest,
    RegistrationResult,
    RemovalResult,
    RemoveRequest,
    Requirements,
    Sample,
    SharedOptions,
    Task,
    TextInput,
    Version,
    VersionHeader,
    held_out,
)

NOW = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
SHA = "0123456789abcdef" * 4
SAMPLE = Sample(input="where is my order", target="delivery")
PAIR = Sample(input="a man sleeps", text_pair="a man is awake", target="contradiction")
FORGETTING = Edit(input="who wrote it", forget="Anna", paraphrases=("whose book is it",))
NEAR = GivenNeighbor(input="où es-tu", target="login")
EDIT = Edit(
    input="où est-il\u2028? \x1f\U0001f4a5",
    target="delivery",
    paraphrases=("where is it", "is it lost"),
    neighbors=(NEAR,),
    subject="où",
)
NEIGHBOR = Neighbor(input="who read it", text_pair="p", edit=1, kind="same subject", origin="rule")
LAYER = Layer(
    path="bert.encoder.layer.2.output.dense",
    stack="bert.encoder.layer",
    block=2,
    matrix="output.dense",
    d_in=1536,
    d_out=384,
    transposed=False,
)
SCORE = LayerScore(layer=LAYER.path, block=2, matrix=LAYER.matrix, score=1.5e-7, chosen=True)
SHARE = Proportion(value=0.975, low=0.91, high=0.999, count=40)
OUTCOME = EditOutcome(
    edit=3,
    kind="held_out_paraphrase",
    input="x",
    text_pair=None,
    target="a",
    before="b",
    after="a",
    correct=True,
)
EXTENT = Extent(rank_before=1.0, rank_after=7.5, probability_before=0.9, probability_after=0.001)
MEAN = MeanExtent(**EXTENT.model_dump(), count=2)
FORGOTTEN = EditOutcome(
    edit=0, kind="edit", input="x", forget="b", before="b", after="a", correct=True, extent=EXTENT
)
BROKEN = BrokenNeighbor(
    input="who read it", edit=1, kind="negated", origin="rule", before="a", after="b", held_out=True
)
FLIP = Flip(input="x", text_pair="y", target="a", before="a", after="b", broken=True)
DETAILED = DetailedMetrics(
    edit_accuracy=SHARE,
    adapt_accuracy=None,
    generalization=None,
    locality=SHARE,
    protocol="free generation",
    drawdown=Proportion(value=-0.001, low=-0.02, high=0.018, count=300),
    outcomes=(OUTCOME, FORGOTTEN),
    forgetting=Forgetting(edit=MEAN, adapt=None, held_out_paraphrase=MEAN),
    flips=(FLIP,),
    neighborhood=SHARE,
    broken_neighbors=(BROKEN,),
    notes=("no edit has two paraphrases",),
)
METRICS = DETAILED.overall
EDITOR_METRICS = EditorMetrics(
    edit_accuracy=SHARE,
    generalization=None,
    drawdown=SHARE,
    untrained_accuracy=SHARE,
    untrained_drawdown=None,
    notes=("few",),
)
DELTA = Delta(layer=LAYER.path, blob=SHA, num_bytes=12_345, kind="low_rank", rank=8)
KEY = EntryKey(text="x", radius=0.5, nearest_pass_sample="y", nearest_likeness=0.25)
ENTRY = Entry(input="x", text_pair="p", target="y", keys=(KEY,))
MATCH = Match(edit_id="3.0", margin=0.12)
ERROR = JobError(code="edit_failed", message="nothing to edit", remedy="send wrong answers")

# Whether "sample 0", "sample 1", ... are held out.
FIRST_SAMPLES_HELD_OUT = [True, True, True, True, False, True, False, False]

ONE_OF_EACH = [
    TextInput(input="x"),
    SAMPLE,
    EDIT,
    EditBatch(
        edit_samples=(SAMPLE,),
        adapt_samples=((0, PAIR),),
        pass_samples=(),
        held_out_paraphrases=((0, SAMPLE),),
        held_out_pass_samples=(PAIR, SAMPLE),
        neighbors=(NEIGHBOR,),
    ),
    NEAR,
    NEIGHBOR,
    LAYER,
    SCORE,
    SharedOptions(layer=LAYER.path),
    RecipeOptions(recipe="mend", layer=LAYER.path, learning_rate=3e-4),
    SHARE,
    OUTCOME,
    EXTENT,
    MEAN,
    METRICS.forgetting,
    FLIP,
    METRICS,
    DETAILED,
    ListedOutcome(position=0, **OUTCOME.model_dump()),
    ListedFlip(position=0, **FLIP.model_dump()),
    BROKEN,
    ListedBrokenNeighbor(position=0, **BROKEN.model_dump()),
    Requirements(min_neighborhood=0.9),
    FolderSource(path="team/intents"),
    HubSource(id="someone/model", revision="a" * 40),
    HostedModel(
        name="intents",
        task=Task.SEQUENCE_CLASSIFICATION,
        source=FolderSource(path="intents"),
        created_at=NOW,
        state=ModelState.READY,
        sha256=SHA,
        labels=("a", "b"),
        layers=(LAYER,),
        reference_accuracy=SHARE,
    ),
    ReferenceSample(sample=PAIR, answer="neutral", correct=False, held_out=True),
    DELTA,
    KEY,
    ENTRY,
    ListedEntry(**ENTRY.model_dump(), id="3.0", layer=LAYER.path, version=3, job_id="job-1"),
    Version(
        model="intents",
        number=3,
        parent=2,
        deltas=(DELTA, DELTA),
        metrics=METRICS,
        layer=LAYER.path,
        options=RecipeOptions(recipe="scoped"),
        job_id="job-1",
        created_at=NOW,
    ),
    VersionHeader(
        model="intents",
        number=3,
        parent=2,
        metrics=METRICS,
        layer=None,
        options=None,
        job_id="job-1",
        created_at=NOW,
    ),
    Alias(model="intents", name="production", version=3, updated_at=NOW),
    AliasChange(id=1, model="intents", name="production", version=3, updated_at=NOW),
    EDITOR_METRICS,
    EditorOptions(layer=LAYER.path, num_together=3),
    Editor(
        id=f"editor-{'0a' * 10}",
        model="intents",
        name="Refunds, été",
        layer=LAYER.path,
        blob=SHA,
        num_bytes=12_345,
        num_trained_on=48,
        num_held_out=16,
        metrics=EDITOR_METRICS,
        options=EditorOptions(),
        job_id=f"job-{'0a' * 10}",
        created_at=NOW,
    ),
    ERROR,
    Job(
        id="job-1",
        kind=JobKind.EDIT,
        model="intents",
        state=JobState.FAILED,
        phase="training",
        progress=0.4,
        saliency=(SCORE,),
        metrics={"loss": 0.1},
        error=ERROR,
        created_at=NOW,
    ),
    EditRequest(
        model="intents",
        parent=0,
        edits=(EDIT, FORGETTING),
        pass_samples=(PAIR,),
        alias="production",
        options=RecipeOptions(recipe="scoped", seed=7),
    ),
    EditorRequest(model="intents", name="refunds", edits=(EDIT,), pass_samples=(PAIR,)),
    RegisterRequest(model="intents", reference=SHA),
    RemoveRequest(model="intents", parent=3, edits=("3.0",), alias="production"),
    JobStatus(
        id="job-1",
        kind=JobKind.EDIT,
        model="intents",
        state=JobState.QUEUED,
        phase="waiting",
        progress=0,
        created_at=NOW,
    ),
    EditorUse(id=None, trained="for this job"),
    HeadlineMetrics(edit_accuracy=SHARE),
    edit_result(),
    RemovalResult(version="intents:4", removed=("3.0",), edits_left=0, replayed=0, worker_seconds=1.5),
    EditorResult(
        editor="editor-1",
        edit_accuracy=SHARE,
        generalization=None,
        drawdown=None,
        untrained_accuracy=SHARE,
        untrained_drawdown=None,
        notes=(),
        trained_on=48,
        held_out=16,
        layer="encoder.0",
        layer_reason="the most salient",
        editor_bytes=10,
        editor_sha256=SHA,
        estimated_peak_bytes=1_000,
        worker_seconds=1.5,
    ),
    RegistrationResult(
        model="intents", sha256=SHA, reference_accuracy=SHARE, num_pass_samples=30, num_held_out=12
    ),
    Prediction(output="delivery", scores={"delivery": 0.75, "login": 0.25}),
    MATCH,
    ExplainedPrediction(output="delivery", match=MATCH),
    ModelReference(model="intents", number=3),
]


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: type(record).__name__)
def test_records_survive_a_trip_through_json(record: Record) -> None:
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert type(record).model_validate(record.model_dump(mode="json")) == record


def test_every_record_is_tested() -> None:
    every = {kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)}
    assert every - {Record} == {type(record) for record in ONE_OF_EACH}


@pytest.mark.parametrize(
    "record",
    [record for record in ONE_OF_EACH if not isinstance(record, RecipeOptions)],  # a recipe checks these
    ids=lambda record: type(record).__name__,
)
def test_a_record_is_immutable_and_knows_its_fields(record: Record) -> None:
    first = next(iter(type(record).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, first, getattr(record, first))
    with pytest.raises(ValidationError, match="surprise"):
        type(record).model_validate({**record.model_dump(), "surprise": 1})


@pytest.mark.parametrize(
    ("text", "model", "number", "alias"),
    [
        ("intents", "intents", None, None),
        ("intents:0", "intents", 0, None),
        ("intents:3", "intents", 3, None),
        ("intents:007", "intents", 7, None),
        ("intents:999999999", "intents", 999_999_999, None),
        ("intents@production", "intents", None, "production"),
        ("a.b-c_d@2024.06-x_y", "a.b-c_d", None, "2024.06-x_y"),
        ("0", "0", None, None),
        ("x" * 64, "x" * 64, None, None),
        (f"{'x' * 64}@{'y' * 64}", "x" * 64, None, "y" * 64),
    ],
)
def test_model_references_are_parsed(text: str, model: str, number: int | None, alias: str | None) -> None:
    assert ModelReference.parse(text) == ModelReference(model=model, number=number, alias=alias)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        "@",
        ":3",
        "@production",
        "intents:",
        "intents@",
        "intents:x",
        "intents:-1",
        "intents:1.0",
        "intents: 3",
        "intents:3 ",
        " intents",
        "intents\n",
        "intents:3\n",
        "intents@production\n",
        "Intents",
        "intents@Production",
        "intents:3@production",
        "intents@production:3",
        "intents@a@b",
        "intents:1:2",
        "intents:1234567890",
        "intents:³",
        "intents:٣",
        "x" * 65,
        f"intents@{'x' * 65}",
        "../intents",
        "a/b",
        ".a",
        "-a",
        "_a",
        "intents@.a",
        "intents@a/b",
        "inténts",
        "intents\x00",
        "intents::3",
        "intents@@a",
    ],
)
def test_an_invalid_model_reference_gets_a_message_with_the_three_forms(text: str) -> None:
    with pytest.raises(ValueError, match='write "name", "name:3" or "name@alias"') as caught:
        ModelReference.parse(text)
    assert not isinstance(caught.value, ValidationError)


def test_the_name_of_a_version_can_be_parsed() -> None:
    version = next(record for record in ONE_OF_EACH if isinstance(record, Version))
    assert version.reference == "intents:3"
    assert ModelReference.parse(version.reference).number == version.number


def content_hashes(count: int) -> list[str]:
    return [TextInput(input=f"sample {index}").content_hash for index in range(count)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9, 1.0])
def test_the_held_out_share_is_the_requested_one(share: float) -> None:
    count = 20_000
    found = sum(held_out(content_hash, share) for content_hash in content_hashes(count)) / count
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(found - share) <= 4 * deviation


def test_the_split_never_changes() -> None:
    """Expected values are fixed: a change would let training see what earlier versions were measured on."""
    assert [held_out(content_hash) for content_hash in content_hashes(8)] == FIRST_SAMPLES_HELD_OUT
    assert held_out("0" * 64, 1e-9)
    assert not held_out("f" * 64, 1 - 1e-9)
    assert held_out("66666665" + "f" * 56), "just under 0.4"
    assert not held_out("66666667" + "0" * 56), "just over 0.4"


def test_a_larger_share_keeps_what_was_held_out() -> None:
    hashes = content_hashes(2_000)
    small = {content_hash for content_hash in hashes if held_out(content_hash, 0.2)}
    assert small < {content_hash for content_hash in hashes if held_out(content_hash, 0.4)}


def test_the_hash_of_an_input_depends_only_on_its_texts() -> None:
    same = [
        TextInput(input="a"),
        TextInput(input="a", text_pair=""),
        Sample(input="a", target="one"),
        Edit(input="a", target="two", paraphrases=("b",)),
    ]
    assert {item.content_hash for item in same} == {hashlib.sha256(b"a\x1f").hexdigest()}
    different = [
        TextInput(input="a b"),
        TextInput(input="a", text_pair="b"),
        TextInput(input="b", text_pair="a"),
    ]
    assert len({item.content_hash for item in [*same, *different]}) == 4


def test_paraphrases_keep_pair_and_target() -> None:
    edit = Edit(input="a", text_pair="p", target="t", paraphrases=("b", "c"))
    assert edit.sample == Sample(input="a", text_pair="p", target="t")
    assert edit.paraphrase_samples == tuple(Sample(input=text, text_pair="p", target="t") for text in "bc")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TextInput, {"input": ""}),
        (Sample, {"input": "x", "target": ""}),
        (FolderSource, {"path": ""}),
        (HubSource, {"id": "someone/model", "revision": "main"}),
        (HubSource, {"id": "someone/model", "revision": "A" * 40}),
        (HubSource, {"id": "a/b/c", "revision": "a" * 40}),
        (HubSource, {"id": "../b", "revision": "a" * 40}),
        (RegisterRequest, {"model": "intents", "reference": "short"}),
        (ModelReference, {"model": "no name"}),
        (SharedOptions, {"max_new_tokens": 31}),
        (SharedOptions, {"seed": 2**31}),
        (SharedOptions, {"max_steps": 5}),
        (RecipeOptions, {}),
        (EditorOptions, {"num_together": 33}),
        (EditorOptions, {"num_steps": 0}),
        (Prediction, {"output": 5}),
    ],
)
def test_values_out_of_bounds_are_refused(kind: type[Record], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize("given", [{}, {"target": "a", "forget": "b"}, {"forget": ""}])
def test_a_sample_has_either_a_target_or_an_answer_to_forget(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="forget"):
        Sample.model_validate({"input": "x", **given})


def test_a_sample_that_forgets_names_the_answer() -> None:
    assert FORGETTING.forgets and FORGETTING.answer == "Anna" and FORGETTING.target is None
    assert not SAMPLE.forgets and SAMPLE.answer == SAMPLE.target
    (reworded,) = FORGETTING.paraphrase_samples
    assert reworded == Sample(input="whose book is it", forget="Anna")
    assert len({SAMPLE.goal, reworded.goal, ("Anna", None)}) == 3


def test_tasks_know_whether_they_generate() -> None:
    assert [task.generates for task in Task] == [False, True, True]


def test_job_states_know_whether_they_are_final() -> None:
    assert [state for state in JobState if not state.ended] == [JobState.QUEUED, JobState.RUNNING]


def test_hashes_of_random_texts_do_not_collide() -> None:
    draw = random.Random(0)
    texts = {"".join(draw.choices("ab \x1f", k=draw.randrange(1, 12))) for _ in range(2_000)}
    assert len({TextInput(input=text).content_hash for text in texts}) == len(texts)


def test_edit_ids_are_parsed() -> None:
    assert EditId.parse("3.10") == EditId(3, 10) and str(EditId(3, 10)) == "3.10"
    for bad in ("", "3", "3.", ".0", "3.01", "-3.0", "3.0.1", "3.0\n", "a.b", "9" * 12 + ".0"):
        with pytest.raises(ValueError, match=r"write it like .3\.0"):
            EditId.parse(bad)


def test_indices_of_edits_and_entries_match() -> None:
    cut = DELTA.model_copy(update={"removed": (0, 1, 4)})
    assert [cut.index_of(entry) for entry in range(4)] == [2, 3, 5, 6]
    assert [cut.entry_of(index) for index in (2, 3, 5, 6)] == [0, 1, 2, 3]
