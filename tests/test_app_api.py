"""The API over real HTTP, with real SQL, Redis, blobs and a tiny model. There is no worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import Stage, request_of, serving
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr, ValidationError
from tiny_models import LABELS, save_tiny

from app.api.problems import from_validation_error, invalid_request
from app.api.schemas import EditorIn, EditsIn, PredictIn
from app.main import create_app
from salem.errors import MAX_PLACES, Misconfigured, Pointer
from salem.models import loading
from salem.models.folders import weights_sha256
from salem.queue.job_queue import JobQueue
from salem.records import MAX_ITEMS, HostedModel, JobKind, JobState, Record, Task
from salem.settings import Settings
from salem.storage.registry import Registry

JSON = {"content-type": "application/json"}
REFERENCE = [{"input": "where is my order", "target": LABELS[1]}, {"input": "log in", "target": LABELS[2]}]
EDIT = {"input": "money back", "target": "refund", "paraphrases": ["i want my money"]}


@pytest.fixture
def small(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_body_bytes": 20_000, "max_edits": 5, "max_predict_inputs": 8})


@pytest.fixture
def stage(small: Settings, registry: Registry) -> Stage:
    return Stage.of(small, registry)


@pytest.fixture
def client(small: Settings, registry: Registry) -> Iterator[httpx.Client]:
    with serving(small) as client:
        yield client


@pytest.fixture
def intents(stage: Stage) -> HostedModel:
    return stage.host("intents", "bert")


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that a response is this problem, and return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "code", "errors", "request_id", "remedy"} == set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def pointers(body: dict[str, Any]) -> set[str]:
    return {error["pointer"] for error in body["errors"]}


# models


def test_a_model_is_added(client: httpx.Client, stage: Stage, small: Settings) -> None:
    save_tiny(small.effective_models_root / "intents", "bert")
    source = {"kind": "folder", "path": "intents"}
    body = {"name": "intents", "task": "sequence-classification", "source": source, "reference": REFERENCE}
    response = client.post("/models", json=body)
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert response.headers["retry-after"].isdigit()
    assert (job["kind"], job["state"]) == ("register", "queued")
    stored = stage.blobs.get(request_of(client, job)["reference"]).decode().splitlines()
    assert [json.loads(line) for line in stored] == REFERENCE
    assert client.get("/models/intents").json()["state"] == "registering"
    assert JobQueue.connect(small.effective_redis_url, small.queue).holds(job["id"])
    problem(client.post("/models", json=body), 409, "conflict")
    problem(client.post("/predict", json={"model": "intents", "inputs": ["a"]}), 409, "model_not_ready")


def test_a_reference_set_is_uploaded_first(client: httpx.Client, small: Settings) -> None:
    save_tiny(small.effective_models_root / "intents", "bert")
    lines = "\n".join(json.dumps(sample) for sample in [*REFERENCE, REFERENCE[0]]) + "\n\n"
    response = client.post("/references", content=lines)
    assert response.status_code == 201, response.text
    assert response.json()["num_samples"] == 2
    body = {
        "name": "intents",
        "task": "sequence-classification",
        "source": {"kind": "folder", "path": "intents"},
        "reference_sha256": response.json()["sha256"],
    }
    job = client.post("/models", json=body).json()
    assert request_of(client, job)["reference"] == response.json()["sha256"]
    unknown = client.post("/models", json={**body, "name": "other", "reference_sha256": "0" * 64})
    assert pointers(problem(unknown, 422, "invalid_request")) == {"/reference_sha256"}


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (b"\x80 as a delta holds", "not UTF-8"),
        (b'{"input": "a"}\n', "line 1"),
        (b"{}\n", "line 1"),
        (
            b'{"input": "a", "target": "b"}\n{"input": "a", "target": "c"}\n',
            "keep the row with the correct target",
        ),
        (b"", "empty"),
    ],
)
def test_a_stored_file_that_is_not_a_reference_set_is_refused(
    client: httpx.Client, stage: Stage, small: Settings, stored: bytes, words: str
) -> None:
    save_tiny(small.effective_models_root / "intents", "bert")
    source = {"kind": "folder", "path": "intents"}
    body = {"name": "intents", "task": "sequence-classification", "source": source}
    refused = client.post("/models", json={**body, "reference_sha256": stage.blobs.put(stored)})
    found = problem(refused, 422, "invalid_request")
    assert pointers(found) == {"/reference_sha256"} and words in found["detail"] and found["remedy"]
    assert client.get("/models").json()["data"] == []


def test_bad_reference_sets_are_refused(client: httpx.Client) -> None:
    lines = b'{"input": "a", "target": "b"}\n{"input": 3}\nnot json\n{"input": "x", "target": "y", "id": 1}\n'
    body = problem(client.post("/references", content=lines), 422, "invalid_request")
    assert pointers(body) == {"/1", "/2", "/3"}
    assert "line 3" in body["errors"][-2]["detail"]
    problem(client.post("/references", content=b"\xff\xfe"), 422, "invalid_request")
    problem(client.post("/references", content=b""), 422, "invalid_request")
    clash = b'{"input": "a", "target": "b"}\n{"input": "a", "target": "c"}\n'
    assert pointers(problem(client.post("/references", content=clash), 422, "invalid_request")) == {
        "/1/target"
    }


def test_a_file_of_the_wrong_kind_is_refused_by_its_first_lines(client: httpx.Client) -> None:
    broken = problem(client.post("/references", content=b"0\n" * 500), 422, "invalid_request")
    blank = b'{"input": " ", "target": "a"}\n' * 500
    unsound = problem(client.post("/references", content=blank), 422, "invalid_request")
    for body in (broken, unsound):
        assert len(body["errors"]) == MAX_PLACES and body["detail"].endswith("(and 499 more)")


def test_a_missing_folder_and_a_path_outside_the_root_are_refused(client: httpx.Client) -> None:
    for path in ("nowhere", "../secrets", "/etc"):
        source = {"kind": "folder", "path": path}
        body = {"name": "m", "task": "text-generation", "source": source, "reference": REFERENCE}
        found = problem(client.post("/models", json=body), 422, "unsupported_model")
        assert pointers(found) == {"/source"}


def test_models_versions_and_aliases(client: httpx.Client, stage: Stage, intents: HostedModel) -> None:
    listed = client.get("/models").json()
    assert [model["name"] for model in listed["data"]] == ["intents"]
    assert "layers" not in listed["data"][0] and listed["has_more"] is False
    assert client.get("/models/intents").json()["labels"] == list(LABELS)
    assert client.get("/models/intents/versions").json()["data"] == []
    version = stage.publish(intents)
    assert [entry["number"] for entry in client.get("/models/intents/versions").json()["data"]] == [1]
    shown = client.get("/models/intents/versions/1").json()
    assert shown["deltas"][0]["layer"] == version.layer
    assert client.get("/models/intents/versions/0").json()["deltas"] == []
    problem(client.get("/models/intents/versions/7"), 404, "not_found")

    moved = client.put("/models/intents/aliases/production", json={"version": 1})
    assert moved.json()["version"] == 1
    client.put("/models/intents/aliases/production", json={"version": 0})
    assert [alias["version"] for alias in client.get("/models/intents/aliases").json()["data"]] == [0]
    history = client.get("/models/intents/aliases/production/history").json()["data"]
    assert [alias["version"] for alias in history] == [0, 1]
    absent = problem(client.get("/models/intents/aliases/staging"), 404, "not_found")
    assert absent["remedy"] == "PUT /models/intents/aliases/staging creates it"
    problem(client.put("/models/intents/aliases/production", json={"version": 9}), 404, "not_found")


# edits


def test_edits_make_a_job_for_the_named_parent(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    stage.publish(intents)
    response = client.post("/edits", json={"model": "intents:1", "edits": [EDIT], "options": {"seed": 7}})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    asked = request_of(client, job)
    assert (asked["kind"], asked["parent"], asked["pass_samples"]) == ("edit", 1, None)
    assert asked["options"]["seed"] == 7
    base = client.post("/edits", json={"model": "intents", "edits": [EDIT]}).json()
    assert request_of(client, base)["parent"] == 0


def test_neighbors_a_subject_and_a_gate_come_with_the_request(
    client: httpx.Client, intents: HostedModel
) -> None:
    near = ["no order", {"input": "order", "target": "login"}]
    edit = EDIT | {"neighbors": near, "subject": EDIT["input"].split()[-1]}
    sent = {"model": "intents", "edits": [edit], "require": {"min_neighborhood": 0.9}}
    asked = request_of(client, client.post("/edits", json=sent).json())
    assert asked["edits"][0]["neighbors"] == [
        {"input": "no order", "text_pair": None, "target": None},
        {"input": "order", "text_pair": None, "target": "login"},
    ]
    assert asked["edits"][0]["subject"] == edit["subject"]
    assert asked["require"] == {"min_neighborhood": 0.9, "max_drawdown": None}
    bad = {"model": "intents", "edits": [edit | {"subject": "?"}], "require": {"min_neighborhood": 2}}
    assert pointers(problem(client.post("/edits", json=bad), 422, "invalid_request")) == {
        "/require/min_neighborhood"
    }
    bad["require"] = {}
    assert pointers(problem(client.post("/edits", json=bad), 422, "invalid_request")) == {"/edits/0/subject"}


def test_jobs_on_one_version_that_move_one_alias_do_not_lose_each_others_edits(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    """The test publishes the versions instead of a worker."""
    client.put("/models/intents/aliases/production", json={"version": 0})
    body = {"model": "intents@production", "alias": "production", "edits": [EDIT]}
    jobs = [client.post("/edits", json=body).json() for _ in range(2)]
    for job in jobs:
        asked = request_of(client, job)
        assert (asked["parent"], asked["alias_was"]) == (0, 0)
        stage.publish(intents, job=stage.registry.jobs.get(job["id"]))
    path = "/models/intents/aliases/production"
    assert [alias["version"] for alias in client.get(f"{path}/history").json()["data"]] == [1, 0]
    first, second = (client.get(f"/jobs/{job['id']}").json()["result"] for job in jobs)
    assert (first["version"], first["notes"]) == ("intents:1", [])
    (note,) = second["notes"]
    assert all(words in note for words in ("still names intents:1", "intents:2", f"PUT {path}"))
    again = request_of(client, client.post("/edits", json=body).json())
    assert (again["parent"], again["alias_was"]) == (1, 1)
    removal = {"edits": ["1.0"], "alias": "production"}
    stage.registry.set_alias("intents", "production", 2)
    response = client.post("/models/intents/versions/1/removals", json=removal)
    assert response.status_code == 202
    assert request_of(client, response.json())["alias_was"] == 2


def test_a_bare_model_name_is_refused_if_the_alias_would_lose_corrections(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    body = {"model": "intents", "alias": "production", "edits": [EDIT]}
    headers = {"Idempotency-Key": "monday"}
    made = client.post("/edits", json=body, headers=headers).json()
    stage.publish(intents, job=stage.registry.jobs.get(made["id"]))
    refusal = problem(client.post("/edits", json=body), 422, "invalid_request")
    assert pointers(refusal) == {"/model"}
    assert "write intents@production to keep them, or intents:0 to leave them out" in refusal["detail"]
    assert client.post("/edits", json=body, headers=headers).json()["id"] == made["id"], (
        "the same request returns the same job"
    )
    for model, parent in (("intents@production", 1), ("intents:0", 0)):
        asked = request_of(client, client.post("/edits", json={**body, "model": model}).json())
        assert (asked["parent"], asked["alias_was"]) == (parent, 1)


@pytest.mark.parametrize(
    ("shape", "field"),
    [(PredictIn, "inputs"), (EditsIn, "edits"), (EditsIn, "pass_samples"), (EditorIn, "edits")],
)
def test_a_list_over_the_limit_is_not_read(shape: type[Record], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        shape.model_validate({"model": "intents", field: [1] * (MAX_ITEMS + 1)})
    (found,) = (error for error in caught.value.errors() if error["loc"] == (field,))
    assert found["msg"] == "Value error, the list has 100001 items, but the limit is 100000; send fewer"
    body = {"body": {}, "errors": [{**found, "loc": ("body", field)}]}
    answer = from_validation_error(RequestValidationError(**body), "application/json")
    assert (
        json.loads(bytes(answer.body))["detail"] == f"/{field}: {found['msg'].removeprefix('Value error, ')}"
    )


def test_a_refusal_names_a_limited_number_of_places_and_counts_the_rest(client: httpx.Client) -> None:
    sent = {"model": "intents", "inputs": [1] * 150}
    body = problem(client.post("/predict", json=sent), 422, "invalid_request")
    assert len(body["errors"]) == MAX_PLACES and body["detail"].endswith("(and 149 more)")
    error = invalid_request([Pointer(f"/inputs/{index}", "blank") for index in range(150)])
    assert len(error.errors) == MAX_PLACES and error.message == "/inputs/0: blank (and 149 more)"


def test_bad_edits_are_all_named(client: httpx.Client, intents: HostedModel) -> None:
    edits = [
        EDIT,
        {"input": "lost parcel", "target": "delivry"},
        {"input": "parcel " * 60, "target": "delivery"},
        {"input": "money back", "target": "login"},
    ]
    body = problem(client.post("/edits", json={"model": "intents", "edits": edits}), 422, "invalid_request")
    assert pointers(body) == {"/edits/1/target", "/edits/2/input", "/edits/3/target"}
    assert body["detail"] == (
        '/edits/1/target: "delivry" is not one of the model\'s 4 labels; did you mean "delivery"?'
        " (and 2 more)"
    )


def in_chat_template(folder: Path) -> None:
    tokenizer = loading.load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    tokenizer.save_pretrained(folder)


def test_messages_about_a_chat_prompt_quote_the_question(client: httpx.Client, stage: Stage) -> None:
    stage.host("chat", "bert", prepare=in_chat_template)
    prompt = "<system>Be kind<end><user>where is it<end>"
    body = client.post("/edits", json={"model": "chat", "edits": [{"input": prompt}]}).json()
    (error,) = body["errors"]
    assert error["detail"].startswith('"where is it" has no target')
    inputs = [prompt.replace("where is it", "where " * 400)]
    body = client.post("/predict", json={"model": "chat", "inputs": inputs}).json()
    assert 'shorten "where where' in body["errors"][0]["detail"]


def test_the_shape_of_edits_is_checked_first(client: httpx.Client, intents: HostedModel) -> None:
    edits = [{"input": 3, "target": "refund"}, {"target": "a"}, {"input": "a", "target": "b", "note": "x"}]
    options = {"seed": -1, "learning_rate": "fast", "a/b~c": 1}
    sent = {"model": "intents", "edits": edits, "options": options}
    body = problem(client.post("/edits", json=sent), 422, "invalid_request")
    assert pointers(body) == {
        "/edits/0/input",
        "/edits/1/input",
        "/edits/2/note",
        "/options/seed",
        "/options/learning_rate",
        "/options/a~1b~0c",
    }


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("intents:9", 404, "not_found"),
        ("intents@production", 404, "not_found"),
        ("other", 404, "not_found"),
        ("Intents!", 422, "invalid_request"),
        ("", 422, "invalid_request"),
        ("intents:" + "9" * 30, 422, "invalid_request"),
    ],
)
def test_model_references_that_do_not_resolve_are_refused(
    client: httpx.Client, intents: HostedModel, model: str, status: int, code: str
) -> None:
    problem(client.post("/edits", json={"model": model, "edits": [EDIT]}), status, code)
    problem(client.post("/predict", json={"model": model, "inputs": ["a"]}), status, code)


def test_the_same_key_gives_the_same_job(client: httpx.Client, intents: HostedModel) -> None:
    headers = {"Idempotency-Key": "order-17"}
    first = client.post("/edits", json={"model": "intents", "edits": [EDIT]}, headers=headers)
    again = client.post("/edits", json={"edits": [EDIT], "model": "intents"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    other = {**EDIT, "input": "something else"}
    problem(
        client.post("/edits", json={"model": "intents", "edits": [other]}, headers=headers),
        422,
        "invalid_request",
    )
    assert len(client.get("/jobs", params={"model": "intents", "state": "queued"}).json()["data"]) == 1


def test_an_idempotency_key_returns_its_job_even_if_the_folder_is_gone(
    client: httpx.Client, small: Settings
) -> None:
    folder = save_tiny(small.effective_models_root / "new", "bert")
    body = {
        "name": "new",
        "task": "sequence-classification",
        "source": {"kind": "folder", "path": "new"},
        "reference": REFERENCE,
    }
    made = client.post("/models", json=body, headers={"Idempotency-Key": "k"}).json()
    shutil.rmtree(folder)
    again = client.post("/models", json=body, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202 and again.json()["id"] == made["id"]


def test_a_long_reference_is_shortened_in_the_message(client: httpx.Client) -> None:
    body = problem(
        client.post("/predict", json={"model": "é" * 5_000, "inputs": ["a"]}), 422, "invalid_request"
    )
    assert len(json.dumps(body)) < 2_000


# jobs


def test_jobs_are_listed_in_pages_and_cancelled(
    client: httpx.Client, intents: HostedModel, small: Settings, registry: Registry
) -> None:
    ids = [
        client.post("/edits", json={"model": "intents", "edits": [{**EDIT, "input": text}]}).json()["id"]
        for text in ("a", "b", "c")
    ]
    page = client.get("/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == ids[:0:-1] and page["has_more"]
    rest = client.get("/jobs", params={"limit": 2, "after": ids[1]}).json()
    assert rest["data"][0]["id"] == ids[0]

    shown = client.get(f"/jobs/{ids[0]}")
    assert request_of(client, shown.json())["edits"][0]["input"] == "a"
    assert shown.headers["retry-after"] == "1"
    ended = client.post(f"/jobs/{ids[0]}/cancel")
    assert ended.json()["state"] == "cancelled"
    assert "retry-after" not in client.get(f"/jobs/{ids[0]}").headers
    assert not JobQueue.connect(small.effective_redis_url, small.queue).holds(ids[0])
    problem(client.post(f"/jobs/{ids[0]}/cancel"), 409, "conflict")
    problem(client.get("/jobs/unknown"), 404, "not_found")
    problem(client.get("/jobs/unknown/request"), 404, "not_found")
    assert registry.jobs.get(ids[1]).state is JobState.QUEUED


def test_a_job_of_a_thousand_edits_is_polled_in_few_bytes(settings: Settings, registry: Registry) -> None:
    Stage.of(settings, registry).host("intents", "bert")
    edits = [
        EDIT | {"input": f"money back for order {n}", "paraphrases": [f"refund {n}"]} for n in range(1_000)
    ]
    with serving(settings) as client:
        posted = client.post("/edits", json={"model": "intents", "edits": edits})
        assert posted.status_code == 202, posted.text
        polled, listed = client.get(f"/jobs/{posted.json()['id']}"), client.get("/jobs")
        asked = request_of(client, posted.json())
    assert [edit["input"] for edit in asked["edits"]] == [edit["input"] for edit in edits]
    assert max(len(response.content) for response in (posted, polled, listed)) < 20_000


def test_the_request_and_the_result_of_a_job_are_typed_by_its_kind(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/jobs/{job_id}", "/jobs/{job_id}/request"):
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer["discriminator"]["propertyName"] == "kind"
        assert set(answer["discriminator"]["mapping"]) == set(JobKind)
    result = document["components"]["schemas"]["EditResult"]["properties"]
    for name in ("edit_accuracy", "adapt_accuracy", "generalization", "drawdown", "locality"):
        assert result[name]["anyOf"][0]["$ref"].endswith("/Proportion")


def test_bad_query_parameters_are_named(client: httpx.Client) -> None:
    body = problem(client.get("/jobs", params={"limit": 0, "state": "asleep"}), 422, "invalid_request")
    assert {(error["parameter"], error["in"]) for error in body["errors"]} == {
        ("limit", "query"),
        ("state", "query"),
    }


# predictions


def test_base_and_version_answer_side_by_side(
    client: httpx.Client, stage: Stage, intents: HostedModel, small: Settings
) -> None:
    folder = small.effective_models_root / "intents"
    before = weights_sha256(folder)
    stage.publish(intents)
    client.put("/models/intents/aliases/production", json={"version": 1})
    inputs = ["where is my order", {"input": "the lamp", "text_pair": "is broken"}]
    answers = {
        name: client.post("/predict", json={"model": name, "inputs": inputs}).json()
        for name in ("intents", "intents:1", "intents@production", "intents:0")
    }
    assert [answers[name]["model"] for name in answers] == [
        "intents:0",
        "intents:1",
        "intents:1",
        "intents:0",
    ]
    assert answers["intents"]["predictions"] == answers["intents:0"]["predictions"]
    assert answers["intents:1"]["predictions"] == answers["intents@production"]["predictions"]
    assert answers["intents"]["predictions"] != answers["intents:1"]["predictions"]
    first = answers["intents"]["predictions"][0]
    assert first["output"] == max(first["scores"], key=first["scores"].get)
    assert set(first["scores"]) == set(LABELS)
    assert answers["intents"]["seconds"] > 0
    assert weights_sha256(folder) == before


def test_bad_inputs_are_all_named(client: httpx.Client, intents: HostedModel) -> None:
    inputs = ["ok", " ", {"input": "a", "text_pair": ""}, "parcel " * 60]
    body = problem(
        client.post("/predict", json={"model": "intents", "inputs": inputs}), 422, "invalid_request"
    )
    assert pointers(body) == {"/inputs/1/input", "/inputs/2/text_pair", "/inputs/3/input"}
    many = client.post("/predict", json={"model": "intents", "inputs": ["a"] * 9})
    assert pointers(problem(many, 422, "invalid_request")) == {"/inputs"}
    none = client.post("/predict", json={"model": "intents", "inputs": []})
    assert pointers(problem(none, 422, "invalid_request")) == {"/inputs"}
    shape = client.post("/predict", json={"model": "intents", "inputs": ["a", 3, {"text": "a"}]})
    assert pointers(problem(shape, 422, "invalid_request")) == {
        "/inputs/1",
        "/inputs/2/input",
        "/inputs/2/text",
    }


def test_changed_weights_are_noticed(client: httpx.Client, intents: HostedModel, small: Settings) -> None:
    weights = small.effective_models_root / "intents" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    response = client.post("/predict", json={"model": "intents", "inputs": ["a"]})
    assert "not the ones that were registered" in problem(response, 409, "model_not_ready")["detail"]


# what is the same for every path


@pytest.mark.parametrize(
    ("method", "path", "send", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("DELETE", "/models", {}, 405, "method_not_allowed"),
        (
            "POST",
            "/edits",
            {"content": b"{", "headers": JSON},
            400,
            "malformed_json",
        ),
        (
            "POST",
            "/edits",
            {"content": b"\xff", "headers": JSON},
            400,
            "malformed_body",
        ),
        (
            "POST",
            "/edits",
            {"content": b"[" * 10_000, "headers": JSON},
            400,
            None,
        ),
        ("POST", "/edits", {"content": b"{}"}, 415, "unsupported_media_type"),
        ("POST", "/edits", {"data": {"model": "intents"}}, 415, "unsupported_media_type"),
        ("POST", "/edits", {}, 422, "invalid_request"),
        ("POST", "/edits", {"json": [1]}, 422, "invalid_request"),
        ("POST", "/edits", {"json": None}, 422, "invalid_request"),
        (
            "POST",
            "/models",
            {"json": {"name": "Bad Name", "source": {"kind": "ftp"}}},
            422,
            "invalid_request",
        ),
        ("GET", "/models/Bad%00Name", {}, 422, "invalid_request"),
        ("GET", "/jobs/%00", {}, 422, "invalid_request"),
        ("GET", "/models/m/versions/99999999999999999999", {}, 422, "invalid_request"),
        ("GET", "/jobs?after=%00", {}, 422, "invalid_request"),
        ("POST", "/predict", {"content": b"x" * 30_000}, 413, "body_too_large"),
        ("POST", "/predict", {"content": iter([b"x" * 15_000] * 2)}, 413, "body_too_large"),
    ],
)
def test_no_request_causes_an_internal_error(
    client: httpx.Client, method: str, path: str, send: dict[str, Any], status: int, code: str | None
) -> None:
    response = client.request(method, path, **send)
    problem(response, status, code or response.json()["code"])


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000"])
def test_text_that_cannot_be_stored_is_refused(client: httpx.Client, intents: HostedModel, text: str) -> None:
    headers = JSON
    body = f'{{"model": "intents", "edits": [{{"input": "{text}", "target": "refund"}}]}}'
    found = problem(client.post("/edits", content=body, headers=headers), 422, "invalid_request")
    assert pointers(found) == {"/edits/0/input"}
    body = f'{{"model": "intents", "inputs": ["{text}"], "{text}": 1}}'
    problem(client.post("/predict", content=body, headers=headers), 422, "invalid_request")
    body = f'{{"model": "{text}", "inputs": ["{text}"]}}'
    problem(client.post("/predict", content=body, headers=headers), 422, "invalid_request")


@pytest.mark.parametrize("field", ["text_pair", "target", "forget"])
def test_half_a_surrogate_pair_anywhere_in_a_sample_is_refused(
    client: httpx.Client, stage: Stage, field: str
) -> None:
    stage.host("writer", "gpt2", Task.TEXT_GENERATION)
    bad = EDIT | {"target": None if field == "forget" else "refund", field: "\ud83d"}
    kept = {"input": "the lamp", "target": "refund", "text_pair": None} | {field: "\ud83d"}
    sent: list[tuple[str, dict[str, Any], str]] = [
        ("/edits", {"edits": [bad]}, f"/edits/0/{field}"),
        (
            "/editors",
            {"edits": [bad, *({**EDIT, "input": f"order {n}"} for n in range(3))]},
            f"/edits/0/{field}",
        ),
    ]
    if field != "forget":
        sent.append(("/edits", {"edits": [EDIT], "pass_samples": [kept]}, f"/pass_samples/0/{field}"))
    for path, body, pointer in sent:
        content = json.dumps({"model": "writer", **body})
        found = problem(client.post(path, content=content, headers=JSON), 422, "invalid_request")
        assert pointer in pointers(found)


def test_numbers_that_are_not_finite_are_refused(client: httpx.Client, intents: HostedModel) -> None:
    body = (
        '{"model": "intents", "edits": [{"input": "a", "target": "refund"}], "options": {"kl_weight": 1e999}}'
    )
    response = client.post("/edits", content=body, headers=JSON)
    assert pointers(problem(response, 422, "invalid_request")) == {"/options/kl_weight"}


def test_malformed_json_says_where(client: httpx.Client) -> None:
    response = client.post("/edits", content=b'{"model":\n  x}', headers=JSON)
    assert problem(response, 400, "malformed_json")["detail"].startswith("line 2, column 3")


def test_request_ids(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc.1"}).headers["x-request-id"] == "abc.1"
    assert len(client.get("/healthz", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]) == 32


def test_an_unexpected_error_leaks_nothing(client: httpx.Client, small: Settings) -> None:
    (small.home / "blobs").write_text("a file in the place of the folder")
    response = client.post("/references", content=json.dumps(REFERENCE[0]))
    assert response.status_code in (500, 503)
    assert str(small.home) not in response.text and "Traceback" not in response.text


def test_readiness_names_what_is_missing(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "alive"
    body = problem(client.get("/readyz"), 503, "unavailable")
    assert [error["detail"].split(":")[0] for error in body["errors"]] == ["worker"]


def test_jobs_are_accepted_while_redis_is_down(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    away = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none.sock"})
    Stage.of(away, registry).host("intents", "bert")
    with serving(away) as client:
        assert client.post("/edits", json={"model": "intents", "edits": [EDIT]}).status_code == 202
        body = problem(client.get("/readyz"), 503, "unavailable")
        assert {error["detail"].split(":")[0] for error in body["errors"]} == {"redis", "worker"}


def test_the_api_key_is_required_everywhere_except_healthz(settings: Settings, registry: Registry) -> None:
    locked = settings.model_copy(update={"api_key": SecretStr("s3cret"), "host": "0.0.0.0"})
    with serving(locked) as client:
        assert client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for path in ("/models", "/readyz", "/openapi.json", "/nowhere"):
                refused = client.get(path, headers=headers)
                problem(refused, 401, "unauthorized")
                assert refused.headers["www-authenticate"] == "Bearer"
        odd = client.get("/models", headers={"Authorization": "Bearer sécret".encode("latin-1")})
        problem(odd, 401, "unauthorized")
        assert client.get("/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_an_open_address_without_a_key_is_refused(settings: Settings) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(Misconfigured, match="no API key"):
            create_app(settings.model_copy(update={"host": host}))
    with pytest.raises(Misconfigured, match="empty"):
        create_app(settings.model_copy(update={"api_key": SecretStr("")}))
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        create_app(settings.model_copy(update={"host": host}))
