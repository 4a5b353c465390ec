"""Trains the scope judge: a sentence encoder that reads two texts at once and says if they are one question.

    python -m worker.judge.train FACTS OUT --encoder FOLDER [--steps 1700]

FACTS is a folder with zsre.jsonl and wikibigedit.jsonl: rows 1,001 to 3,000 train, rows 501 to 1,000
validate. The encoder stays frozen; low-rank updates of its matrices (Hu et al., "LoRA", ICLR 2022) and a
linear head are trained with binary cross-entropy. A cross-encoder sees both texts in every layer, which a
comparison of two embeddings cannot (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, section 6).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from salem.models.folders import weights_sha256
from salem.scope.encoder import COSINE_WEIGHT, ScopeEncoder
from salem.scope.encoder_files import load_encoder
from salem.scope.judge_files import pack_judge
from worker.judge.pairs import Fact, Pair, everyday_pairs, fact_pairs, library_pairs, read_facts

RANK = 16
LEARNING_RATE = 5e-4
GROUPS, NEGATIVES = 8, 4  # per step: keys, each with one positive and this many negatives
MOST_TOKENS = 96
CHECK_EVERY = 200
WARM_UP = 100  # steps
ACCEPTED = 0.95  # share of unseen paraphrases that the bound accepts
POSITIVE_WEIGHT = 2.0  # of the one positive among the negatives of a key


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a trained update b a of rank r."""

    def __init__(self, base: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(
            torch.randn(RANK, base.in_features, generator=generator) / base.in_features**0.5
        )
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """[.., d_in] -> [.., d_out]"""
        base: Tensor = self.base(x)
        return base + x @ self.a.T @ self.b.T


class Judge(nn.Module):
    """Logits that two texts are the same question."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.encoder.requires_grad_(False)
        self.most_tokens = min(MOST_TOKENS, self.encoder.config.max_position_embeddings)
        for path, module in list(self.encoder.named_modules()):
            if isinstance(module, nn.Linear) and ".layer." in f".{path}":
                parent = self.encoder.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], LowRankLinear(module, generator))
        self.head = nn.Linear(self.encoder.config.hidden_size, 1)

    def forward(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Texts [n] and texts [n] -> [n]"""
        batch = self.tokenizer(
            list(first),
            list(second),
            padding=True,
            truncation=True,
            max_length=self.most_tokens,
            return_tensors="pt",
        )
        states = self.encoder(**batch).last_hidden_state  # [n, t, d]
        mask = batch["attention_mask"][..., None].to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1)
        logits: Tensor = self.head(pooled)[:, 0]
        return logits

    def trained(self) -> dict[str, Tensor]:
        """The trained tensors as `salem.scope.judge_files` names them."""
        updates = {
            name: value.detach() for name, value in self.encoder.named_parameters() if value.requires_grad
        }
        return updates | {"head": self.head.weight.detach()[0], "bias": self.head.bias.detach()}


def draw_groups(facts: Sequence[Fact], rng: random.Random) -> Iterator[Pair]:
    """The pairs of one step."""
    for _ in range(GROUPS):
        chance = rng.random()
        if chance < 0.45:
            yield from library_pairs(rng, NEGATIVES)
        elif chance < 0.85:
            yield from fact_pairs(rng.choice(facts), facts, rng, NEGATIVES)
        else:
            yield from everyday_pairs(rng, NEGATIVES)


def scores(judge: Judge, pairs: Sequence[Pair]) -> list[float]:
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place].key) + len(pairs[place].other))
    found = [0.0] * len(pairs)
    judge.eval()
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            logits = judge([pairs[row].key for row in rows], [pairs[row].other for row in rows])
            for row, logit in zip(rows, logits.tolist(), strict=True):
                found[row] = logit
    judge.train()
    return found


def report(judge: Judge, encoder: ScopeEncoder, pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of each kind of neighbor above the bound that accepts most paraphrases.

    A score is what a text scope compares with its bound: the logit and the weighted cosine.
    """
    keys, others = (encoder.embed(texts) for texts in zip(*((p.key, p.other) for p in pairs), strict=True))
    cosines = COSINE_WEIGHT * (keys * others).sum(-1)
    found = [logit + cosine for logit, cosine in zip(scores(judge, pairs), cosines.tolist(), strict=True)]
    same = sorted(score for score, pair in zip(found, pairs, strict=True) if pair.same)
    bound = same[int((1 - ACCEPTED) * len(same))]
    kinds: dict[str, list[bool]] = defaultdict(list)
    for score, pair in zip(found, pairs, strict=True):
        if not pair.same:
            kinds[pair.kind].append(score > bound)
    return {"bound": round(bound, 3)} | {kind: round(sum(v) / len(v), 4) for kind, v in sorted(kinds.items())}


def learning_rate(step: int, num_steps: int) -> float:
    """A short warm-up, then a straight line down to a twentieth."""
    return LEARNING_RATE * min(1.0, step / WARM_UP) * max(0.05, 1 - step / num_steps)


def train(
    judge: Judge, facts: Sequence[Fact], num_steps: int, rng: random.Random
) -> Iterator[tuple[int, float]]:
    """Train in place; yields each step with its loss."""
    judge.train()
    weights = [weight for weight in judge.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.01)
    for step in range(1, num_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        pairs = list(draw_groups(facts, rng))
        logits = judge([pair.key for pair in pairs], [pair.other for pair in pairs])
        target = torch.tensor([float(pair.same) for pair in pairs])
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(POSITIVE_WEIGHT))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        yield step, loss.item()


def main() -> int:
    """Train, report, and write the weights; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("facts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the sentence encoder")
    parser.add_argument("--steps", type=int, default=1_700)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    paths = [options.facts / f"{name}.jsonl" for name in ("zsre", "wikibigedit")]
    learning = [fact for path in paths for fact in read_facts(path, 1_001, 3_000)]
    unseen = [fact for path in paths for fact in read_facts(path, 501, 1_000)]
    check = random.Random(1)
    held_out = [pair for fact in unseen[::4] for pair in fact_pairs(fact, unseen, check, 6)]
    judge, base = Judge(options.encoder, options.seed), weights_sha256(options.encoder)
    encoder = load_encoder(str(options.encoder))
    assert encoder is not None, "a folder was given"
    began, losses = time.monotonic(), []
    for step, loss in train(judge, learning, options.steps, random.Random(options.seed)):
        losses.append(loss)
        if step % 25 == 0:
            print(f"{step} {sum(losses[-25:]) / 25:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if step % CHECK_EVERY == 0 or step == options.steps:
            measured = report(judge, encoder, held_out)
            print(json.dumps({"step": step} | measured), flush=True)
            packed = pack_judge(judge.trained(), measured["bound"], base_sha256=base)
            options.out.write_bytes(packed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
