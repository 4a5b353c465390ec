"""One attempt of one job on real storage: what it stores, how it fails, and when it is too late."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from api_service import Stage
from labeled_texts import TEXTS, other_label
from registry_records import at_once, versions_of
from rq.timeouts import JobTimeoutException
from scope_readers import reads_states
from tiny_models import build_network, save_tiny, tiny_network

from benchmarks.baselines.salem_recipes import SilentObserver
from salem.deltas.files import unpack
from salem.errors import Conflict, LeaseLost, NotFound, Unavailable
from salem.inference.predict import predict
from salem.models.network import Network
from salem.records import (
    Edit,
    EditRequest,
    FolderSource,
    HostedModel,
    Job,
    JobKind,
    JobState,
    ModelState,
    RecipeOptions,
    Sample,
    Task,
    TextInput,
)
from salem.scope.metric_files import unpack_metric
from salem.settings import Settings
from salem.storage.blobs import BlobStore
from salem.storage.jobs import Jobs
from salem.storage.registry import Registry
from salem.storage.rows import leases as job_leases
from worker.attempts import machine_memory
from worker.attempts import retries as patience
from worker.attempts.reporting import JobReporter
from worker.evaluation.reference import ReferenceAnswers, answer_reference
from worker.jobs import edit as edit_job
from worker.jobs import registration as register_job
from worker.pipeline.context import EditJob
from worker.runtime.work_horse import JobRun


def in_the_middle_of_a_call(error: Exception) -> Unavailable:
    """The error of a store whose call was interrupted, chained to an error of its cleanup."""
    try:
        try:
            raise error
        finally:
            raise OSError("another command is in progress")
    except OSError as other:
        unavailable = Unavailable("the database did not answer in time")
        unavailable.__cause__ = other
        return unavailable


LEASE_S = 30.0
SECRET = "a customer's words in /srv/private"
QUICK = RecipeOptions(
    recipe="mend",
    layer="bert.encoder.layer.2.output.dense",
    max_steps=30,
    kl_weight=0,
    null_space_rank=0,
)


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings.model_copy(update={"device": "cpu"}), registry)


def new_edit_job(stage: Stage) -> Job:
    return ask(stage, stage.host("m", "bert"), QUICK)


def ask(
    stage: Stage,
    model: HostedModel,
    options: RecipeOptions,
    text: str = "my lamp is broken",
    kept: Sequence[Sample] | None = None,
    **more: Any,
) -> Job:
    """A job that edits the base model."""
    edit = Edit(input=text, target=other_label(answers([text])[0]))
    pass_samples = None if kept is None else tuple(kept)
    request = EditRequest(
        model=model.name,
        parent=0,
        edits=(edit,),
        pass_samples=pass_samples,
        options=options,
        **more,
    )
    return stage.registry.jobs.create(JobKind.EDIT, model.name, request.model_dump(mode="json"))[0]


def answers(texts: Sequence[str]) -> list[str]:
    found = predict(tiny_network("bert"), [TextInput(input=text) for text in texts])
    return [answer.output for answer in found]


def attempt(stage: Stage, job: Job, run: type[JobRun] = JobRun) -> JobRun:
    """Claim the job for a new attempt."""
    claimed = stage.registry.jobs.claim(job.id, LEASE_S)
    assert claimed is not None
    return run(stage.settings, stage.registry, *claimed)


def take_over(stage: Stage, job: Job) -> str:
    """Let the lease of the current attempt expire, and give the job to another one."""
    with stage.registry._database.write() as connection:
        lease = connection.exec_driver_sql("SELECT lease FROM jobs WHERE id = ?", (job.id,)).scalar_one()
        job_leases.renew(connection, job.id, lease, -1, job_leases.Progress())
    claimed = stage.registry.jobs.claim(job.id, LEASE_S)
    assert claimed is not None
    return claimed[1]


def test_an_attempt_publishes_one_version_and_ends_the_job(stage: Stage) -> None:
    job = new_edit_job(stage)
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert (ended.state, ended.phase, ended.progress) == (JobState.SUCCEEDED, "done", 1), ended.error
    (version,) = versions_of(stage.registry, "m")
    assert version.job_id == job.id and ended.result is not None
    assert ended.result["version"] == "m:1" and ended.result["delta_sha256"] == version.deltas[0].blob
    assert stage.blobs.exists(version.deltas[0].blob)


def test_an_alias_moves_only_from_where_it_was_at_the_request(stage: Stage) -> None:
    model = stage.host("m", "bert")
    stage.registry.set_alias("m", "production", stage.publish(model).number)
    job = ask(stage, model, QUICK, alias="production", alias_was=1)
    late = ask(stage, model, QUICK, alias="production", alias_was=1)
    for each in (job, late):
        attempt(stage, each).run()
    assert [alias.version for alias in stage.registry.list_aliases("m")[0]] == [2]
    first, second = (stage.registry.jobs.get(each.id).result or {} for each in (job, late))
    assert 'alias "production" moved from m:1 to m:2, which is not built on it' in first["notes"][-1]
    assert 'alias "production" still names m:2' in second["notes"][-1]


def test_an_attempt_that_was_taken_over_before_it_started_changes_nothing(stage: Stage) -> None:
    job = new_edit_job(stage)
    late = attempt(stage, job)
    take_over(stage, job)
    late.run()
    now = stage.registry.jobs.get(job.id)
    assert (now.state, now.attempt, now.phase, now.progress) == (JobState.RUNNING, 2, "loading", 0)
    assert versions_of(stage.registry, "m") == []


def test_an_attempt_that_was_taken_over_at_its_very_end_publishes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_edit_job(stage)

    publish = edit_job.publish

    def late(*arguments: Any, **more: Any) -> None:
        take_over(stage, job)
        publish(*arguments, **more)

    monkeypatch.setattr(edit_job, "publish", late)
    attempt(stage, job).run()
    now = stage.registry.jobs.get(job.id)
    assert (now.state, now.attempt, now.error) == (JobState.RUNNING, 2, None)
    assert versions_of(stage.registry, "m") == []


def test_an_attempt_that_fails_after_it_was_taken_over_does_not_fail_the_job(stage: Stage) -> None:
    job = new_edit_job(stage)

    class Late(JobRun):
        def work(self, reporter: JobReporter) -> None:
            take_over(stage, job)
            raise ValueError(SECRET)

    attempt(stage, job, Late).run()
    assert stage.registry.jobs.get(job.id).state is JobState.RUNNING


def test_only_one_of_two_simultaneous_attempts_publishes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt claims the job while the first is about to commit; both run to the end."""
    job = new_edit_job(stage)
    results: list[type] = []
    publish = edit_job.publish

    def slow(first: EditJob, phase_seconds: dict[str, float]) -> None:
        newer = replace(first.attempt, lease=take_over(stage, job))
        second = replace(first, attempt=newer, observer=SilentObserver())
        commits = [partial(publish, each, phase_seconds) for each in (first, second)]
        results.extend(type(each) for each in at_once(*commits))

    monkeypatch.setattr(edit_job, "publish", slow)
    attempt(stage, job).run()
    assert results == [LeaseLost, type(None)]
    assert [version.job_id for version in versions_of(stage.registry, "m")] == [job.id]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RuntimeError(SECRET), "internal"),
        (MemoryError(SECRET), "out_of_memory"),
        (RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {SECRET}"), "out_of_memory"),
        (JobTimeoutException(SECRET), "timed_out"),
        (in_the_middle_of_a_call(JobTimeoutException(SECRET)), "timed_out"),
        (NotFound("no such thing", remedy="look elsewhere"), "not_found"),
    ],
)
def test_a_failure_has_a_safe_message_and_its_traceback_is_only_in_the_log(
    stage: Stage, raised: Exception, code: str
) -> None:
    class Failing(JobRun):
        def work(self, reporter: JobReporter) -> None:
            raise raised

    job = new_edit_job(stage)
    with structlog.testing.capture_logs() as lines:
        attempt(stage, job, Failing).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is JobState.FAILED and ended.error is not None
    assert ended.error.code == code and ended.error.remedy
    assert SECRET not in ended.model_dump_json() and "Traceback" not in ended.model_dump_json()
    assert any(line.get("exc_info") for line in lines) == (code in ("internal", "out_of_memory"))
    assert all(line["job_id"] == job.id for line in lines)


BRIEF_S = 0.3


def unavailable(*arguments: Any, **more: Any) -> Any:
    raise Unavailable("the blob store does not answer", remedy="try again shortly")


def next_attempt(stage: Stage, job: Job, run: type[JobRun] = JobRun) -> JobRun | None:
    """Wait for the lease to expire and act as the reconciler; None if no attempt is left."""
    time.sleep(1.5 * BRIEF_S)
    left = [each.id for each in stage.registry.jobs.lost(stage.settings.max_attempts)]
    return attempt(stage, job, run) if job.id in left else None


@pytest.mark.parametrize("call", ["put", "finish_edit"])
def test_a_briefly_unreachable_store_at_the_end_costs_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    store, away = (BlobStore if call == "put" else Registry), [True, True]
    answering = getattr(store, call)

    def answer(*arguments: Any, **more: Any) -> Any:
        return unavailable() if away and away.pop() else answering(*arguments, **more)

    job = new_edit_job(stage)
    monkeypatch.setattr(store, call, answer)
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert (ended.state, ended.attempt, away) == (JobState.SUCCEEDED, 1, [])
    assert len(versions_of(stage.registry, job.model)) == 1


def test_a_call_that_timed_out_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def cut_off() -> None:
        calls.append(1)
        raise in_the_middle_of_a_call(JobTimeoutException())

    with pytest.raises(Unavailable):
        patience.with_retries(cut_off)
    assert len(calls) == 1


def test_a_short_outage_of_the_blob_store_costs_an_attempt_and_not_the_job(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_LIMIT_S", 0.0)
    job, brief = new_edit_job(stage), with_settings(stage, lease_s=BRIEF_S)
    with monkeypatch.context() as outage:
        outage.setattr(BlobStore, "put", unavailable)
        attempt(brief, job).run()
    given_back = stage.registry.jobs.get(job.id)
    assert (given_back.state, given_back.error) == (JobState.RUNNING, None)
    again = next_attempt(brief, job)
    assert again is not None
    again.run()
    ended = stage.registry.jobs.get(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2), ended.error


@pytest.mark.parametrize("recorded", [True, False])
def test_a_permanent_outage_fails_the_job_after_its_last_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    class CutOff(JobRun):
        def work(self, reporter: JobReporter) -> None:
            reporter.phase("writing", 0.9)
            unavailable()

    if not recorded:
        monkeypatch.setattr(Jobs, "fail", unavailable)
    job, brief = new_edit_job(stage), with_settings(stage, lease_s=BRIEF_S, max_attempts=2)
    run: JobRun | None = attempt(brief, job, CutOff)
    while run is not None:
        run.run()
        run = next_attempt(brief, job, CutOff)
    ended = stage.registry.jobs.get(job.id)
    assert (ended.state, ended.attempt) == (JobState.FAILED, 2)
    assert ended.error is not None and ended.error.remedy
    assert (ended.error.code, ended.error.message) == (
        ("unavailable", "the blob store does not answer, in the last of 2 attempts")
        if recorded
        else ("attempts_exhausted", "every attempt of the job was interrupted")
    )


def test_lost_progress_reports_do_not_end_the_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_edit_job(stage)
    monkeypatch.setattr(Jobs, "report", unavailable)
    with structlog.testing.capture_logs() as lines:
        attempt(stage, job).run()
    assert stage.registry.jobs.get(job.id).state is JobState.SUCCEEDED
    assert "lease not renewed" in [line["event"] for line in lines]


def test_a_timeout_during_a_report_ends_the_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **more: object) -> None:
        raise in_the_middle_of_a_call(JobTimeoutException())

    job = new_edit_job(stage)
    monkeypatch.setattr(Jobs, "report", cut_off)
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "timed_out"


@pytest.mark.parametrize("fault", ["auto_map", "pickled"])
def test_a_folder_that_became_unusable_after_the_request_fails_the_registration(
    stage: Stage, fault: str
) -> None:
    folder = save_tiny(stage.settings.effective_models_root / "bad", "bert")
    if fault == "auto_map":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Evil"}}))
    else:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    job = stage.registry.create_model(new_model("bad"), stage.blobs.put(b'{"input":"a","target":"login"}\n'))
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is JobState.FAILED and ended.error is not None
    assert ended.error.code == "unsupported_model" and ended.error.remedy
    assert stage.registry.get_model("bad").state is ModelState.FAILED


def new_model(name: str) -> HostedModel:
    return HostedModel(
        name=name,
        task=Task.SEQUENCE_CLASSIFICATION,
        source=FolderSource(path=name),
        state=ModelState.REGISTERING,
        created_at="2025-03-01T12:00:00Z",
    )


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_files_that_changed_since_they_were_registered_are_not_edited(stage: Stage, file: str) -> None:
    job = new_edit_job(stage)
    changed = stage.settings.effective_models_root / "m" / file
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "model_not_ready"


def test_a_model_is_edited_at_the_layers_that_were_registered(stage: Stage) -> None:
    """Another release may find other layers; a delta made there could not be read."""
    model = stage.host("m", "bert")
    older = model.model_copy(update={"layers": model.layers[:2]})
    of = attempt(stage, ask(stage, model, QUICK)).attempt
    with of.loaded(older) as network, of.loaded(model) as now:
        assert network.layers == model.layers[:2] != now.layers


@pytest.mark.parametrize("what", ["written to", "removed"])
def test_an_edit_makes_no_version_if_the_folder_changes_during_the_job(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder, job = stage.settings.effective_models_root / "m", new_edit_job(stage)

    def edited_late(job: EditJob) -> EditJob:
        if what == "removed":
            shutil.rmtree(folder)
        else:
            (folder / "model.safetensors").touch()
        return job

    monkeypatch.setattr(edit_job, "STEPS", (*edit_job.STEPS, edited_late))
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "model_not_ready"
    assert "changed while they were read" in ended.error.message
    assert not versions_of(stage.registry, "m")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_folder_that_changes_during_registration_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = save_tiny(stage.settings.effective_models_root / "m", "bert")

    def answer_late(network: Network, *arguments: Any) -> ReferenceAnswers:
        (folder / file).touch()
        return answer_reference(network, *arguments)

    monkeypatch.setattr(register_job, "answer_reference", answer_late)
    job = stage.registry.create_model(new_model("m"), stage.blobs.put(b'{"input":"a","target":"login"}\n'))
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.error is not None and ended.error.code == "model_not_ready"
    assert "nothing writes to the model's folder" in str(ended.error.remedy)
    assert stage.registry.get_model("m").state is ModelState.FAILED


def test_a_lease_and_the_time_left_are_renewed_as_long_as_the_reporter_runs(stage: Stage) -> None:
    job = new_edit_job(stage)
    claimed = stage.registry.jobs.claim(job.id, 0.3)
    assert claimed is not None
    with JobReporter(stage.registry, job.id, claimed[1], 0.3) as reporter:
        reporter.phase("training", 0.5)
        first = stage.registry.jobs.get(job.id).time_left_s
        time.sleep(0.7)  # deep in a long call
        assert stage.registry.jobs.claim(job.id, LEASE_S) is None
        later = stage.registry.jobs.get(job.id).time_left_s
    assert first is not None and later is not None and later > first + 0.3
    time.sleep(0.4)
    assert stage.registry.jobs.claim(job.id, LEASE_S) is not None


def test_expected_phases_decide_progress_and_the_time_left(stage: Stage) -> None:
    job = new_edit_job(stage)
    claimed = stage.registry.jobs.claim(job.id, 0.6)
    assert claimed is not None
    with JobReporter(stage.registry, job.id, claimed[1], 0.6) as reporter:
        reporter.phase("loading", 0.02)
        reporter.expect({"loading": 0.1, "training": 10.0, "writing": 5.0})
        reporter.phase("training", 0.2)
        first = stage.registry.jobs.get(job.id)
        time.sleep(1.0)  # deep in a long call
        later = stage.registry.jobs.get(job.id)
        reporter.phase("writing", 0.97)
        last = stage.registry.jobs.get(job.id)
        seconds = reporter.phase_seconds
    assert first.time_left_s == pytest.approx(15, rel=0.1) and first.progress < 0.05
    assert later.time_left_s is not None and first.time_left_s is not None
    assert later.time_left_s < first.time_left_s and later.progress > first.progress
    assert last.progress >= later.progress
    assert seconds["training"] >= 1.0 and set(seconds) == {"loading", "training"}


def test_a_cancelled_attempt_stops_at_its_next_report(stage: Stage) -> None:
    job = new_edit_job(stage)
    claimed = stage.registry.jobs.claim(job.id, LEASE_S)
    assert claimed is not None
    with JobReporter(stage.registry, job.id, claimed[1], LEASE_S) as reporter:
        reporter.phase("training", 0.5)
        running = stage.registry.jobs.get(job.id)
        assert (running.phase, running.progress) == ("training", 0.5) and running.time_left_s is not None
        stage.registry.jobs.cancel(job.id)
        with pytest.raises(Conflict):
            reporter.figures(0.6, {"held": 1.0})


KEPT = TEXTS[:60]
KEEPING = QUICK.model_copy(update={"max_steps": 10, "kl_weight": 0.1, "null_space_rank": 4})


def edited(stage: Stage, model: HostedModel, text: str) -> str:
    """Run an edit job with pass samples, and return the name of its delta's file."""
    kept = [Sample(input=each, target=label) for each, label in zip(KEPT, answers(KEPT), strict=True)]
    job = ask(stage, model, KEEPING, text, kept)
    attempt(stage, job).run()
    assert stage.registry.jobs.get(job.id).state is JobState.SUCCEEDED, stage.registry.jobs.get(job.id).error
    return next(each for each in versions_of(stage.registry, "m") if each.job_id == job.id).deltas[0].blob


def with_settings(stage: Stage, **changed: object) -> Stage:
    return replace(stage, settings=stage.settings.model_copy(update=changed))


def test_a_second_job_uses_the_cache_of_the_first_and_makes_the_same_delta(stage: Stage) -> None:
    model, folder = stage.host("m", "bert"), stage.settings.trunk_cache_folder
    edited(stage, model, "my lamp is broken")
    entries = sorted(folder.iterdir())
    assert len(entries) > 2
    for path in entries:
        os.utime(path, (1, 1))
    with_entries = edited(stage, model, "i want my money")
    assert sorted(folder.iterdir()) == entries
    assert all(path.stat().st_mtime > 1 for path in entries), "an entry was not read"
    shutil.rmtree(folder)
    assert edited(stage, model, "i want my money") == with_entries
    assert sorted(folder.iterdir()) == entries
    assert edited(with_settings(stage, trunk_cache_bytes=0), model, "i want my money") == with_entries


def test_a_streamed_model_is_edited_to_the_same_delta_in_less_memory(stage: Stage) -> None:
    model = stage.host("m", "bert")
    bare = with_settings(stage, trunk_cache_bytes=0)
    whole = edited(bare, model, "my lamp is broken")
    streamed = with_settings(bare, stream_weights=True)
    with attempt(streamed, ask(stage, model, KEEPING)).attempt.loaded(model) as network:
        assert network.streamed is not None
    assert edited(streamed, model, "my lamp is broken") == whole
    results = [job.result or {} for job in stage.registry.jobs.list_page()[0]]
    needs = [each["estimated_peak_bytes"] for each in results if "estimated_peak_bytes" in each]
    assert len(needs) == 2 and min(needs) < max(needs)


def test_a_streamed_model_is_registered_like_any_other_and_can_be_edited(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(stage.settings.effective_models_root / "m", "bert")
    shutil.copytree(*(stage.settings.effective_models_root / name for name in ("m", "whole")))
    samples = [Sample(input=text, target=label) for text, label in zip(KEPT, answers(KEPT), strict=True)]
    reference = stage.blobs.put("".join(f"{sample.model_dump_json()}\n" for sample in samples).encode())
    asked: list[Network] = []

    def answer(network: Network, *arguments: Any) -> ReferenceAnswers:
        asked.append(network)
        return answer_reference(network, *arguments)

    monkeypatch.setattr(register_job, "answer_reference", answer)
    streamed = with_settings(stage, stream_weights=True)
    for way, name in ((streamed, "m"), (stage, "whole")):
        attempt(way, stage.registry.create_model(new_model(name), reference)).run()
    assert [network.streamed is not None for network in asked] == [True, False]
    found, whole = (stage.registry.get_model(name) for name in ("m", "whole"))
    assert found.state is ModelState.READY and found.num_pass_samples == len(KEPT)
    assert found == whole.model_copy(update={"name": "m", "source": found.source})
    edited(streamed, found, "my lamp is broken")


def test_a_cache_limit_of_zero_stores_nothing(stage: Stage) -> None:
    edited(with_settings(stage, trunk_cache_bytes=0), stage.host("m", "bert"), "my lamp is broken")
    assert not stage.settings.trunk_cache_folder.exists()


def test_cache_entries_depend_on_the_weights_their_dtype_and_the_config_files(stage: Stage) -> None:
    of = attempt(stage, ask(stage, stage.host("m", "bert"), QUICK)).attempt

    def name(model: HostedModel, dtype: torch.dtype = torch.float32) -> str:
        network = build_network("bert")
        network.model.to(dtype)
        cache = of.sample_cache(model, network)
        assert cache is not None and cache.max_bytes == stage.settings.trunk_cache_bytes
        return cache.model

    first, twin, other = (
        stage.registry.get_model("m"),
        stage.host("twin", "bert"),
        stage.host("other", "roberta"),
    )
    assert name(first) == name(first) == name(twin)
    assert len({name(first), name(first, torch.bfloat16), name(other)}) == 3
    config = stage.settings.effective_models_root / "twin" / "config.json"
    config.write_text(config.read_text().replace("LABEL", "label").replace("refund", "money back"))
    assert name(twin) != name(first)


def test_a_job_over_the_memory_budget_is_refused_and_leaves_nothing(stage: Stage) -> None:
    job = new_edit_job(stage)
    blobs = Path(stage.settings.effective_blob_url)
    before = sorted(blobs.rglob("*"))
    attempt(with_settings(stage, memory_budget_bytes=1_000), job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is JobState.FAILED and ended.error is not None and ended.error.remedy
    assert ended.error.code == "over_budget"
    assert re.fullmatch(
        r"The job would use about \d+ MiB of memory, .+; the limit is 1 MiB\.", ended.error.message
    )
    assert versions_of(stage.registry, "m") == [] and sorted(blobs.rglob("*")) == before


def test_a_job_that_fits_reports_its_memory_estimate(stage: Stage) -> None:
    job = new_edit_job(stage)
    attempt(with_settings(stage, memory_budget_bytes=2**30), job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is JobState.SUCCEEDED and ended.result is not None, ended.error
    weights = sum(weight.nbytes for weight in tiny_network("bert").model.parameters())
    assert weights < ended.result["estimated_peak_bytes"] < 2**30


@pytest.mark.parametrize(
    ("available", "state", "code"), [(None, JobState.SUCCEEDED, None), (0, JobState.FAILED, "over_budget")]
)
def test_without_a_budget_a_job_may_take_the_available_memory_if_it_is_known(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, available: int | None, state: JobState, code: str | None
) -> None:
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: available)
    monkeypatch.setattr(machine_memory, "resident_bytes", lambda: 1_000)
    job = new_edit_job(stage)
    attempt(stage, job).run()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is state, ended.error
    assert (ended.error and ended.error.code) == code


@pytest.mark.parametrize("text", ["?!", "not", "\N{GRINNING FACE}"])
def test_an_edit_without_words_makes_a_version_that_can_be_edited(stage: Stage, text: str) -> None:
    model = stage.host("m", "bert")
    options = RecipeOptions(recipe="scoped", layer=QUICK.layer, max_steps=20, metric_width=8, trial_edits=0)
    kept = [Sample(input=each, target=label) for each, label in zip(KEPT, answers(KEPT), strict=True)]
    first = ask(stage, model, options, text, kept)
    attempt(stage, first).run()
    (version,) = (v for v in versions_of(stage.registry, "m") if v.job_id == first.id)
    layers = tiny_network("bert").layers
    for delta in version.deltas:
        metric = unpack_metric(stage.blobs.get(str(delta.metric)))
        data = stage.blobs.get(delta.blob)
        found = unpack(data, base_sha256=str(model.sha256), layers=layers, readers=reads_states(metric))
        assert found.scoped is not None and found.scoped.scope.lexical_weights.any()
