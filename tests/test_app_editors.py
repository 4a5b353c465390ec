"""Editors over HTTP and on the command line: what is accepted, what is refused, and the messages.

There is no worker: editors are published by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import Stage, request_of, serving
from pydantic import TypeAdapter
from source_modules import ROOT
from test_app_api import pointers, problem
from test_app_entries import printed_json
from test_app_validation_edits import READER
from test_salem_storage_editors import new_editor

from app.cli import main
from app.validation.editors import FEWEST_EDITS, with_editor
from app.validation.recipes import AnyOptions
from salem.queue.job_queue import JobQueue
from salem.records import (
    Editor,
    EditorMetrics,
    EditorOptions,
    EditorRequest,
    HostedModel,
    JobKind,
)
from salem.settings import Settings
from salem.storage.registry import Registry

EDITS = [
    {"input": f"where is order number {place}", "target": "refund", "paraphrases": [f"order {place} is late"]}
    for place in range(FEWEST_EDITS)
]
EDIT = {"input": "money back", "target": "refund"}
FORGETTING = {"input": "my parcel", "target": None, "forget": "refund"}


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


@pytest.fixture
def intents(stage: Stage) -> HostedModel:
    return stage.host("intents", "bert")


@pytest.fixture
def client(settings: Settings, intents: HostedModel) -> Iterator[httpx.Client]:
    with serving(settings.model_copy(update={"max_edits": 40})) as client:
        yield client


def publish(stage: Stage, model: HostedModel) -> Editor:
    job, _ = stage.registry.jobs.create(JobKind.TRAIN_EDITOR, model.name, {})
    claimed = stage.registry.jobs.claim(job.id, 60)
    assert claimed is not None
    editor = new_editor(job, layer=model.layers[1].path)
    stage.registry.editors.finish(job.id, claimed[1], editor, {})
    return editor


def details(response: httpx.Response) -> dict[str, str]:
    body = problem(response, 422, "invalid_request")
    return {error["pointer"]: error["detail"] for error in body["errors"]}


def test_a_corpus_becomes_a_job(client: httpx.Client, settings: Settings) -> None:
    body = {"model": "intents", "name": "late orders", "edits": EDITS, "options": {"num_together": 4}}
    response = client.post("/editors", json=body, headers={"Idempotency-Key": "k"})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["model"]) == ("train_editor", "queued", "intents")
    request = EditorRequest.model_validate(request_of(client, job))
    assert (request.name, len(request.edits), request.options.num_together) == ("late orders", 32, 4)
    assert request.edits[1].paraphrases == ("order 1 is late",) and request.pass_samples is None
    assert JobQueue.connect(settings.effective_redis_url, settings.queue).holds(job["id"])
    shutil.rmtree(settings.effective_models_root / "intents")
    again = client.post("/editors", json=body, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == job["id"]


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"edits": EDITS[:31]}, "/edits", "31 edits are too few to train an editor, which needs 32"),
    ({"edits": []}, "/edits", "the list is empty"),
    ({"edits": [*EDITS, EDITS[3] | {"paraphrases": []}]}, "/edits/32", "already at /edits/3"),
    ({"edits": [*EDITS, {**EDIT, "target": "refnud"}]}, "/edits/32/target", 'did you mean "refund"?'),
    ({"edits": [*EDITS, {**EDIT, "input": " "}]}, "/edits/32/input", "the text is empty"),
    (
        {"edits": [{**EDIT, "input": f"text {n}"} for n in range(41)]},
        "/edits",
        "the limit is 40; leave some out",
    ),
    ({"pass_samples": [EDITS[0] | {"target": "login"}]}, "/pass_samples/0/paraphrases", "Extra inputs"),
    ({"pass_samples": []}, "/pass_samples", "leave it out to use the model's reference set"),
    ({"edits": [*EDITS, FORGETTING]}, f"/edits/{len(EDITS)}/forget", "learns from correct answers only"),
    ({"model": "intents:0"}, "/model", "an editor is trained on the base and works for all versions"),
    ({"name": " "}, "/name", "the name is empty"),
    ({"name": "a\x00"}, "/name", "NUL"),
    ({"options": {"layer": "encoder"}}, "/options/layer", "not an editable layer of intents"),
    ({"options": {"num_together": 33}}, "/options/num_together", "less than or equal to 32"),
)


def test_bad_corpora_are_refused(client: httpx.Client) -> None:
    for changes, pointer, words in REFUSED:
        found = details(client.post("/editors", json={"model": "intents", "edits": EDITS} | changes))
        assert set(found) == {pointer} and words in found[pointer], found


def test_a_missing_model_and_a_model_that_is_not_ready_are_refused(
    client: httpx.Client, stage: Stage
) -> None:
    body = {"model": "nobody", "edits": EDITS}
    problem(client.post("/editors", json=body), 404, "not_found")
    problem(client.get("/editors?model=nobody"), 404, "not_found")
    assert pointers(problem(client.post("/editors", json=body | {"model": "?"}), 422, "invalid_request")) == {
        "/model"
    }


def test_editors_are_listed_and_shown(client: httpx.Client, stage: Stage, intents: HostedModel) -> None:
    assert client.get("/editors").json() == {"data": [], "has_more": False}
    stage.host("other", "bert")
    editor = publish(stage, intents)
    shown = client.get(f"/editors/{editor.id}").json()
    assert Editor.model_validate(shown) == editor
    assert client.get("/editors").json()["data"] == [shown]
    assert client.get("/editors?model=intents").json()["data"] == [shown]
    assert client.get("/editors?model=other").json()["data"] == []
    missing = problem(client.get(f"/editors/editor-{'0' * 20}"), 404, "not_found")
    assert missing["remedy"] == "GET /editors lists the editors"
    problem(client.get("/editors/refunds"), 422, "invalid_request")


def test_an_edit_gets_the_recipe_and_the_layer_of_its_editor(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    editor = publish(stage, intents)
    for options in ({}, {"recipe": "mend"}, {"layer": editor.layer}):
        body = {"model": "intents", "edits": [EDIT], "options": {"editor": editor.id, **options}}
        response = client.post("/edits", json=body)
        assert response.status_code == 202, response.text
        stored = request_of(client, response.json())["options"]
        assert (stored["editor"], stored["recipe"], stored["layer"]) == (editor.id, "mend", editor.layer)


def test_options_that_conflict_with_the_editor_are_refused(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    editor = publish(stage, intents)
    foreign = publish(stage, stage.host("other", "bert"))

    def refused(**options: Any) -> dict[str, str]:
        return details(client.post("/edits", json={"model": "intents", "edits": [EDIT], "options": options}))

    found = refused(editor=editor.id, recipe="scoped")
    assert set(found) == {"/options/editor"}
    assert found["/options/editor"].startswith(
        'scoped has no option "editor"; it has layer, saliency_samples, seed'
    )
    found = refused(editor=editor.id, layer=intents.layers[0].path)
    assert set(found) == {"/options/layer"}
    assert f"{editor.id} edits {editor.layer}, not" in found["/options/layer"]
    assert 'was trained for "other"' in refused(editor=foreign.id)["/options/editor"]
    for unknown in (f"editor-{'0' * 20}", "refunds", "\x00"):
        detail = refused(editor=unknown)["/options/editor"]
        assert "is not the id of an editor; GET /editors?model=intents lists the editors" in detail


def test_an_edit_that_forgets_is_refused_with_an_editor(
    client: httpx.Client, stage: Stage, intents: HostedModel
) -> None:
    options = {"editor": publish(stage, intents).id, "recipe": "mend"}
    response = client.post(
        "/edits", json={"model": "intents", "edits": [EDIT, FORGETTING], "options": options}
    )
    found = details(response)
    assert (
        set(found) == {"/edits/1/forget"}
        and "leave out options.editor, or this edit" in found["/edits/1/forget"]
    )


def test_options_without_an_editor_stay_as_they_are() -> None:
    def nobody(editor: str) -> None:
        raise AssertionError("nothing is looked up")

    options = TypeAdapter(AnyOptions).validate_python({"recipe": "ridge"})
    assert with_editor("intents", options, (), nobody, READER) == (options, [])


def test_the_command_line(
    client: httpx.Client,
    stage: Stage,
    intents: HostedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    editor = publish(stage, intents)

    def salem(*words: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["salem", *words, "--url", str(client.base_url)])
        monkeypatch.setenv("COLUMNS", "220")
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(map(json.dumps, EDITS)))
    options = ("--model", "intents", "--name", "late", "--together", "3", "--seed", "5")
    status, job, _ = salem("editors", "train", str(file), *options)
    assert status == 0 and printed_json(job)["kind"] == "train_editor"
    (queued,) = [each for each in stage.registry.jobs.list_page()[0] if each.state == "queued"]
    request = EditorRequest.model_validate(stage.registry.jobs.get_request(queued.id))
    assert (request.name, request.options.num_together, request.options.seed) == ("late", 3, 5)
    _, shown, _ = salem("editors", "list", "--model", "intents")
    assert all(word in shown for word in (editor.id, "refunds", editor.layer, "0.50"))
    assert printed_json(salem("editors", "show", editor.id)[1])["id"] == editor.id
    file.write_text(json.dumps(EDIT))
    status, job, _ = salem("edits", "post", str(file), "--model", "intents", "--editor", editor.id)
    assert status == 0 and printed_json(job)["kind"] == "edit"
    status, _, refusal = salem("edits", "post", str(file), "--model", "intents", "--editor", "none")
    assert status == 1 and "is not the id of an editor" in refusal


def test_every_option_of_an_editor_is_documented_with_its_default_and_no_other() -> None:
    page = (ROOT / "docs" / "editors.md").read_text()
    _, options = page.split("## Options")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", options, flags=re.MULTILINE)
    fields = EditorOptions.model_fields
    expected = {n: "none" if f.default is None else str(f.default) for n, f in fields.items()}
    assert {name: default.strip("`") for name, default in rows} == expected


def test_every_figure_of_an_editor_is_defined() -> None:
    figures, _ = (ROOT / "docs" / "editors.md").read_text().split("## A job with an editor")
    assert all(f"`{name}`" in figures for name in EditorMetrics.model_fields)
