"""Forgetting over HTTP: an answer is forgotten, and its entry is listed and removed.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import sys

import pytest
from labeled_texts import TEXTS, other_label, save_labeled
from running_service import Service

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

QUICK = {"max_steps": 60, "kl_weight": 0.0, "margin": 3.0, "max_pass_samples": 40, "max_held_out": 20}


def test_a_label_is_forgotten_listed_and_taken_back(service: Service) -> None:
    root = service.settings.effective_models_root
    reference = save_labeled(root, "forgetful", "bert", Task.SEQUENCE_CLASSIFICATION)
    assert service.register("forgetful", Task.SEQUENCE_CLASSIFICATION, reference)["state"] == "succeeded"
    texts = (TEXTS[20], TEXTS[45])
    one, two = service.answers("forgetful", texts)
    reworded = [f"{texts[0]} please", f"well {texts[0]}"]
    edits = [
        {"input": texts[0], "target": None, "forget": one, "paraphrases": reworded},
        {"input": texts[1], "target": other_label(two)},
    ]
    options = QUICK | {"layer": "bert.encoder.layer.1.output.dense"}
    job = service.edit("forgetful", edits, options=options)
    assert job["state"] == "succeeded", job["error"]
    after = service.answers("forgetful:1", texts)
    assert after[0] != one and after[1] == other_label(two)
    metrics = service.get("/models/forgetful/versions/1")["metrics"]
    extent = job["result"]["forgetting"]
    assert extent == metrics["forgetting"] and extent["edit"]["count"] == 1
    assert extent["edit"]["rank_before"] == 1 < extent["edit"]["rank_after"]
    assert extent["edit"]["probability_after"] < extent["edit"]["probability_before"]
    assert extent["adapt"]["count"] == extent["held_out_paraphrase"]["count"] == 1
    scores = service.post("/predict", {"model": "forgetful:1", "inputs": [texts[0]]})["predictions"][0][
        "scores"
    ]
    assert scores[one] == pytest.approx(extent["edit"]["probability_after"], abs=1e-4)
    entries = service.get("/models/forgetful/versions/1/entries")["data"]
    assert [(entry["target"], entry["forget"]) for entry in entries] == [
        (None, one),
        (other_label(two), None),
    ]
    asked = {"model": "forgetful:1", "inputs": [texts[0]], "explain": True}
    assert service.post("/predict", asked)["predictions"][0]["match"]["edit_id"] == "1.0"

    body = {"edits": ["1.1"]}
    removed = service.wait(service.post("/models/forgetful/versions/1/removals", body)["id"])
    assert removed["state"] == "succeeded", removed["error"]
    assert service.answers("forgetful:2", texts[:1]) == after[:1]
    # what the parent did is what the entry left of it: nothing more is forgotten by the removal
    left = removed["result"]["forgetting"]["edit"]
    assert left["rank_before"] == left["rank_after"] == extent["edit"]["rank_after"]


@pytest.mark.parametrize(
    ("architecture", "task", "layer"),
    [
        ("bart", Task.TEXT2TEXT_GENERATION, "model.decoder.layers.1.fc2"),
        ("llama", Task.TEXT_GENERATION, "model.layers.1.mlp.down_proj"),
    ],
)
def test_a_text_is_forgotten(service: Service, architecture: str, task: Task, layer: str) -> None:
    name = f"forgetful-{architecture}"
    reference = save_labeled(service.settings.effective_models_root, name, architecture, task)
    assert service.register(name, task, reference)["state"] == "succeeded"
    known = min((sample for sample in reference), key=lambda sample: len(sample["target"]))
    edit = {"input": known["input"], "forget": known["target"]}
    assert service.answers(name, [known["input"]]) == [known["target"]]
    job = service.edit(name, [edit], options=QUICK | {"layer": layer})
    assert job["state"] == "succeeded", job["error"]
    assert job["result"]["edit_accuracy"]["value"] == 1 and job["result"]["failing_before"] == 1
    assert service.answers(f"{name}:1", [known["input"]]) != [known["target"]]
    assert service.answers(name, [known["input"]]) == [known["target"]], "the base still knows"
    assert job["result"]["forgetting"]["edit"]["count"] == 1


def test_bad_requests_name_the_sample_and_a_remedy(service: Service) -> None:
    model = service.get("/models")["data"][0]["name"]
    label = service.get(f"/models/{model}")["labels"][0]
    edits = [
        {"input": "a"},
        {"input": "b", "target": label, "forget": label},
        {"input": "c", "forget": "nothing of the kind"},
    ]
    body = {"model": model, "edits": edits, "options": {"recipe": "ridge"}}
    response = service.client.post("/edits", json=body)
    assert response.status_code == 422
    places = {error["pointer"] for error in response.json()["errors"]}
    assert places == {"/edits/0/target", "/edits/1/forget", "/edits/2/forget", "/options/recipe"}
    kept = {"model": model, "edits": edits[:1], "pass_samples": [{"input": "x", "forget": label}]}
    assert service.client.post("/edits", json=kept).status_code == 422
