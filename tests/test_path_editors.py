"""The life of an editor over HTTP: a corpus trains it, an edit takes one pass of it, a removal another.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from editor_corpora import LAYER, QUICK, corpus, new_edits
from labelled_texts import save_labelled
from running_service import Service

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")


def salem(service: Service, *words: str) -> Any:
    """What the command line prints, as JSON."""
    url = {"SALEM_URL": str(service.client.base_url)}
    command = [sys.executable, "-m", "app.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **url}, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_an_editor_is_trained_once_and_serves_new_edits_in_one_pass(service: Service, tmp_path: Path) -> None:
    root = service.settings.effective_models_root
    reference = save_labelled(root, "ahead", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("ahead", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    file = tmp_path / "corpus.json"
    options = QUICK.model_dump(mode="json") | {"num_together": 1, "num_steps": 40}
    edits = [edit.model_dump(mode="json") for edit in corpus()]
    file.write_text(json.dumps({"edits": edits, "options": options}))
    job = salem(service, "editors", "train", str(file), "--model", "ahead", "--name", "first", "--wait")
    result = job["result"]
    assert (job["state"], result["held_out"], result["layer"]) == ("succeeded", 12, LAYER)
    (listed,) = salem(service, "editors", "list", "--model", "ahead", "--json")
    assert listed == service.get(f"/editors/{result['editor']}") == service.get("/editors")["data"][0]
    assert (listed["name"], listed["num_trained_on"], listed["blob"]) == (
        "first",
        36,
        result["editor_sha256"],
    )

    fresh = [edit.model_dump(mode="json") for edit in new_edits(4)]
    file.write_text(json.dumps(fresh))
    words = ("edits", "post", str(file), "--model", "ahead", "--editor", listed["id"], "--wait")
    made = salem(service, *words)["result"]
    assert made["editor"] == {"id": listed["id"], "way": "one pass"} and made["layer"] == LAYER
    version = service.get("/models/ahead/versions/1")
    assert version["hyperparameters"]["recipe"] == "mend" and version["layer"] == LAYER
    outcomes = [each for each in version["metrics"]["outcomes"] if each["kind"] == "edit"]
    held = [each["input"] for each in outcomes if each["correct"]]
    assert held and service.answers("ahead:1", held) == [e["after"] for e in outcomes if e["correct"]]
    again = service.edit("ahead", fresh, options={"editor": listed["id"], "seed": 0})
    assert again["result"]["delta_sha256"] == made["delta_sha256"]
    assert not service.orphaned_blobs()
