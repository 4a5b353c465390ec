"""Removal jobs on tiny models: each makes the version that there would be without the removed edits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from api_service import Stage
from labeled_texts import TEXTS, other_label
from registry_records import versions_of
from tiny_models import tiny_network

from app.serving.engine import match_of
from salem.deltas.terms import LayerDelta
from salem.inference.predict import predict
from salem.models.tensor_files import read_header
from salem.records import (
    Edit,
    EditRequest,
    HostedModel,
    Job,
    JobKind,
    JobState,
    Metrics,
    RecipeOptions,
    RemoveRequest,
    Sample,
    TextInput,
    Version,
)
from salem.settings import Settings
from salem.storage.registry import Registry
from worker.attempts.attempt import Attempt
from worker.evaluation.metrics import evaluate
from worker.pipeline import measure
from worker.pipeline.history import EditHistory
from worker.runtime.work_horse import JobRun

LAYER = "bert.encoder.layer.1.output.dense"
OPTIONS = {
    "scoped": RecipeOptions(recipe="scoped", layer=LAYER, max_steps=30, kl_weight=0),
    "mend": RecipeOptions(
        recipe="mend", layer=LAYER, max_steps=20, null_space_rank=4, learning_rate=0.05, kl_weight=0.1
    ),
}
NUM_KEPT = 40
ASKED = [TextInput(input=text) for text in TEXTS]
A, B, C, D = TEXTS[0:2], TEXTS[20:22], TEXTS[40:42], TEXTS[60:62]


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings.model_copy(update={"device": "cpu"}), registry)


@pytest.fixture
def model(stage: Stage) -> HostedModel:
    return stage.host("m", "bert")


def run(stage: Stage, kind: JobKind, request: EditRequest | RemoveRequest) -> Job:
    job, _ = stage.registry.jobs.create(kind, request.model, request.model_dump(mode="json"))
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    JobRun(stage.settings, stage.registry, *claimed).run()
    return stage.registry.jobs.get(job.id)


def made_by(stage: Stage, job: Job) -> Version:
    assert job.state is JobState.SUCCEEDED, job.error
    return next(found for found in versions_of(stage.registry, job.model) if found.job_id == job.id)


def corrected(texts: Sequence[str], recipe: str, parent: int) -> EditRequest:
    """A request to change the labels of texts, with the model's other answers as pass samples."""
    inputs = [TextInput(input=text) for text in texts]
    labels = [answer.output for answer in predict(tiny_network("bert"), inputs)]
    edits = [
        Edit(input=text, target=other_label(label), paraphrases=(f"{text} please", f"well {text}"))
        for text, label in zip(texts, labels, strict=True)
    ]
    kept = [
        Sample(input=text.input, target=answer.output)
        for text, answer in zip(ASKED, predict(tiny_network("bert"), ASKED), strict=True)
        if text.input not in (*A, *B, *C, *D)
    ]
    return EditRequest(
        model="m",
        parent=parent,
        edits=tuple(edits),
        pass_samples=tuple(kept[:NUM_KEPT]),
        options=OPTIONS[recipe],
    )


def chain(stage: Stage, *jobs: tuple[Sequence[str], str]) -> Version:
    """Make a version for each job, one on top of the other; returns the last."""
    number = 0
    for texts, recipe in jobs:
        version = made_by(stage, run(stage, JobKind.EDIT, corrected(texts, recipe, number)))
        number = version.number
    return version


def remove(stage: Stage, version: Version, *edits: str, **more: Any) -> tuple[Version, Job]:
    request = RemoveRequest(model="m", parent=version.number, edits=edits, **more)
    job = run(stage, JobKind.REMOVE, request)
    return made_by(stage, job), job


def content(stage: Stage, version: Version) -> list[str]:
    return [read_header(stage.blobs.get(delta.blob))["content_sha256"] for delta in version.deltas]


def applied(stage: Stage, model: HostedModel, version: Version) -> list[LayerDelta]:
    job, _ = stage.registry.jobs.list_page(limit=1)
    attempt = Attempt(stage.settings, stage.registry, stage.blobs, job[0], "no lease")
    return [attempt.stored(delta, model) for delta in version.deltas]


def ids(stage: Stage, version: Version) -> list[str]:
    return [entry.id for entry in stage.registry.entries.list_page(version)[0]]


def test_remaining_edits_are_replayed_even_if_none_holds(
    stage: Stage, model: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chain(stage, (A, "mend"))

    def failing(*arguments: Any, **more: Any) -> Metrics:
        found = evaluate(*arguments, **more)
        lost = found.edit_accuracy.model_copy(update={"value": 0.0})
        return found.model_copy(update={"edit_accuracy": lost})

    monkeypatch.setattr(measure, "evaluate", failing)
    left, job = remove(stage, whole, "1.0")
    assert job.result is not None and not any("no pass samples" in note for note in job.result["notes"])
    assert [delta.removed for delta in left.deltas] == [(0,)]
    refused = run(stage, JobKind.EDIT, corrected(B, "mend", whole.number))
    assert refused.error is not None and refused.error.code == "edit_failed"


def test_a_plain_chain_is_replayed_bit_for_bit(stage: Stage, model: HostedModel) -> None:
    recipe = "mend"
    whole = chain(stage, (A, recipe), (B, recipe), (C, recipe), (D, recipe))
    without, job = remove(stage, whole, "2.0", "2.1", alias="production")
    direct = chain(stage, (A, recipe), (C, recipe), (D, recipe))
    assert content(stage, without) == content(stage, direct) != content(stage, whole)[:3]
    assert [delta.blob for delta in without.deltas] == [delta.blob for delta in direct.deltas]
    assert [(delta.version, delta.made_in) for delta in without.deltas] == [(1, 1), (3, 5), (4, 5)]
    assert without.parent == whole.number and without.job_id == job.id
    assert job.result is not None and job.result["version"] == "m:5" and job.result["replayed"] == 2
    assert job.result["edits_left"] == 6 and without.metrics is not None
    assert without.metrics.edit_accuracy.count == 6
    assert stage.registry.list_aliases("m")[0][0].version == without.number
    assert ids(stage, without) == []


def test_a_removal_that_trains_estimates_its_memory_and_is_refused_over_budget(
    stage: Stage, model: HostedModel
) -> None:
    whole = chain(stage, (A, "mend"), (B, "mend"))
    before = sorted(Path(stage.settings.effective_blob_url).rglob("*"))
    poor = Stage.of(stage.settings.model_copy(update={"memory_budget_bytes": 1_000}), stage.registry)
    job = run(poor, JobKind.REMOVE, RemoveRequest(model="m", parent=whole.number, edits=("1.1",)))
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "over_budget"
    assert sorted(Path(stage.settings.effective_blob_url).rglob("*")) == before, "nothing is left behind"
    _, job = remove(stage, whole, "1.1")
    assert job.result is not None and job.result["estimated_peak_bytes"] > 1_000
    scoped = chain(stage, (A, "scoped"))
    _, job = remove(poor, scoped, f"{scoped.number}.1")
    assert job.result is not None and job.result["estimated_peak_bytes"] is None, "it trains nothing"


def test_a_plain_job_without_one_of_its_edits_is_trained_on_the_rest(
    stage: Stage, model: HostedModel
) -> None:
    whole = chain(stage, (A, "mend"), (B, "mend"))
    without, _ = remove(stage, whole, "1.1")
    direct = chain(stage, (A[:1], "mend"), (B, "mend"))
    assert content(stage, without) == content(stage, direct)
    # and once more, from what was replayed: ids stay those of the first time
    assert [delta.removed for delta in without.deltas] == [(1,), ()]
    again, _ = remove(stage, without, "1.0")
    assert content(stage, again) == content(stage, chain(stage, (B, "mend")))


def test_a_replay_reads_the_cache_of_earlier_jobs(stage: Stage, model: HostedModel) -> None:
    direct = chain(stage, (A[:1], "mend"))
    folder = stage.settings.trunk_cache_folder
    entries = sorted(folder.iterdir())
    whole = chain(stage, (A, "mend"))
    for path in entries:
        os.utime(path, (1, 1))
    everything = sorted(folder.iterdir())
    without, _ = remove(stage, whole, "2.1")
    assert entries and all(path.stat().st_mtime > 1 for path in entries), "an entry was not read"
    assert sorted(folder.iterdir()) == everything
    assert content(stage, without) == content(stage, direct)


def test_a_scoped_delta_without_edits_is_dropped_from_the_chain(stage: Stage, model: HostedModel) -> None:
    whole = chain(stage, (A, "scoped"), (B, "scoped"), (C, "scoped"))
    without, job = remove(stage, whole, "2.1", "2.0")
    assert without.deltas == (whole.deltas[0], whole.deltas[2])
    assert ids(stage, without) == ["1.0", "1.1", "3.0", "3.1"]
    assert job.result is not None and job.result["replayed"] == 0
    assert without.metrics is not None and without.metrics.drawdown is not None
    assert without.metrics.edit_accuracy.count == 4 and without.metrics.drawdown.count > 10


def test_one_entry_is_removed_and_the_others_answer_as_before(stage: Stage, model: HostedModel) -> None:
    whole = chain(stage, (A, "scoped"), (B, "scoped"))
    listed = stage.registry.entries.list_page(whole)[0]
    assert [entry.id for entry in listed] == ["1.0", "1.1", "2.0", "2.1"]
    assert [key.text for key in listed[2].keys][:1] == [B[0]] and len(listed[2].keys) == 2
    without, _ = remove(stage, whole, "2.0")
    assert ids(stage, without) == ["1.0", "1.1", "2.1"] and len(ids(stage, whole)) == 4
    assert without.deltas[0] == whole.deltas[0]
    old, cut = (applied(stage, model, version)[1].scoped for version in (whole, without))
    assert old and cut
    owned = old.scope.owners == 1
    assert torch.equal(cut.scope.keys, old.scope.keys[owned])
    assert torch.equal(cut.scope.radii, old.scope.radii[owned])
    for name in ("values", "down", "up"):
        assert torch.equal(vars(cut)[name], vars(old)[name][1:])
    header = read_header(stage.blobs.get(without.deltas[1].blob))
    assert header["removed"] == "[0]" and header["metrics"] == "null" and header["method"] == '"scoped"'
    check_answers(stage, model, whole, without, "2.0")
    # a second removal counts places from the first
    last, _ = remove(stage, without, "1.0", "2.1")
    assert ids(stage, last) == ["1.1"] and [delta.removed for delta in last.deltas] == [(0,)]
    assert last.metrics is not None and last.metrics.edit_accuracy.count == 1


def check_answers(stage: Stage, model: HostedModel, whole: Version, without: Version, removed: str) -> None:
    """Answers change only where the removed entry fired."""
    network = tiny_network("bert")
    before, after = (predict(network, ASKED, applied(stage, model, version)) for version in (whole, without))
    fired = [match_of(whole.deltas, answer.match) for answer in before]
    fires = [match_of(without.deltas, answer.match) for answer in after]
    elsewhere = [row for row, each in enumerate(fired) if each is None or each.edit_id != removed]
    assert 0 < len(elsewhere) < len(ASKED)
    for row in elsewhere:
        assert (fired[row] and fired[row].edit_id) == (fires[row] and fires[row].edit_id)
        assert (before[row].output, before[row].scores) == (after[row].output, after[row].scores)
    base = predict(network, ASKED)
    assert removed not in {each.edit_id for each in fires if each}
    bare = [row for row in range(len(ASKED)) if fired[row] and not fires[row]]
    assert bare and [after[row] for row in bare] == [base[row] for row in bare]
    assert all(before[row] != base[row] for row in bare)
    assert any(each is not None and each.edit_id.startswith("1.") for each in fires)


def test_a_replayed_job_leaves_out_paraphrases_that_jobs_below_trained_on(
    stage: Stage, model: HostedModel
) -> None:
    """Otherwise its metrics, and so its file, would differ from those of the direct chain."""
    both = corrected(B, "mend", 0)
    first = both.edits[0]
    held = min(first.paraphrase_samples, key=lambda sample: sample.words_hash).input
    alone = both.model_copy(update={"edits": (first.model_copy(update={"paraphrases": (held,)}),)})

    def onto(parent: int) -> Version:
        for request in (alone, both):
            asked = request.model_copy(update={"parent": parent})
            version = made_by(stage, run(stage, JobKind.EDIT, asked))
            parent = version.number
        assert version.metrics is not None and version.metrics.generalization is not None
        assert version.metrics.generalization.count == 1
        return version

    whole = onto(chain(stage, (A, "mend")).number)
    without, _ = remove(stage, whole, "1.0", "1.1")
    assert [delta.blob for delta in without.deltas] == [delta.blob for delta in onto(0).deltas]


def test_paraphrases_that_the_metric_may_know_are_not_measured_in_other_jobs(
    stage: Stage, model: HostedModel
) -> None:
    """Neither job is in the other's chain."""
    first = made_by(stage, run(stage, JobKind.EDIT, corrected(A, "scoped", 0)))
    assert first.metrics is not None and first.metrics.generalization is not None
    request = corrected(A, "scoped", 0)
    trained_on = [
        max(edit.paraphrase_samples, key=lambda sample: sample.words_hash).input for edit in request.edits
    ]
    other = tuple(
        edit.model_copy(update={"paraphrases": (text, ("zz " * number) + text)})
        for number, (edit, text) in enumerate(zip(request.edits, trained_on, strict=True), start=1)
    )
    seen = [min(e.paraphrase_samples, key=lambda s: s.words_hash).input in trained_on for e in other]
    again = made_by(stage, run(stage, JobKind.EDIT, request.model_copy(update={"edits": other})))
    assert any(seen) and again.metrics is not None
    count = again.metrics.generalization.count if again.metrics.generalization else 0
    assert count == seen.count(False)
    unmeasured = any("earlier jobs were trained on all 2" in note for note in again.metrics.notes)
    assert unmeasured is (count == 0)
    left, _ = remove(stage, again, f"{again.number}.{1 - seen.index(True)}")
    assert left.metrics is not None and left.metrics.generalization is None, "nor does it after a removal"
    assert any("earlier jobs were trained on all 1" in note for note in left.metrics.notes)


@pytest.fixture
def fresh(settings: Settings, tmp_path: Path) -> Iterator[Stage]:
    """Another home with the same model and no jobs."""
    elsewhere = Settings(**settings.model_dump() | {"home": tmp_path / "other", "device": "cpu"})
    registry = Registry.connect(elsewhere.effective_database_url)
    registry.migrate()
    stage = Stage.of(elsewhere, registry)
    stage.host("m", "bert")
    yield stage
    registry.close()


def test_deltas_above_a_changed_plain_delta_are_trained_again(
    stage: Stage, model: HostedModel, fresh: Stage
) -> None:
    whole = chain(stage, (A, "mend"), (B, "scoped"))
    assert stage.registry.get_model("m").scope_metric == whole.deltas[1].metric
    without, _ = remove(stage, whole, "1.0", "1.1", "2.1")
    assert ids(stage, without) == ["2.0"]
    assert without.deltas[0].made_in == without.number
    # the first job of the other home: the metric is trained without what was removed, too
    direct = chain(fresh, (B[:1], "scoped"))
    assert content(stage, without) == content(fresh, direct)
    assert without.deltas[0].metric == direct.deltas[0].metric != whole.deltas[1].metric
    assert stage.registry.get_model("m").scope_metric == without.deltas[0].metric


def test_a_retrained_metric_is_used_by_the_jobs_above(stage: Stage, model: HostedModel, fresh: Stage) -> None:
    """The later jobs used the metric of the first job, which was trained on an edit that is now removed."""
    whole = chain(stage, (A, "mend"), (B, "scoped"), (C, "scoped"))
    without, _ = remove(stage, whole, "1.0", "1.1", "2.1")
    direct = chain(fresh, (B[:1], "scoped"), (C, "scoped"))
    assert content(stage, without) == content(fresh, direct)
    assert [each.metric for each in without.deltas] == [each.metric for each in direct.deltas]
    old = {delta.metric for delta in whole.deltas}
    assert stage.registry.get_model("m").scope_metric == direct.deltas[1].metric not in old


def test_active_edits_are_listed_by_id(stage: Stage, model: HostedModel) -> None:
    whole = chain(stage, (A, "mend"), (B, "scoped"))
    without, job = remove(stage, whole, "2.0")
    attempt = Attempt(stage.settings, stage.registry, stage.blobs, job, "no lease")
    held = EditHistory.of(attempt, model).active_edits(without)
    assert {name: edit.input for name, edit in held.items()} == {"2.1": B[1], "1.0": A[0], "1.1": A[1]}
    assert list(held) == ["2.1", "1.0", "1.1"], "the newest first"
    requests = stage.registry.entries.edit_requests("m", {1, 2, without.number})
    assert stage.registry.entries.edits("m", {1, 2, without.number}) == {
        n: r.edits for n, r in requests.items()
    }


def test_a_version_without_edits_answers_like_the_base(stage: Stage, model: HostedModel) -> None:
    whole = chain(stage, (A, "scoped"))
    stage.registry.set_alias("m", "production", 0)
    without, job = remove(stage, whole, "1.0", "1.1", alias="production", alias_was=1)
    assert without.deltas == () and without.metrics is None
    assert job.result is not None and "answers like the base" in job.result["notes"][0]
    assert 'alias "production" still names m:0' in job.result["notes"][1], (
        "someone rolled back during the job"
    )


def test_an_attempt_reads_a_metric_once(stage: Stage, model: HostedModel) -> None:
    version = chain(stage, (A, "scoped"))
    (job,), _ = stage.registry.jobs.list_page(limit=1)
    attempt = Attempt(stage.settings, stage.registry, stage.blobs, job, "no lease")
    first, second = (attempt.stored(version.deltas[0], model).scoped for _ in range(2))
    assert first and second and first.scope.metric is second.scope.metric
