"""The life of an entry over HTTP: an edit adds it, a prediction names it, and a removal removes it.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import sys

import pytest
from labeled_texts import TEXTS, other_label, save_labeled
from running_service import Service

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

CHOSEN = (TEXTS[20], TEXTS[21])


def test_an_entry_is_added_fires_and_is_removed(service: Service) -> None:
    orphans = service.orphaned_blobs()
    root = service.settings.effective_models_root
    reference = save_labeled(root, "entries", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("entries", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    before = service.answers("entries", CHOSEN)
    edits = [
        {"input": text, "target": other_label(label), "paraphrases": [f"{text} please", f"well {text}"]}
        for text, label in zip(CHOSEN, before, strict=True)
    ]
    options = {"max_steps": 40, "kl_weight": 0.0, "layer": "bert.encoder.layer.1.output.dense"}
    job = service.edit("entries", edits, options=options)
    assert job["state"] == "succeeded", job["error"]
    page = service.get("/models/entries/versions/1/entries")
    assert [entry["id"] for entry in page["data"]] == ["1.0", "1.1"]
    assert all(entry["keys"] for entry in page["data"])
    assert all(-1 <= key["radius"] <= 1 for entry in page["data"] for key in entry["keys"])
    asked = {"model": "entries:1", "inputs": CHOSEN, "explain": True}
    fired = [each["match"] for each in service.post("/predict", asked)["predictions"]]
    assert [each and each["edit_id"] for each in fired] == ["1.0", "1.1"]

    body = {"edits": ["1.0"], "alias": "production"}
    removed = service.wait(service.post("/models/entries/versions/1/removals", body)["id"])
    assert removed["state"] == "succeeded", removed["error"]
    result = removed["result"]
    assert (result["version"], result["removed"], result["edits_left"]) == ("entries:2", ["1.0"], 1)
    assert result["edit_accuracy"]["count"] == 1 and result["held_out"] > 0
    assert [e["id"] for e in service.get("/models/entries/versions/2/entries")["data"]] == ["1.1"]
    asked["model"] = "entries@production"
    fired = [each["match"] for each in service.post("/predict", asked)["predictions"]]
    assert all(each is None or each["edit_id"] == "1.1" for each in fired) and fired[1]
    assert service.answers("entries:1", CHOSEN) == [edit["target"] for edit in edits]
    assert service.orphaned_blobs() == orphans
