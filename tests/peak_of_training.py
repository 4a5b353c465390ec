"""Makes one edit in its own process and prints the memory estimate and the real peak as JSON.

Usage: python peak_of_training.py RECIPE TASK tiny|FOLDER NUM_PASS NUM_WORDS. `tiny` is an encoder of four
blocks of width 256 with random weights. The peak is counted from the moment when all is imported and one
small edit has been made, so that what a library takes at its first use is not taken for the job's.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import torch
from recipe_cases import bare_recipe, edit_context, measured
from tiny_models import LABELS, build_network, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig

from salem.models.loading import load
from salem.models.network import Network, as_network
from salem.records import EditBatch, Sample, Task
from worker.attempts.machine_memory import resident_bytes
from worker.pipeline.budget import job_estimate
from worker.recipes.base import Recipe

WORDS = ("where", "is", "my", "order", "and", "when", "will", "the", "parcel", "arrive", "at", "door")
STEPS = {"scoped": {"max_steps": 3}, "mend": {"max_steps": 3}, "paper": {"max_steps": 3}, "ridge": {}}


def wide_network() -> Network:
    config = BertConfig(
        vocab_size=20_000, hidden_size=256, intermediate_size=1_024, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=256, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    return as_network(model, tiny_tokenizer("pairs"), Task.SEQUENCE_CLASSIFICATION)


def some_batch(network: Network, num_edits: int, num_pass: int, num_words: int) -> EditBatch:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=num_words)) for _ in range(num_edits + num_pass)]
    target = "Paris is in Peru" if network.task.generates else network.labels[0]
    samples = [Sample(input=text, target=target) for text in texts]
    return EditBatch(
        edit_samples=tuple(samples[:num_edits]),
        adapt_samples=(),
        pass_samples=tuple(samples[num_edits:]),
        held_out_paraphrases=(),
        held_out_pass_samples=tuple(samples[-30:]),
    )


def edit(network: Network, batch: EditBatch, recipe: Recipe) -> None:
    measured(edit_context(network, batch, recipe, may_fail=True))


def main() -> None:
    name, task, where = sys.argv[1:4]
    num_pass, num_words = (int(number) for number in sys.argv[4:])
    torch.set_num_threads(1)
    recipe, small = bare_recipe(name, **STEPS[name]), build_network("bert")
    edit(small, some_batch(small, 2, 40, 3), recipe)
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of imports for instance, is forgotten
    network = wide_network() if where == "tiny" else load(Path(where), Task(task), device="cpu")
    batch = some_batch(network, 10, num_pass, num_words)
    found = job_estimate(network, batch, recipe)
    edit(network, batch, recipe)
    (highest,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = int(highest) * 1024 - before
    print(json.dumps({"peak": peak, "estimate": found.num_bytes, "parts": vars(found)}))


if __name__ == "__main__":
    main()
