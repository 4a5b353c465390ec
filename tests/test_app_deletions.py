"""Deletions over HTTP: what is gone, what is refused, and which files leave the disk."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from api_service import Stage, serving
from test_app_api import problem

from salem.records import JobKind
from salem.settings import Settings
from salem.storage.registry import Registry

SECRET = "the secret sentence"


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


@pytest.fixture
def client(settings: Settings, registry: Registry) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


def test_a_version_and_its_job_are_deleted_with_their_files(client: httpx.Client, stage: Stage) -> None:
    model = stage.host("intents", "bert")
    request = {"parent": 0, "edits": [{"input": SECRET, "target": "a"}]}
    job, _ = stage.registry.jobs.create(JobKind.EDIT, "intents", request)
    version = stage.publish(model, job=job)
    client.put("/models/intents/aliases/live", json={"version": 1})
    refused = problem(client.delete("/models/intents/versions/1"), 409, "conflict")
    assert refused["detail"] == "version intents:1 is still needed by alias intents@live"
    assert client.delete("/models/intents/aliases/live").status_code == 204
    refused = problem(client.delete(f"/jobs/{job.id}"), 409, "conflict")
    assert refused["detail"] == f"job {job.id} is still needed by version intents:1"
    deleted = client.delete("/models/intents/versions/1")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert not stage.blobs.exists(version.deltas[0].blob)
    assert client.delete(f"/jobs/{job.id}").status_code == 204
    for path in ("/models/intents/versions/1", f"/jobs/{job.id}", f"/jobs/{job.id}/request"):
        problem(client.get(path), 404, "not_found")
        problem(client.delete(path.removesuffix("/request")), 404, "not_found")


def test_a_model_is_deleted_with_its_reference_set(client: httpx.Client, stage: Stage) -> None:
    stage.host("kept", "bert")
    stage.publish(stage.host("intents", "bert"))
    refused = problem(client.delete("/models/intents"), 409, "conflict")
    assert refused["detail"] == "model intents is still needed by 1 version"
    assert refused["remedy"] == "DELETE /models/intents?cascade=true deletes them too"
    assert client.delete("/models/intents", params={"cascade": True}).status_code == 204
    problem(client.get("/models/intents"), 404, "not_found")
    assert [model["name"] for model in client.get("/models").json()["data"]] == ["kept"]
    assert {digest for digest, _ in stage.blobs.digests()} == stage.registry.blobs_in_use() != set()
    problem(client.delete("/models/intents"), 404, "not_found")
    problem(client.delete(f"/editors/editor-{'0' * 20}"), 404, "not_found")


def test_files_stay_while_a_job_runs(client: httpx.Client, stage: Stage) -> None:
    """The job may have stored a file with the same content, which no row names yet."""
    model = stage.host("intents", "bert")
    version = stage.publish(model)
    running, _ = stage.registry.jobs.create(JobKind.EDIT, "intents", {"parent": 0})
    assert stage.registry.jobs.claim(running.id, 60) is not None
    assert client.delete("/models/intents/versions/1").status_code == 204
    assert stage.blobs.exists(version.deltas[0].blob)
    stage.registry.jobs.cancel(running.id)


def test_lists_come_in_pages(client: httpx.Client, stage: Stage) -> None:
    model = stage.host("intents", "bert")
    for seed in range(3):
        stage.publish(model, seed=seed)
    for name in ("a", "b", "c"):
        client.put(f"/models/intents/aliases/{name}", json={"version": 1})
    client.put("/models/intents/aliases/a", json={"version": 2})
    for path, field, items in (
        ("/models", "name", ["intents"]),
        ("/models/intents/versions", "number", [3, 2, 1]),
        ("/models/intents/aliases", "name", ["a", "b", "c"]),
        ("/models/intents/aliases/a/history", "version", [2, 1]),
        ("/models/intents/versions/1/outcomes", "position", []),
        ("/models/intents/versions/1/flips", "position", []),
        ("/models/intents/versions/1/broken-neighbors", "position", []),
        ("/editors", "id", []),
    ):
        cursor = "id" if path.endswith("history") else field
        found: list[object] = []
        after: object = None
        more = True
        while more:
            query = {"limit": 2} if after is None else {"limit": 2, "after": str(after)}
            page = client.get(path, params=query).json()
            found += [item[field] for item in page["data"]]
            more = page["has_more"]
            after = page["data"][-1][cursor] if page["data"] else None
        assert found == items, path
    assert client.get("/models/intents/versions/9/outcomes").status_code == 404
    assert client.get("/models", params={"limit": 0}).status_code == 422
