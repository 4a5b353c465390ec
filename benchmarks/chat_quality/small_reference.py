"""How far one edit of a classifier reaches when the model was registered with few reference samples.

The classifier is the demo's: intents of a support desk. One edit with three paraphrases is made, and
sentences that have nothing to do with it are asked. Must not know the chat model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from app.cli.client import Client
from benchmarks.chat_quality.service import finished, host, opened_client, sent
from benchmarks.quality.models import CACHE, only_one
from demo.classifier import fine_tune, fingerprint
from demo.desk import Desk, load_desk
from salem.records import Edit, Sample

NUM_OTHERS = 500  # sentences that are asked
NUM_PARAPHRASES = 3
AT_A_TIME = 250
TASK = "sequence-classification"


def fired_of_others(sizes: Sequence[int], progress: Callable[[str], None]) -> dict[int, int]:
    """On how many of `NUM_OTHERS` other sentences one edit fires, by the size of the reference set."""
    desk = load_desk()
    folder = classifier_folder(desk)
    samples = list(desk.reference)
    random.Random(0).shuffle(samples)
    others, rest = samples[:NUM_OTHERS], samples[NUM_OTHERS:]
    found = {}
    with opened_client() as client:
        for size in sizes:
            progress(f"one edit with {size} reference samples")
            name = f"desk-{size}"
            host(client, name, TASK, folder.name, [Edit(**s.model_dump()) for s in rest[:size]])
            edit = first_wrong(client, name, desk)
            result, _ = finished(client, "/edits", {"model": name, "edits": sent([edit])})
            found[size] = num_fired(client, result["version"], others)
    return found


def first_wrong(client: Client, name: str, desk: Desk) -> Edit:
    """The first ticket that the classifier misroutes, with three paraphrases."""
    inputs = [ticket.input for ticket in desk.tickets]
    answers = client.post("/predict", {"model": name, "inputs": inputs})["predictions"]
    ticket = next(t for t, a in zip(desk.tickets, answers, strict=True) if a["output"] != t.target)
    return ticket.model_copy(update={"paraphrases": ticket.paraphrases[:NUM_PARAPHRASES]})


def num_fired(client: Client, version: str, others: Sequence[Sample]) -> int:
    """How many sentences match a scope of the version."""
    fired = 0
    for start in range(0, len(others), AT_A_TIME):
        inputs = [sample.input for sample in others[start : start + AT_A_TIME]]
        body = {"model": version, "inputs": inputs, "explain": True}
        fired += sum(answer["match"] is not None for answer in client.post("/predict", body)["predictions"])
    return fired


def classifier_folder(desk: Desk) -> Path:
    """The demo's classifier in the benchmark's cache; trains it if it is missing."""
    folder = CACHE / f"desk-{fingerprint(desk)[:16]}"
    with only_one(folder.name):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".part")
            fine_tune(desk, unfinished)
            unfinished.rename(folder)
    return folder
