"""Entries over HTTP: listed in pages, named by predictions, overridden by edits, and removed from versions.

There is no worker: versions are published by hand, with real scoped deltas.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import torch
from api_service import Stage, edit_result, request_of, serving
from test_app_api import pointers, problem
from tiny_models import tiny_network

from app.cli import main
from app.serving.engine import Engine
from salem.deltas.files import pack
from salem.deltas.terms import LayerDelta, Scoped
from salem.queue.job_queue import JobQueue
from salem.records import (
    BrokenNeighbor,
    Delta,
    Edit,
    EditRequest,
    Entry,
    EntryKey,
    HostedModel,
    JobKind,
    RecipeOptions,
    TextInput,
    Version,
)
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.first_token import first_tokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.metric import Metric
from salem.scope.metric_files import named, pack_metric
from salem.scope.state_scope import StateScope
from salem.settings import Settings
from salem.storage.publication import Publication
from salem.storage.registry import Registry

NOTHING_FIRES = "who wrote the book in rome"
EDITS = (
    Edit(input="where is my order", target="refund", paraphrases=("when will my order arrive",)),
    Edit(input="log in", target="delivery"),
    Edit(input="the lamp is broken", target="login"),
)


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


@pytest.fixture
def intents(stage: Stage) -> HostedModel:
    return stage.host("intents", "bert")


@pytest.fixture
def client(settings: Settings, intents: HostedModel) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


def scoped_term(edits: tuple[Edit, ...], model: HostedModel) -> Scoped:
    """Entries that fire on exactly the texts of the edits, with an untrained metric."""
    network = tiny_network("bert")
    inputs = [TextInput(input=edit.input) for edit in edits]
    reading = FeatureSpec(network.layers[0].stack, 1, False, token_rarity(network, inputs))
    seen = features(network, inputs, reading)  # [e, f]
    width = seen.shape[1]
    metric = named(
        Metric(reading, torch.zeros(width), torch.ones(width), torch.eye(width), *torch.ones(2, WORD_BUCKETS))
    )
    layer = model.layers[1]
    scope = StateScope(
        metric=metric,
        keys=metric.project(seen),
        radii=torch.full((len(edits),), 0.999),
        owners=torch.arange(len(edits)).float(),
        **vars(first_tokens(network, inputs)),
        first_token_weights=torch.full((len(edits),), 0.2),
        words=pack_words([WordCounts.of(item) for item in inputs]),
        lexical_weights=torch.full((len(edits),), 0.1),
    )
    return Scoped(
        scope,
        values=torch.randn(len(edits), 1, layer.d_out, generator=torch.Generator().manual_seed(1)),
        down=torch.zeros(len(edits), 0, layer.d_in),
        up=torch.zeros(len(edits), 0, layer.d_out),
    )


BROKEN = BrokenNeighbor(
    input="where is no order",
    edit=0,
    kind="negated",
    origin="rule",
    before="login",
    after="refund",
    held_out=True,
)


def publish(
    stage: Stage, model: HostedModel, edits: tuple[Edit, ...], parent: Version | None = None
) -> Version:
    """Publish a version with an entry for each edit, as a job does."""
    term = scoped_term(edits, model)
    path = model.layers[1].path
    data = pack(LayerDelta(path, (term,)), base_sha256=str(model.sha256))
    delta = Delta(
        layer=path,
        blob=stage.blobs.put(data),
        num_bytes=len(data),
        kind="scoped",
        rank=None,
        metric=stage.blobs.put(pack_metric(term.scope.metric)),
    )
    number = parent.number if parent else 0
    request = EditRequest(
        model=model.name, parent=number, edits=edits, options=RecipeOptions(recipe="scoped")
    )
    job, _ = stage.registry.jobs.create(JobKind.EDIT, model.name, request.model_dump(mode="json"))
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    version = Version(
        model=model.name,
        number=0,
        parent=number,
        deltas=(*(parent.deltas if parent else ()), delta),
        metrics=None,
        options=request.options,
        layer=path,
        job_id=job.id,
        created_at=datetime.now(UTC),
    )
    entries = [
        Entry(
            input=edit.input,
            target=edit.target,
            keys=tuple(EntryKey(text=text, radius=0.5) for text in (edit.input, *edit.paraphrases)),
        )
        for edit in edits
    ]
    made = Publication(entries={len(version.deltas) - 1: list(enumerate(entries))}, broken_neighbors=[BROKEN])
    result = edit_result(delta).model_dump(mode="json")
    return stage.registry.finish_edit(job.id, claimed[1], version, result, made)


def get(client: httpx.Client, path: str, **query: Any) -> Any:
    response = client.get(path, params=query)
    assert response.status_code == 200, response.text
    return response.json()


def test_entries_are_listed_in_pages(client: httpx.Client, stage: Stage, intents: HostedModel) -> None:
    first = publish(stage, intents, EDITS)
    publish(stage, intents, (Edit(input="log in", target="other"),), first)
    path = "/models/intents/versions/2/entries"
    page = get(client, path, limit=3)
    assert [entry["id"] for entry in page["data"]] == ["1.0", "1.1", "1.2"] and page["has_more"]
    assert page["data"][0] == {
        "id": "1.0",
        "input": "where is my order",
        "text_pair": None,
        "target": "refund",
        "forget": None,
        "keys": [
            {"text": text, "radius": 0.5, "nearest_pass_sample": None, "nearest_likeness": None}
            for text in ("where is my order", "when will my order arrive")
        ],
        "layer": intents.layers[1].path,
        "version": 1,
        "job_id": first.job_id,
    }
    rest = get(client, path, limit=3, after="1.2")
    assert [entry["id"] for entry in rest["data"]] == ["2.0"] and not rest["has_more"]
    assert rest["note"] is None
    problem(client.get(path, params={"after": "7.0"}), 404, "not_found")
    problem(client.get(path, params={"after": "7"}), 422, "invalid_request")
    problem(client.get("/models/intents/versions/9/entries"), 404, "not_found")
    assert "answers like the base" in get(client, "/models/intents/versions/0/entries")["note"]


def test_a_plain_version_has_no_entries_and_says_so(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    stage.publish(intents)
    page = get(client, "/models/intents/versions/1/entries")
    assert page["data"] == [] and "plain recipe" in page["note"] and "intents:1" in page["note"]


def predict(client: httpx.Client, model: str, *inputs: str, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/predict", json={"model": model, "inputs": list(inputs), **more})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def test_predictions_say_which_entry_fired(client: httpx.Client, stage: Stage, intents: HostedModel) -> None:
    first = publish(stage, intents, EDITS)
    publish(stage, intents, (Edit(input="log in", target="other"),), first)
    texts = [*(edit.input for edit in EDITS), NOTHING_FIRES]
    explained = predict(client, "intents:2", *texts, explain=True)
    fired = [each["match"] for each in explained]
    assert [each and each["edit_id"] for each in fired] == ["1.0", "2.0", "1.2", None]
    assert all(0 < each["margin"] < 0.01 for each in fired[:3])
    older = predict(client, "intents:1", "log in", explain=True)
    assert older[0]["match"]["edit_id"] == "1.1"
    plain = predict(client, "intents:2", *texts)
    assert "match" not in plain[0]
    assert [{**each, "match": None} for each in plain] == [{**each, "match": None} for each in explained]
    assert plain[3] == predict(client, "intents", NOTHING_FIRES)[0]
    stage.publish(intents)
    assert [each["match"] for each in predict(client, "intents:3", *texts[:2], explain=True)] == [None, None]


def test_an_edit_that_overrides_an_entry_says_so(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    publish(stage, intents, EDITS)
    edits = [
        {"input": "log  in", "target": "refund"},
        {"input": "my order", "target": "other", "paraphrases": ["when will my order arrive"]},
        {"input": "the lamp is broken", "target": "login"},
        {"input": "log in", "text_pair": "or out", "target": "refund"},
    ]
    job = client.post("/edits", json={"model": "intents:1", "edits": edits}).json()
    assert request_of(client, job)["notes"] == [
        '"log in" overrides entry 1.1: it was "delivery", now "refund"',
        '"when will my order arrive" overrides entry 1.0: it was "refund", now "other"',
    ]
    base = client.post("/edits", json={"model": "intents", "edits": edits}).json()
    assert request_of(client, base)["notes"] == []
    plain = {"model": "intents:1", "edits": edits, "options": {"recipe": "mend"}}
    (refused,) = client.post("/edits", json=plain).json()["errors"]
    assert refused["pointer"] == "/options/recipe" and '"log in" overrides entry 1.1' in refused["detail"]
    assert "use scoped, or remove the entry first" in refused["detail"]
    plain["model"] = "intents"
    assert client.post("/edits", json=plain).status_code == 202, "the base has no entries"


def test_only_a_few_of_many_overridden_texts_are_named(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    texts = [f"where is order {number}" for number in range(30)]
    publish(stage, intents, (Edit(input=texts[0], target="refund", paraphrases=tuple(texts[1:])),))
    edit = {"input": texts[0], "target": "other", "paraphrases": texts[1:]}
    job = client.post("/edits", json={"model": "intents:1", "edits": [edit]}).json()
    notes = request_of(client, job)["notes"]
    assert len(notes) == 21 and notes[0].startswith('"where is order 0" overrides entry 1.0')
    assert notes[-1] == "and 10 more texts that override an entry"


def test_edits_are_removed_by_a_job(
    client: httpx.Client, stage: Stage, intents: HostedModel, settings: Settings
) -> None:
    publish(stage, intents, EDITS)
    path, headers = "/models/intents/versions/1/removals", {"Idempotency-Key": "once"}
    body = {"edits": ["1.2", "1.0"], "alias": "production"}
    response = client.post(path, json=body, headers=headers)
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}" and response.headers["retry-after"]
    assert (job["kind"], job["state"]) == ("remove", "queued")
    asked = {"kind": "remove", "model": "intents", "parent": 1, **body, "alias_was": None}
    assert request_of(client, job) == asked
    assert JobQueue.connect(settings.effective_redis_url, settings.queue).holds(job["id"])
    client.put("/models/intents/aliases/production", json={"version": 1})
    assert client.post(path, json=body, headers=headers).json()["id"] == job["id"]
    other = client.post(path, json={"edits": ["1.2"]}, headers=headers)
    problem(other, 422, "invalid_request")
    sent = {"model": "intents", "edits": [{"input": "a", "target": "other"}]}
    problem(client.post("/edits", json=sent, headers=headers), 422, "invalid_request")


def test_bad_ids_are_all_named(client: httpx.Client, stage: Stage, intents: HostedModel) -> None:
    first = publish(stage, intents, EDITS)
    cut = first.deltas[0].model_copy(update={"removed": (1,)})
    job, _ = stage.registry.jobs.create(JobKind.REMOVE, "intents", {})
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    without = first.model_copy(update={"deltas": (cut,), "parent": 1})
    assert stage.registry.finish_edit(job.id, claimed[1], without, {}).number == 2
    ids = ["1.0", "one", "1.3", "2.0", "1.1", "1.0", "1.2"]
    body = problem(
        client.post("/models/intents/versions/2/removals", json={"edits": ids}), 422, "invalid_request"
    )
    assert {error["pointer"]: error["detail"] for error in body["errors"]} == {
        "/edits/1": '"one" is not an edit id; write it like "3.0"',
        "/edits/2": "version 1 has no edit 1.3; its last is 1.2",
        "/edits/3": "intents:2 has no edit from version 2; its edits are from 1",
        "/edits/4": "1.1 was already removed from intents:2; leave it out",
        "/edits/5": '"1.0" is already at /edits/0; leave it out',
    }
    for number in (1, 2):
        empty = client.post(f"/models/intents/versions/{number}/removals", json={"edits": []})
        assert pointers(problem(empty, 422, "invalid_request")) == {"/edits"}
    base = problem(
        client.post("/models/intents/versions/0/removals", json={"edits": ["1.0"]}), 422, "invalid_request"
    )
    assert "intents:0 is the base" in base["detail"] and base["remedy"]
    problem(client.post("/models/intents/versions/7/removals", json={"edits": ["1.0"]}), 404, "not_found")
    problem(client.post("/models/other/versions/1/removals", json={"edits": ["1.0"]}), 404, "not_found")


def test_the_command_line(
    client: httpx.Client,
    stage: Stage,
    intents: HostedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(stage, intents, EDITS)
    stage.registry.set_alias("intents", "production", 1)

    def salem(*words: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["salem", *words, "--url", str(client.base_url)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    status, shown, _ = salem("entries", "intents:1")
    assert status == 0
    assert all(word in shown for word in ("1.0", "where is my order", "refund", "1.2", "0.50"))
    _, listed, _ = salem("entries", "intents@production", "--json")
    assert [entry["id"] for entry in printed_json(listed)] == ["1.0", "1.1", "1.2"]
    status, shown, _ = salem("broken-neighbors", "intents:1")
    assert status == 0
    assert all(word in shown for word in ("where is no order", "negated", "rule", "login", "refund"))
    _, listed, _ = salem("broken-neighbors", "intents@production", "--json")
    assert [each["input"] for each in printed_json(listed)] == ["where is no order"]
    status, job, _ = salem("remove", "intents:1", "1.0", "1.2")
    assert status == 0 and printed_json(job)["kind"] == "remove"
    status, _, refusal = salem("remove", "intents:1", "9.0")
    assert status == 1 and "version 9" in refusal
    status, _, refusal = salem("entries", "Intents!")
    assert status == 1 and "not a model reference" in refusal
    _, _, note = salem("entries", "intents")
    assert "answers like the base" in note


def printed_json(text: str) -> Any:
    """The JSON document among the log lines of the service, which runs in the same process."""
    begins = re.search(r"^[\[{]$", text, re.MULTILINE)
    assert begins, text
    return json.JSONDecoder().raw_decode(text, begins.start())[0]


def test_a_metric_is_shared_by_its_deltas_and_deleted_with_the_last_one(
    stage: Stage, intents: HostedModel
) -> None:
    versions = [publish(stage, intents, EDITS), publish(stage, intents, EDITS[:2])]
    engine = Engine(stage.blobs, stage.settings.model_copy(update={"device": "cpu"}))
    inputs = [TextInput(input=edit.input) for edit in EDITS]
    for version in versions:
        engine.predict(intents, version, inputs, max_new_tokens=1)
    metrics, chains = engine._versions._metrics, engine._versions._cache.chains
    assert set(metrics) == {delta.metric for version in versions for delta in version.deltas}
    held = [scope.metric for _, chain in chains.values() for scope in chain.scopes]
    assert len(held) == len(versions)
    assert all(metric is metrics[metric.sha256] for metric in held)
    del held
    chains.clear()
    gc.collect()
    assert not metrics
