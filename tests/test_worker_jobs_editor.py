"""Jobs with an editor on real storage: one trains it, others apply it, and a removal applies it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from api_service import Stage
from editor_corpora import LAYER, QUICK, corpus, kept, new_edits
from registry_records import versions_of
from tiny_models import tiny_network

from salem.deltas.files import unpack
from salem.deltas.terms import LayerDelta
from salem.models.tensor_files import read_header
from salem.records import (
    Edit,
    Editor,
    EditorRequest,
    EditRequest,
    HostedModel,
    Job,
    JobKind,
    JobState,
    ListedOutcome,
    RecipeOptions,
    Record,
    RemoveRequest,
    Version,
)
from salem.settings import Settings
from salem.storage.editors import editor_id
from salem.storage.registry import Registry
from worker.hypernetworks.files import pack_editor, unpack_editor
from worker.hypernetworks.one_pass import one_pass_term
from worker.pipeline.dataset import requested_batch
from worker.pipeline.history import EditHistory
from worker.recipes import base
from worker.runtime.work_horse import JobRun
from worker.training import loop


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One home for all of these tests: an editor is trained once. No job goes through a queue."""
    settings = Settings(home=tmp_path_factory.mktemp("editors"), device="cpu")
    registry = Registry.connect(settings.effective_database_url)
    registry.migrate()
    yield Stage.of(settings, registry)
    registry.close()


@pytest.fixture(scope="module")
def model(stage: Stage) -> HostedModel:
    return stage.host("m", "bert")


@pytest.fixture(scope="module")
def editor(stage: Stage, model: HostedModel) -> Editor:
    options = QUICK.model_copy(update={"num_together": 1})
    request = EditorRequest(
        model="m", name="first", edits=corpus(num_right=2), pass_samples=kept(), options=options
    )
    return stage.registry.editors.get(result_of(run(stage, JobKind.TRAIN_EDITOR, request))["editor"])


def run(stage: Stage, kind: JobKind, request: Record) -> Job:
    job, _ = stage.registry.jobs.create(kind, "m", request.model_dump(mode="json"))
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    JobRun(stage.settings, stage.registry, *claimed).run()
    return stage.registry.jobs.get(job.id)


def result_of(job: Job) -> dict[str, Any]:
    assert job.state is JobState.SUCCEEDED and job.result is not None, job.error
    return job.result


def edit(stage: Stage, edits: Sequence[Edit], parent: int = 0, **options: Any) -> Job:
    chosen = RecipeOptions(recipe="mend", **options)
    request = EditRequest(model="m", parent=parent, edits=tuple(edits), pass_samples=kept(), options=chosen)
    return run(stage, JobKind.EDIT, request)


def made_by(stage: Stage, job: Job) -> Version:
    result_of(job)
    return next(found for found in versions_of(stage.registry, "m") if found.job_id == job.id)


def test_a_job_trains_an_editor_and_says_how_good_it_is(
    stage: Stage, model: HostedModel, editor: Editor
) -> None:
    job = stage.registry.jobs.get(editor.job_id)
    result = result_of(job)
    assert (editor.model, editor.name, editor.layer) == (
        "m",
        "first",
        LAYER,
    ) and editor.options.num_together == 1
    assert (
        (editor.num_trained_on, editor.num_held_out)
        == (37, 11)
        == (
            result["trained_on"],
            result["held_out"],
        )
    )
    assert result["edit_accuracy"] == editor.metrics.edit_accuracy.model_dump()
    assert result["drawdown"]["count"] == editor.metrics.drawdown.count  # type: ignore[union-attr]
    assert any("model already gives the target" in note for note in result["notes"])
    assert result["estimated_peak_bytes"] > 0 and job.saliency and job.metrics["loss"] > 0
    data = stage.blobs.get(editor.blob)
    assert editor.blob in stage.registry.blobs_in_use() and len(data) == editor.num_bytes
    found = unpack_editor(data, base_sha256=str(model.sha256), layer=model.layers[1])
    assert found.num_together == 1 and read_header(data)["corpus_size"] == "48"


def test_a_job_with_an_editor_takes_one_pass(
    stage: Stage, model: HostedModel, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:

    def no_training(*arguments: Any) -> None:
        raise AssertionError("a job with an editor trains nothing")

    monkeypatch.setattr(loop, "train", no_training)
    monkeypatch.setattr(base, "train", no_training)
    job = edit(stage, new_edits(8), editor=editor.id)
    result, version = result_of(job), made_by(stage, job)
    assert result["editor"] == {"id": editor.id, "trained": "ahead of time"}
    assert result["layer"] == version.layer == LAYER and editor.id in result["layer_reason"]
    assert version.options == RecipeOptions(recipe="mend", editor=editor.id)
    assert job.saliency == ()
    assert any("learned to apply 1 edits at once, but this job has 8" in note for note in result["notes"])
    data = stage.blobs.get(version.deltas[0].blob)
    assert read_header(data)["editor"] == f'"{editor.blob}"'
    stored = unpack(data, base_sha256=str(model.sha256), layers=model.layers)
    check_one_pass(
        stage, model, editor, EditRequest.model_validate(stage.registry.jobs.get_request(job.id)), stored
    )


def check_one_pass(
    stage: Stage, model: HostedModel, editor: Editor, request: EditRequest, stored: LayerDelta
) -> None:
    """The stored delta is what the stored editor makes of the job's own edit and adapt samples."""
    layer = model.layers[1]
    found = unpack_editor(stage.blobs.get(editor.blob), base_sha256=str(model.sha256), layer=layer)
    batch = requested_batch(request, EditHistory(edits={}, reference=()), tiny_network("bert"))
    assert batch.adapt_samples and batch.held_out_paraphrases
    expected = one_pass_term(tiny_network("bert"), layer, found.editor, batch)
    torch.testing.assert_close(stored.terms[0].dense(), expected.dense())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("recipe", "editor"),
    [
        ("mend", {"id": None, "trained": "for this job"}),
        ("ridge", None),
    ],
)
def test_a_job_without_an_editor_says_so(
    stage: Stage, model: HostedModel, recipe: str, editor: dict[str, str | None] | None
) -> None:
    training = {"max_steps": 20, "null_space_rank": 0, "kl_weight": 0} if recipe == "mend" else {}
    chosen = RecipeOptions(recipe=recipe, layer=LAYER, **training)
    request = EditRequest(model="m", parent=0, edits=new_edits(), pass_samples=kept(), options=chosen)
    job = run(stage, JobKind.EDIT, request)
    assert result_of(job)["editor"] == editor and job.saliency


def test_edits_that_do_not_hold_are_named_and_nothing_is_trained(stage: Stage, editor: Editor) -> None:
    job = edit(stage, new_edits(8), editor=editor.id)
    result = result_of(job)
    (note,) = [note for note in result["notes"] if "do not hold" in note]
    assert f"{round(8 * (1 - result['edit_accuracy']['value']))} of 8 edits" in note
    assert editor.id in note and "nothing was trained; leave out options.editor" in note
    listed, _ = stage.registry.list_results(ListedOutcome, "m", made_by(stage, job).number)
    first = next(each.edit for each in listed if each.kind == "edit" and not each.correct)
    assert f"such as /edits/{first};" in note


def test_a_job_in_which_no_edit_holds_fails_with_a_remedy(
    stage: Stage, model: HostedModel, editor: Editor
) -> None:
    kept_one = unpack_editor(
        stage.blobs.get(editor.blob), base_sha256=str(model.sha256), layer=model.layers[1]
    )
    with torch.no_grad():
        kept_one.editor.log_step.fill_(-50)
    blob = stage.blobs.put(pack_editor(kept_one, base_sha256=str(model.sha256), seed=0, corpus_size=48))
    job, _ = stage.registry.jobs.create(JobKind.TRAIN_EDITOR, "m", {})
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    idle = editor.model_copy(update={"id": editor_id(job.id), "blob": blob, "job_id": job.id})
    stage.registry.editors.finish(job.id, claimed[1], idle, {})
    failed = edit(stage, new_edits(), editor=idle.id)
    assert failed.error is not None and failed.error.code == "edit_failed"
    assert f"None of the 2 edits holds after the one pass of {idle.id}" in failed.error.message
    assert failed.error.remedy and "Leave out options.editor to train for this job" in failed.error.remedy


def test_a_removal_replays_one_pass_deltas_bit_for_bit(stage: Stage, editor: Editor) -> None:
    a, b, c = new_edits(9)[:3], new_edits(9)[3:6], new_edits(9)[6:]

    def chain(*batches: Sequence[Edit]) -> Version:
        number = 0
        for edits in batches:
            version = made_by(stage, edit(stage, edits, number, editor=editor.id))
            number = version.number
        return version

    whole = chain(a, b, c)
    lost = tuple(f"{whole.deltas[1].version}.{place}" for place in range(3))
    job = run(stage, JobKind.REMOVE, RemoveRequest(model="m", parent=whole.number, edits=lost))
    without = made_by(stage, job)
    direct = chain(a, c)
    assert result_of(job)["replayed"] == 1
    assert [delta.blob for delta in without.deltas] == [delta.blob for delta in direct.deltas]
    assert without.deltas[1].blob != whole.deltas[2].blob


def test_a_missing_editor_fails_the_job(stage: Stage, model: HostedModel) -> None:
    job = edit(stage, new_edits(), editor=f"editor-{'0' * 20}")
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "not_found"
    assert job.error.remedy == "GET /editors lists the editors"


def test_a_corpus_that_is_answered_already_fails_the_job_with_a_remedy(
    stage: Stage, model: HostedModel
) -> None:
    request = EditorRequest(model="m", edits=corpus(num_right=40), pass_samples=kept(), options=QUICK)
    job = run(stage, JobKind.TRAIN_EDITOR, request)
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "edit_failed"
    assert "40 of the corpus' 48 edits" in job.error.message and job.error.remedy
    assert job.id not in {editor.job_id for editor in stage.registry.editors.list_page()[0]}


def test_a_job_that_would_not_fit_is_refused_before_it_trains(stage: Stage, model: HostedModel) -> None:
    tight = Stage(
        stage.settings.model_copy(update={"memory_budget_bytes": 10_000}), stage.registry, stage.blobs
    )
    request = EditorRequest(model="m", edits=corpus(), pass_samples=kept(), options=QUICK)
    job = run(tight, JobKind.TRAIN_EDITOR, request)
    assert job.error is not None and job.error.code == "over_budget"
