"""Neighbors over HTTP: a version that breaks them says so, lists them, and can be refused.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import sys

import pytest
from labeled_texts import TEXTS, other_label, save_labeled
from running_service import Service

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

LAYER = "bert.encoder.layer.1.output.dense"


def test_a_broken_neighbor_is_in_the_metrics_and_on_its_page(service: Service) -> None:
    root = service.settings.effective_models_root
    reference = save_labeled(root, "near", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("near", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    (label,) = service.answers("near", TEXTS[20:21])
    target = other_label(label)
    neighbors = [
        text
        for text, answer in zip(TEXTS[21:], service.answers("near", TEXTS[21:]), strict=True)
        if answer != target
    ][:30]
    edit = {"input": TEXTS[20], "target": target, "neighbors": neighbors, "subject": TEXTS[20].split()[-1]}
    # A plain change at a high learning rate reaches far beyond its edit.
    options = {"recipe": "mend", "layer": LAYER, "max_steps": 40, "kl_weight": 0, "null_space_rank": 0}
    options |= {"learning_rate": 0.05, "margin": 3.0}
    job = service.edit("near", [edit], options=options)
    assert job["state"] == "succeeded", job["error"]
    share = job["result"]["neighborhood"]
    assert share["value"] < 1 and share["low"] < share["value"] < share["high"]
    assert share == service.get("/models/near/versions/1")["metrics"]["neighborhood"]
    broken = service.get("/models/near/versions/1/broken-neighbors")["data"]
    assert len([each for each in broken if each["held_out"]]) == round((1 - share["value"]) * share["count"])
    sent = {each["input"] for each in broken if each["origin"] == "client"}
    assert sent and sent <= set(neighbors)
    for each in broken:
        assert service.answers("near:1", [each["input"]]) == [each["after"]] != [each["before"]]
    kept = [text for text in neighbors if text not in sent]
    assert service.answers("near:1", kept) == service.answers("near", kept)
    assert any("changed their answer, such as" in note for note in job["result"]["notes"])

    body = {"model": "near", "edits": [edit], "options": options, "require": {"min_neighborhood": 1}}
    refused = service.wait(service.post("/edits", body)["id"])
    assert refused["state"] == "failed" and refused["error"]["code"] == "requirement_missed"
    assert [version["number"] for version in service.get("/models/near/versions")["data"]] == [1]


def test_bad_neighbors_are_named_with_a_remedy(service: Service) -> None:
    (label,) = service.answers("near", TEXTS[20:21])
    (near,) = service.answers("near", TEXTS[30:31])
    edit = {"input": TEXTS[20], "target": near if near != label else other_label(label)}
    bad = edit | {"neighbors": ["fine", TEXTS[20]], "subject": "nothing of the kind"}
    response = service.client.post("/edits", json={"model": "near", "edits": [bad]})
    assert response.status_code == 422
    errors = {error["pointer"]: error["detail"] for error in response.json()["errors"]}
    assert set(errors) == {"/edits/0/neighbors/1", "/edits/0/subject"}
    assert all("leave" in detail for detail in errors.values())
    same = edit | {"neighbors": [TEXTS[i] for i in range(60, 100)]}
    job = service.edit("near", [same])
    assert job["state"] == "failed" and job["error"]["code"] == "invalid_request"
    assert "/edits/0/neighbors/" in job["error"]["message"] and "paraphrases" in job["error"]["remedy"]
