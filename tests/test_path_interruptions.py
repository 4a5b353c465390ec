"""Interruptions between a request and its version, over HTTP: cancelling, killed processes, bad models.

At least one attempt runs; at most one takes effect.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest
from labeled_texts import TEXTS, other_label, save_labeled
from running_service import Document, Service, alive, wait_until
from tiny_models import save_tiny

from salem.records import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the private Redis is a Linux binary")

CANCELLED_WITHIN_S = 5.0
LAST_LAYER = "bert.encoder.layer.2.output.dense"
TRAINING = {"max_steps": 40, "kl_weight": 0.0, "layer": LAST_LAYER}
QUICK = TRAINING | {"recipe": "mend", "null_space_rank": 0}
ENDLESS = TRAINING | {"max_steps": 5_000, "learning_rate": 1e-9}  # never holds, never stops


@pytest.fixture(scope="module")
def model(service: Service) -> str:
    reference = save_labeled(
        service.settings.effective_models_root, "robust", "bert", Task.SEQUENCE_CLASSIFICATION
    )
    job = service.register("robust", "sequence-classification", reference)
    assert job["state"] == "succeeded", job["error"]
    return "robust"


def request_edit(service: Service, model: str, options: Document) -> str:
    """Request an edit, and return the job's id."""
    text = "my lamp is broken"
    edit = {"input": text, "target": other_label(service.answers(model, [text])[0])}
    job_id: str = service.post("/edits", {"model": model, "edits": [edit], "options": options})["id"]
    return job_id


def begun(service: Service, job_id: str) -> int:
    """Wait for a job's work-horse and stop it, so that the test can kill it in the middle of the job."""
    wait_until(lambda: service.get(f"/jobs/{job_id}")["state"] == "running")
    work_horse = service.work_horse()
    os.kill(work_horse, signal.SIGSTOP)
    return work_horse


def test_a_cancelled_job_ends_within_seconds_and_leaves_nothing(service: Service, model: str) -> None:
    versions, orphans = service.versions(model), service.orphaned_blobs()
    running, queued = (request_edit(service, model, ENDLESS) for _ in range(2))
    wait_until(lambda: service.get(f"/jobs/{running}")["phase"] == "training")
    work_horse = service.work_horse()
    for job_id in (queued, running):
        asked_at = time.monotonic()
        assert service.post(f"/jobs/{job_id}/cancel", {})["state"] == "cancelled"
        job = service.wait(job_id, CANCELLED_WITHIN_S)
        assert job["state"] == "cancelled" and job["result"] is None and job["error"] is None
        assert time.monotonic() - asked_at < CANCELLED_WITHIN_S
    wait_until(lambda: not alive(work_horse), CANCELLED_WITHIN_S)
    assert service.client.post(f"/jobs/{running}/cancel").status_code == 409
    assert service.get(f"/jobs/{queued}")["attempt"] == 0
    assert service.versions(model) == versions
    assert service.orphaned_blobs() == orphans


def test_after_a_cancelled_job_the_worker_takes_the_next(service: Service, model: str) -> None:
    job_id = request_edit(service, model, QUICK)
    assert service.wait(job_id)["state"] == "succeeded"


def test_a_killed_work_horse_is_replaced_and_one_version_is_made(service: Service, model: str) -> None:
    before = len(service.versions(model))
    job_id = request_edit(service, model, QUICK)
    os.kill(begun(service, job_id), signal.SIGKILL)
    check_second_attempt(service, model, job_id, before)


def test_a_killed_worker_ends_its_work_horse_and_the_job_runs_again(service: Service, model: str) -> None:
    before = len(service.versions(model))
    job_id = request_edit(service, model, QUICK)
    work_horse = begun(service, job_id)
    os.kill(service.worker_pid, signal.SIGKILL)
    wait_until(lambda: not alive(work_horse), 5)
    check_second_attempt(service, model, job_id, before)


def check_second_attempt(service: Service, model: str, job_id: str, versions_before: int) -> None:
    job = service.wait(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 2), job
    versions = service.versions(model)
    assert len(versions) == versions_before + 1
    assert [version["job_id"] for version in versions].count(job_id) == 1


def test_a_label_that_the_model_lacks_is_named(service: Service) -> None:
    save_tiny(service.settings.effective_models_root / "mislabeled", "bert")
    reference = [{"input": TEXTS[0], "target": "refund"}, {"input": TEXTS[1], "target": "no such label"}]
    job = service.register("mislabeled", "sequence-classification", reference)
    assert job["state"] == "failed" and job["error"]["code"] == "invalid_request"
    assert "/reference/1/target" in job["error"]["message"] and "no such label" in job["error"]["message"]
    assert job["error"]["remedy"]
    assert service.get("/models/mislabeled")["state"] == "failed"


@pytest.mark.parametrize("fault", ["auto_map", "pickled"])
def test_a_folder_that_must_not_be_loaded_is_refused_immediately(service: Service, fault: str) -> None:
    folder = save_tiny(service.settings.effective_models_root / f"refused-{fault}".replace("_", "-"), "bert")
    if fault == "auto_map":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Evil"}}))
    else:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    source = {"kind": "folder", "path": folder.name}
    body = {"name": folder.name, "task": "sequence-classification", "source": source}
    response = service.client.post("/models", json=body | {"reference": [{"input": "a", "target": "login"}]})
    assert response.status_code == 422 and response.json()["code"] == "unsupported_model"
    assert response.json()["remedy"]
    assert str(service.settings.home) not in response.text


def test_weights_that_cannot_be_read_fail_the_job_with_a_remedy(service: Service) -> None:
    folder = save_tiny(service.settings.effective_models_root / "torn", "bert")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    job = service.register("torn", "sequence-classification", [{"input": "a", "target": "login"}])
    assert job["state"] == "failed" and job["error"]["code"] == "unsupported_model", job["error"]
    assert job["error"]["remedy"] and str(service.settings.home) not in json.dumps(job)


def test_the_log_has_one_form_without_colors(service: Service, model: str) -> None:
    request = request_edit(service, model, QUICK)
    assert service.wait(request)["state"] == "succeeded"
    wait_until(lambda: f"job_id={request}" in service.log.read_text())
    log = service.log.read_text()
    assert "\x1b" not in log
    assert "my lamp is broken" not in log  # clients' texts stay out of it
