"""Runs the demo: corrects a support desk's misrouted tickets, applies a new policy, and shows the metrics.

Fine-tunes the classifier (and keeps it for the next run), starts the service, and uses it over HTTP.
The last line of its output is one JSON object. The exit status is 0 only if the edits hold.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from transformers.utils import logging

from app.cli.client import Client, ServiceError
from demo.classifier import fine_tune, fingerprint
from demo.desk import Desk, load_desk
from demo.service import running_service
from demo.show import Screen
from salem.errors import SalemError
from salem.records import Edit, Sample, held_out

FOLDER = Path(__file__).resolve().parent.parent / ".demo"
MODEL = "desk"
ALIAS = "production"
LEAST_EDIT_ACCURACY = 0.95
FIGURES = ("edit_accuracy", "generalization", "drawdown")


def main() -> int:
    """Run the demo; return the exit status."""
    signal.signal(signal.SIGTERM, _end)
    logging.set_verbosity_error()  # hides the warning about the new head
    logging.disable_progress_bar()
    screen = Screen()
    desk = load_desk()
    try:
        prepare(desk, screen, FOLDER)
        with (
            running_service(FOLDER / "home", FOLDER / "models") as url,
            Client(url) as client,
        ):
            screen.say(f"The service is running at {url}, with its worker, queue, and database.")
            outcome = correct(desk, client, screen)
    except (SalemError, ServiceError) as error:
        screen.say(" ".join([error.message, error.remedy or ""]))
        outcome = {"state": "failed", "error": error.message}
    except KeyboardInterrupt:
        screen.say("Stopped.")
        return 130
    print(json.dumps(outcome), flush=True)
    return 0 if holds(outcome) else 1


def prepare(desk: Desk, screen: Screen, folder: Path) -> None:
    """Write the reference set to `folder`, and train the classifier unless an identical one is there."""
    folder.mkdir(exist_ok=True)
    lines = (sample.model_dump_json(exclude_none=True) for sample in desk.reference)
    (folder / "reference.jsonl").write_text("".join(f"{line}\n" for line in lines))
    model, stamp = folder / "models" / MODEL, folder / "classifier.sha256"
    made_from = fingerprint(desk)
    if model.is_dir() and stamp.is_file() and stamp.read_text() == made_from:
        screen.say("Using the classifier from an earlier run.")
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    began = time.monotonic()
    with screen.track(f"fine-tuning on {len(desk.training)} sentences") as report:
        fine_tune(desk, model, lambda share: report("", share, _time_left(began, share)))
    stamp.write_text(made_from)


def correct(desk: Desk, client: Client, screen: Screen) -> dict[str, Any]:
    """Host the classifier, correct its errors, and show the results; return the last line of output."""
    registered = register(desk, client, screen)
    if registered["state"] != "succeeded":
        return {"state": registered["state"], "error": registered["error"]}
    edits = choose_edits(desk, client)
    num_policy = len(desk.policy_edits)
    screen.say(f"Correcting {len(edits) - num_policy} misrouted tickets and {num_policy} policy sentences")
    job, seconds = post_edits(edits, client, screen)
    if job["state"] != "succeeded":
        return {"state": job["state"], "error": job["error"]}
    result = job["result"]
    number = result["version"].partition(":")[2]
    outcomes = client.get_all(f"/models/{MODEL}/versions/{number}/outcomes", "position")
    screen.saliency(job["saliency"])
    screen.edits(outcomes)
    screen.figures(result)
    compare(desk, outcomes, client, screen)
    return summary(result, seconds)


def register(desk: Desk, client: Client, screen: Screen) -> dict[str, Any]:
    """Upload the reference set and host the classifier; return the finished job."""
    lines = "".join(f"{sample.model_dump_json(exclude_none=True)}\n" for sample in desk.reference)
    reference = client.upload("/references", lines.encode())
    body = {
        "name": MODEL,
        "task": "sequence-classification",
        "source": {"kind": "folder", "path": MODEL},
        "reference_sha256": reference["sha256"],
    }
    job = follow(client, client.post("/models", body), "registering", screen)
    if job["state"] == "succeeded":
        accuracy = job["result"]["reference_accuracy"]
        screen.say(
            f"It answers {accuracy['value']:.1%} of {accuracy['count']:,} labeled sentences correctly. "
            f"{job['result']['num_held_out']} of these are held out to measure what breaks."
        )
    return job


def choose_edits(desk: Desk, client: Client) -> list[Edit]:
    """Return the first misrouted ticket of each intent, and the edits for the new policy."""
    inputs = [{"input": ticket.input} for ticket in desk.tickets]
    answers = client.post("/predict", {"model": MODEL, "inputs": inputs})["predictions"]
    misrouted: dict[str, Edit] = {}
    for ticket, answer in zip(desk.tickets, answers, strict=True):
        if answer["output"] != ticket.target:
            misrouted.setdefault(ticket.target, ticket)
    return [*misrouted.values(), *desk.policy_edits]


def post_edits(edits: Sequence[Edit], client: Client, screen: Screen) -> tuple[dict[str, Any], float]:
    """Send the edits and follow the job; return the job and how many seconds it took."""
    body = {
        "model": MODEL,
        "alias": ALIAS,
        "edits": [edit.model_dump(mode="json", exclude_none=True) for edit in edits],
    }
    began = time.monotonic()
    job = follow(client, client.post("/edits", body), f"{len(edits)} edits", screen)
    return job, time.monotonic() - began


def follow(client: Client, job: dict[str, Any], title: str, screen: Screen) -> dict[str, Any]:
    """Show a job's progress until it ends; return the finished job."""
    with screen.track(title) as report:
        return client.wait_for_job(
            job["id"], lambda seen: report(seen["phase"], seen["progress"], seen["time_left_s"])
        )


def compare(desk: Desk, outcomes: Sequence[dict[str, Any]], client: Client, screen: Screen) -> None:
    """Ask the base and the new version the same questions: a held-out paraphrase and neighbors of edits."""
    questions = [unseen_paraphrase(outcomes), *(sample.input for sample in neighbors(desk))]
    names = (f"{MODEL}:0", f"{MODEL}@{ALIAS}")
    inputs = [{"input": question} for question in questions]
    answers = {
        name: client.post("/predict", {"model": name, "inputs": inputs})["predictions"] for name in names
    }
    screen.side_by_side(questions, answers)


def unseen_paraphrase(outcomes: Sequence[dict[str, Any]]) -> str:
    """Return a paraphrase that training never saw, preferably one that a policy edit changed."""
    unseen = [outcome for outcome in outcomes if outcome["kind"] == "held_out_paraphrase"]
    changed = [o for o in unseen if o["target"] == "cancel_membership" and o["before"] != o["after"]]
    return str((changed or unseen[-1:])[0]["input"])


def neighbors(desk: Desk) -> list[Sample]:
    """Return two held-out sentences of the intent that the policy sentences had before."""
    near = [s for s in desk.reference if s.target == "payment_problem" and held_out(s.content_hash)]
    return near[:2]


def summary(result: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the last line of output: the figures, their intervals, and the job's time."""
    return {
        **{name: result[name] and result[name]["value"] for name in FIGURES},
        "job_seconds": round(seconds, 2),
        **{name: result[name] for name in ("delta_bytes", "layer", "held_out", "version")},
        "intervals": {name: result[name] for name in FIGURES},
    }


def holds(outcome: dict[str, Any]) -> bool:
    """Whether the edit accuracy is high enough."""
    accuracy = outcome.get("edit_accuracy")
    return accuracy is not None and accuracy >= LEAST_EDIT_ACCURACY


def _time_left(began: float, share: float) -> float:
    return (time.monotonic() - began) / share * (1 - share)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
