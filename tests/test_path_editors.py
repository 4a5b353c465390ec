"""The life of an editor over HTTP: it is trained on a corpus, and edits use it.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import sys

import pytest
from editor_corpora import LAYER, QUICK, corpus, new_edits
from labeled_texts import save_labeled
from running_service import Service

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")


def test_an_editor_is_trained_once_and_serves_new_edits_in_one_pass(service: Service) -> None:
    orphans = service.orphaned_blobs()  # of other tests' interrupted jobs
    root = service.settings.effective_models_root
    reference = save_labeled(root, "ahead", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("ahead", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    options = QUICK.model_dump(mode="json") | {"num_together": 1, "num_steps": 40}
    edits = [edit.model_dump(mode="json") for edit in corpus()]
    body = {"model": "ahead", "name": "first", "edits": edits, "options": options}
    job = service.wait(service.post("/editors", body)["id"])
    assert job["state"] == "succeeded", job["error"]
    result = job["result"]
    assert (job["kind"], result["held_out"], result["layer"]) == ("train_editor", 12, LAYER)
    (listed,) = service.get("/editors?model=ahead")["data"]
    assert listed == service.get(f"/editors/{result['editor']}")
    assert (listed["name"], listed["num_trained_on"]) == ("first", 36)
    assert listed["blob"] == result["editor_sha256"] and listed["job_id"] == job["id"]

    fresh = [edit.model_dump(mode="json") for edit in new_edits(8)]
    job = service.edit("ahead", fresh, options={"editor": listed["id"]})
    assert job["state"] == "succeeded", job["error"]
    made = job["result"]
    assert made["editor"] == {"id": listed["id"], "trained": "ahead of time"} and made["layer"] == LAYER
    version = service.get("/models/ahead/versions/1")
    assert version["options"]["recipe"] == "mend" and version["layer"] == LAYER
    outcomes = service.get("/models/ahead/versions/1/outcomes")["data"]
    held = [each for each in outcomes if each["kind"] == "edit" and each["correct"]]
    assert held and made["edit_accuracy"]["value"] == len(held) / 8
    assert service.answers("ahead:1", [each["input"] for each in held]) == [each["after"] for each in held]
    again = service.edit("ahead", fresh, options={"editor": listed["id"], "recipe": "mend"})
    assert again["result"]["delta_sha256"] == made["delta_sha256"]
    assert service.orphaned_blobs() <= orphans
