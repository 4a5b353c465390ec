"""Edit jobs on a tiny model: neighbors are measured, checked, listed, and can refuse a version."""

from __future__ import annotations

from typing import Any

import pytest
from api_service import Stage
from labeled_texts import TEXTS, other_label
from registry_records import versions_of
from tiny_models import tiny_network

from salem.inference.predict import predict
from salem.records import (
    Edit,
    EditRequest,
    GivenNeighbor,
    HostedModel,
    Job,
    JobKind,
    JobState,
    ListedBrokenNeighbor,
    RecipeOptions,
    RemoveRequest,
    Requirements,
    Sample,
    TextInput,
)
from salem.settings import Settings
from salem.storage.registry import Registry
from worker.runtime.work_horse import JobRun

LAYER = "bert.encoder.layer.1.output.dense"
BREAKING = RecipeOptions(recipe="ridge", layer=LAYER)
EDITED, NEAR = TEXTS[20], TEXTS[21:24]


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings.model_copy(update={"device": "cpu"}), registry)


@pytest.fixture
def model(stage: Stage) -> HostedModel:
    return stage.host("m", "bert")


def run(stage: Stage, request: EditRequest | RemoveRequest) -> Job:
    kind = JobKind(request.kind)
    job, _ = stage.registry.jobs.create(kind, "m", request.model_dump(mode="json"))
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    JobRun(stage.settings, stage.registry, *claimed).run()
    return stage.registry.jobs.get(job.id)


def answers(*texts: str) -> list[str]:
    return [answer.output for answer in predict(tiny_network("bert"), [TextInput(input=t) for t in texts])]


def request(**more: Any) -> EditRequest:
    """A request to change a label, with the model's own answers to some other texts as pass samples."""
    (label,) = answers(EDITED)
    target = next(each for each in tiny_network("bert").labels if each not in (label, *answers(*NEAR)))
    edit = Edit(input=EDITED, target=target, neighbors=tuple(GivenNeighbor(input=text) for text in NEAR))
    kept = zip(TEXTS[40:80], answers(*TEXTS[40:80]), strict=True)
    return EditRequest(
        model="m",
        parent=0,
        edits=(edit,),
        pass_samples=tuple(Sample(input=text, target=answer) for text, answer in kept),
        options=BREAKING,
    ).model_copy(update=more)


def result_of(job: Job) -> dict[str, Any]:
    assert job.state is JobState.SUCCEEDED and job.result is not None, job.error
    return job.result


def test_a_version_lists_the_neighbors_that_it_breaks(stage: Stage, model: HostedModel) -> None:
    result = result_of(run(stage, request()))
    (version,) = versions_of(stage.registry, "m")
    broken, _ = stage.registry.list_results(ListedBrokenNeighbor, "m", 1)
    assert version.metrics is not None and version.metrics.neighborhood is not None
    share = version.metrics.neighborhood
    assert result["neighborhood"] == share.model_dump()
    assert broken and round((1 - share.value) * share.count) == sum(each.held_out for each in broken)
    assert all(each.before != each.after for each in broken)
    assert [each.before for each in broken] == answers(*(each.input for each in broken))
    assert {each.origin for each in broken} <= {"client", "reference", "rule"}
    assert any("changed their answer, such as" in note for note in result["notes"])
    assert any(note.startswith("drawdown rests on only") for note in result["notes"])

    removal = RemoveRequest(model="m", parent=1, edits=("1.0",))
    assert result_of(run(stage, removal))["neighborhood"] is None, "no edit remains"


def test_a_removal_measures_the_neighbors_of_the_remaining_edits(stage: Stage, model: HostedModel) -> None:
    first = request()
    (label,) = answers(TEXTS[60])
    other = Edit(input=TEXTS[60], target=other_label(label))
    both = first.model_copy(update={"edits": (*first.edits, other)})
    result_of(run(stage, both))
    removed = result_of(run(stage, RemoveRequest(model="m", parent=1, edits=("1.1",))))
    alone = result_of(run(stage, first))
    assert removed["neighborhood"]["count"] > 0
    assert removed["neighborhood"]["value"] == pytest.approx(alone["neighborhood"]["value"], abs=0.3)
    listed, _ = stage.registry.list_results(ListedBrokenNeighbor, "m", 2)
    assert all(each.edit == 0 and each.held_out for each in listed)


def test_a_version_that_breaks_more_neighbors_than_allowed_is_refused(
    stage: Stage, model: HostedModel
) -> None:
    refused = run(stage, request(require=Requirements(min_neighborhood=1.0, max_drawdown=1.0)))
    assert refused.error is not None and refused.error.code == "requirement_missed"
    assert "below require.min_neighborhood 1." in refused.error.message
    assert "drawdown" not in refused.error.message
    assert refused.error.remedy is not None and "changed their answer" in refused.error.remedy
    assert list(versions_of(stage.registry, "m")) == []
    passed = run(stage, request(require=Requirements(min_neighborhood=0.0)))
    assert result_of(passed)["version"] == "m:1"


def test_a_required_figure_that_was_not_measured_refuses_the_version(
    stage: Stage, model: HostedModel
) -> None:
    given = request().pass_samples
    assert given is not None
    job = run(stage, request(pass_samples=given[:0], require=Requirements(max_drawdown=0.5)))
    assert job.error is not None
    assert job.error.message == (
        "No version was made: drawdown was not measured, but require.max_drawdown is 0.5."
    )


def test_a_neighbor_that_already_gets_the_target_is_refused(stage: Stage, model: HostedModel) -> None:
    (label,) = answers(NEAR[1])
    (edit,) = request().edits
    job = run(stage, request(edits=(edit.model_copy(update={"target": label}),)))
    assert job.error is not None and job.error.code == "invalid_request"
    assert f'/edits/0/neighbors/1: "{NEAR[1]}" is already answered with "{label}"' in job.error.message
    assert job.error.remedy is not None and "paraphrases" in job.error.remedy
