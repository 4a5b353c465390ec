"""The whole path over HTTP: a model is hosted, corrected, measured, corrected again, and answers.

Everything is real: `salem serve` with its private Redis and a worker that forks a work-horse per job.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from labeled_texts import TEXTS, other_label, own_answers, save_labeled
from running_service import Document, Service
from tiny_models import LABELS

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

NUM_WRONG = 9
PHASES = ["waiting", "loading", "predicting", "saliency", "training", "evaluating", "writing", "done"]
QUICK = {"max_steps": 40, "kl_weight": 0.0}
FIRM = QUICK | {"margin": 3.0}
FORCEFUL = FIRM | {"recipe": "mend", "null_space_rank": 0, "learning_rate": 0.03}
OPTIONS = {"scoped": FIRM, "mend": FIRM | {"null_space_rank": 0}, "paper": QUICK}
LAST_LAYER = "bert.encoder.layer.2.output.dense"
TEXT = "my lamp is broken"
REWORDED = (f"{TEXT} now", f"{TEXT} today")


@pytest.fixture(scope="module")
def classifier(service: Service) -> str:
    """A ready classifier; no other test makes a version of it."""
    host(service, "intents", "bert", Task.SEQUENCE_CLASSIFICATION)
    return "intents"


def host(service: Service, name: str, architecture: str, task: Task) -> Document:
    root = service.settings.effective_models_root
    reference = save_labeled(root, name, architecture, task, NUM_WRONG)
    job = service.register(name, task, reference)
    assert job["state"] == "succeeded", job["error"]
    return job


def correction(service: Service, model: str, text: str = TEXT, paraphrases: Sequence[str] = ()) -> Document:
    """An edit that changes the label that a model gives now."""
    label = service.answers(model, [text])[0]
    return {"input": text, "target": other_label(label), "paraphrases": list(paraphrases)}


def weights_sha256(service: Service, name: str) -> str:
    weights = service.settings.effective_models_root / name / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def succeeded(job: Document) -> Document:
    assert job["state"] == "succeeded", job["error"]
    result: Document = job["result"]
    return result


def test_registration_describes_the_model_and_measures_it(service: Service) -> None:
    job = host(service, "registered", "bert", Task.SEQUENCE_CLASSIFICATION)
    model = service.get("/models/registered")
    assert model["state"] == "ready"
    assert model["sha256"] == job["result"]["sha256"] == weights_sha256(service, "registered")
    assert tuple(model["labels"]) == LABELS and model["architecture"] == "BertForSequenceClassification"
    assert model["max_input_tokens"] > 0 and model["layers"]
    right = len(TEXTS) - NUM_WRONG
    assert model["num_pass_samples"] == right and 0 < model["num_held_out"] < right
    assert model["reference_accuracy"]["value"] == pytest.approx(right / len(TEXTS))
    assert model["reference_accuracy"]["count"] == len(TEXTS)


def test_an_edit_goes_from_corrected_samples_to_a_measured_version_that_answers(
    service: Service, classifier: str
) -> None:
    edit = correction(service, classifier, paraphrases=REWORDED)
    before = own_answers(
        service.settings.effective_models_root / classifier, Task.SEQUENCE_CLASSIFICATION, TEXTS
    )
    body = {"model": classifier, "edits": [edit], "alias": "production", "options": FIRM}
    accepted = service.client.post("/edits", json=body)
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/jobs/{accepted.json()['id']}"
    seen = [accepted.json(), *service.watch(accepted.json()["id"])]
    check_course(seen)
    check_saliency(service.get(f"/models/{classifier}"), seen[-1])
    check_version(service, classifier, seen[-1], edit)
    # base, version and alias: the same texts, the right ones changed
    assert service.answers(classifier, TEXTS) == before
    assert service.answers(f"{classifier}:1", [TEXT]) == [edit["target"]]
    assert service.answers(f"{classifier}@production", [TEXT]) == [edit["target"]]
    answered = service.post("/predict", {"model": f"{classifier}@production", "inputs": [TEXT]})
    assert answered["model"] == f"{classifier}:1"
    assert sum(answered["predictions"][0]["scores"].values()) == pytest.approx(1, abs=1e-4)


def check_course(seen: Sequence[Document]) -> None:
    """States, phases, and progress only go forward."""
    states = list(dict.fromkeys(job["state"] for job in seen))
    assert states == ["queued", "running", "succeeded"]
    phases = list(dict.fromkeys(job["phase"] for job in seen))
    assert phases == sorted(phases, key=PHASES.index)
    assert {"waiting", "done"} < set(phases)
    progress = [job["progress"] for job in seen]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1
    assert any(0 < share < 1 for share in progress)
    assert seen[-1]["attempt"] == 1 and seen[-1]["error"] is None
    assert seen[-1]["created_at"] <= seen[-1]["started_at"] <= seen[-1]["finished_at"]


def check_saliency(model: Document, job: Document) -> None:
    """Every layer has a score, and the chosen layer was edited."""
    assert [score["layer"] for score in job["saliency"]] == [layer["path"] for layer in model["layers"]]
    assert all(score["score"] > 0 for score in job["saliency"])
    assert [score["layer"] for score in job["saliency"] if score["chosen"]] == [job["result"]["layer"]]


def check_version(service: Service, model: str, job: Document, edit: Document) -> None:
    """The version has its description and metrics, and agrees with its job."""
    version, result = service.get(f"/models/{model}/versions/1"), succeeded(job)
    metrics = version["metrics"]
    assert result["version"] == f"{model}:1" and version["job_id"] == job["id"] and version["parent"] == 0
    assert [delta["blob"] for delta in version["deltas"]] == [result["delta_sha256"]]
    assert version["options"]["max_steps"] == QUICK["max_steps"]
    assert metrics["protocol"] == "argmax"
    assert metrics["edit_accuracy"] == result["edit_accuracy"] and metrics["edit_accuracy"]["value"] == 1
    assert metrics["generalization"]["count"] == metrics["adapt_accuracy"]["count"] == 1
    assert metrics["drawdown"]["count"] == result["held_out"] > 20
    outcomes = service.get(f"/models/{model}/versions/1/outcomes")["data"]
    assert [outcome["kind"] for outcome in outcomes] == ["edit", "adapt", "held_out_paraphrase"]
    first = outcomes[0]
    assert (first["input"], first["after"], first["correct"]) == (TEXT, edit["target"], True)
    assert first["before"] != first["after"]
    flips = service.get(f"/models/{model}/versions/1/flips")["data"]
    broken = sum(flip["broken"] for flip in flips)
    assert metrics["drawdown"]["value"] == pytest.approx(broken / metrics["drawdown"]["count"])
    unchanged = metrics["locality"]["value"] * metrics["locality"]["count"]
    assert metrics["locality"]["count"] - unchanged == pytest.approx(len(flips))
    changed = [flip["before"] != flip["after"] and flip["input"] in TEXTS for flip in flips]
    assert changed == [True] * len(flips)


@pytest.mark.parametrize(
    ("architecture", "task", "layer"),
    [
        ("t5", Task.TEXT2TEXT_GENERATION, "decoder.block.1.layer.2.DenseReluDense.wo"),
        ("gpt2", Task.TEXT_GENERATION, "transformer.h.2.mlp.c_proj"),
        ("llama", Task.TEXT_GENERATION, "model.layers.2.mlp.down_proj"),
    ],
)
def test_a_generating_model_is_corrected_and_its_base_stays(
    service: Service, architecture: str, task: Task, layer: str
) -> None:
    host(service, architecture, architecture, task)
    sha256, before = weights_sha256(service, architecture), service.answers(architecture, [TEXT])
    edit = {"input": TEXT, "target": "log", "paraphrases": REWORDED}
    options = FORCEFUL | {"layer": layer, "max_pass_samples": 20, "max_held_out": 20, "max_steps": 60}
    job = service.edit(architecture, [edit], options=options)
    assert succeeded(job)["version"] == f"{architecture}:1" and job["result"]["layer"] == layer
    metrics = service.get(f"/models/{architecture}/versions/1")["metrics"]
    assert metrics["protocol"] == "free generation" and metrics["edit_accuracy"]["value"] == 1
    assert service.answers(f"{architecture}:1", [TEXT]) == ["log"]
    assert service.answers(architecture, [TEXT]) == before != ["log"]
    assert weights_sha256(service, architecture) == sha256


def test_recipes_build_on_one_another_and_the_base_is_never_written(service: Service) -> None:
    host(service, "stacked", "bert", Task.SEQUENCE_CLASSIFICATION)
    sha256, parent = weights_sha256(service, "stacked"), "stacked"
    texts = {"paper": "please send the lamp back", "mend": TEXT, "scoped": "the book is in Rome"}
    for number, (recipe, text) in enumerate(texts.items(), start=1):
        edit = correction(service, parent, text)
        job = service.edit(parent, [edit], options=OPTIONS[recipe] | {"recipe": recipe, "layer": LAST_LAYER})
        assert succeeded(job)["version"] == f"stacked:{number}", job
        version = service.get(f"/models/stacked/versions/{number}")
        assert version["parent"] == number - 1 and len(version["deltas"]) == number
        assert version["options"]["recipe"] == recipe
        assert (version["deltas"][-1]["kind"] == "scoped") == (recipe == "scoped")
        parent = f"stacked:{number}"
        assert service.answers(parent, [text]) == [edit["target"]]
    assert [version["number"] for version in service.versions("stacked")] == [3, 2, 1]
    assert weights_sha256(service, "stacked") == sha256 == service.get("/models/stacked")["sha256"]


def test_the_same_request_and_seed_give_the_same_delta(service: Service, classifier: str) -> None:
    edit = correction(service, classifier, "the door is not mine", ["this door is not mine"])
    options = FIRM | {"layer": LAST_LAYER}

    def digest(seed: int) -> Any:
        return succeeded(service.edit(classifier, [edit], options=options | {"seed": seed}))["delta_sha256"]

    digest(7)  # the first job of a model trains its scope metric; later jobs are given it
    first = digest(7)
    assert digest(7) == first
    assert digest(8) != first


@pytest.mark.parametrize("num_paraphrases", [0, 1])
def test_without_a_held_out_paraphrase_generalization_is_not_measured(
    service: Service, classifier: str, num_paraphrases: int
) -> None:
    edit = correction(service, classifier, paraphrases=REWORDED[:num_paraphrases])
    result = succeeded(service.edit(classifier, [edit], options=FIRM))
    assert result["generalization"] is None
    assert any("no edit has two or more paraphrases" in note for note in result["notes"])
    assert (result["adapt_accuracy"] is None) == (num_paraphrases == 0)


def test_a_clients_own_pass_samples_replace_the_reference_set(service: Service, classifier: str) -> None:
    texts = [f"{text} please" for text in TEXTS[:30]]
    kept = [
        {"input": text, "target": answer}
        for text, answer in zip(texts, service.answers(classifier, texts), strict=True)
    ]
    edit = correction(service, classifier)
    result = succeeded(service.edit(classifier, [edit], pass_samples=kept, options=FIRM))
    assert 0 < result["held_out"] < len(kept)
    number = result["version"].partition(":")[2]
    flips = service.get(f"/models/{classifier}/versions/{number}/flips")["data"]
    assert {flip["input"] for flip in flips} <= set(texts)
