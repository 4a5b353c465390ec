"""The scope encoder: a small sentence encoder that compares texts, whatever model is hosted.

It reads texts alone, so what fires is known before the hosted model runs. Three readings, each finer and more
expensive than the one before:

- `bags`: a weighted bag of the encoder's own token embeddings (Arora et al., "A Simple but Tough-to-Beat
  Baseline for Sentence Embeddings", ICLR 2017). It rules out most unrelated texts in a fraction of a
  millisecond.
- `embed`: one embedding per text, the mean of the token states (Reimers and Gurevych, "Sentence-BERT", EMNLP
  2019).
- `judge`: one score per pair of texts, which the encoder reads together, with low-rank updates of its weights
  (`salem.scope.judge`).

Must not know scopes, hosted models, or how the judge was trained.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from salem.scope.token_means import token_means

MOST_TOKENS = 96  # of a text, or of a pair of texts; the rest is not read
BAG_SIZE = 128  # dimensions of a bag
BATCH = 64  # texts that are read at a time
COSINE_WEIGHT = 5.0  # of the cosine of two embeddings, beside the judge's logit
COSINE_BOUND = 0.86  # without a judge: the cosine above which two texts usually are the same question
_SHORT_WEIGHT = 0.02  # of a token that is a single character
_KEPT = 16_384  # embeddings and scores that are remembered

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Judge:
    """The encoder as a cross-encoder: it reads two texts at once."""

    model: nn.Module  # the encoder with low-rank updates merged into its weights
    head: Tensor  # [d] from the mean token state to a logit
    bias: float
    bound: float  # the score above which two texts usually are the same question


class ScopeEncoder:
    """Compares texts. Threads may share it."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, judge: Judge | None, sha256: str
    ) -> None:
        self.sha256 = sha256  # of everything that decides: weights, tokenizer, and judge
        self.bound = judge.bound if judge else COSINE_WEIGHT * COSINE_BOUND
        embeddings: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        self.width = embeddings.shape[1]  # numbers in an embedding
        self._tokenizer = tokenizer
        self._model = token_means(model, tokenizer)
        self._judge = judge and replace(judge, model=token_means(judge.model, tokenizer))
        positions = getattr(model.config, "max_position_embeddings", MOST_TOKENS)
        self._most_tokens = min(MOST_TOKENS, int(positions))
        self._table = bag_table(embeddings, tokenizer)
        self._words = frozenset(tokenizer.get_vocab())
        self._embeddings: _Memory[str, Tensor] = _Memory()
        self._scores: _Memory[tuple[str, str], float] = _Memory()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, of the judge's, and of the table of bags."""
        models = [self._model, self._judge.model] if self._judge else [self._model]
        distinct = {id(value): value for model in models for value in model.parameters()}
        return sum(value.numel() * value.element_size() for value in (*distinct.values(), self._table))

    def is_word(self, word: str) -> bool:
        """Whether a word in lower case is one token: a common word or name."""
        return word in self._words

    def tokens_per_word(self, texts: Sequence[str]) -> float:
        """How many tokens a word has on average: more in a language that the encoder does not know."""
        tokens = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, tokens)) / max(1, sum(len(text.split()) for text in texts))

    @torch.inference_mode()
    def bags(self, texts: Sequence[str]) -> Tensor:
        """Bags of tokens [n, BAG_SIZE], unit rows; a text without tokens has a row of zeros."""
        if not texts:
            return torch.zeros(0, BAG_SIZE)
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [ids[:MOST_TOKENS] for ids in encoded]
        lengths = torch.tensor([len(ids) for ids in rows])
        flat = torch.tensor([token for ids in rows for token in ids], dtype=torch.long)
        summed = F.embedding_bag(flat, self._table, lengths.cumsum(0) - lengths, mode="sum")
        return F.normalize(summed, dim=-1)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [n, d], unit rows."""
        if not texts:
            return torch.zeros(0, self.width)
        return torch.stack(self._embeddings.each(texts, self._embed))

    def score(self, pairs: Sequence[tuple[str, str]], cosines: Sequence[float]) -> list[float]:
        """How surely the two texts of each pair, a key's and another, are the same question.

        The judge's logit plus the weighted cosine of the two embeddings, which the caller knows.
        """
        logits = self._scores.each(pairs, self._judged)
        return [logit + COSINE_WEIGHT * cosine for logit, cosine in zip(logits, cosines, strict=True)]

    def _embed(self, texts: Sequence[str]) -> list[Tensor]:
        return list(F.normalize(self._means(self._model, texts), dim=-1).unbind())

    def _judged(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        judge = self._judge
        if judge is None:
            return [0.0] * len(pairs)
        means = self._means(judge.model, *zip(*pairs, strict=True))
        logits: list[float] = (means @ judge.head + judge.bias).tolist()
        return logits

    @torch.inference_mode()
    def _means(self, model: nn.Module, first: Sequence[str], second: Sequence[str] | None = None) -> Tensor:
        """Mean token states [n, d] of texts or pairs, in batches of similar length."""
        limits = {"truncation": True, "max_length": self._most_tokens}
        fields = self._tokenizer(list(first), second and list(second), **limits)
        order = sorted(range(len(first)), key=lambda row: len(fields["input_ids"][row]))
        means = torch.empty(len(first), self.width)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            means[rows] = model({name: [lists[row] for row in rows] for name, lists in fields.items()})
        return means


def bag_table(embeddings: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What each token adds to a bag -> [vocabulary, BAG_SIZE].

    The token's embedding without the mean, along the directions in which embeddings differ most, times the
    square of the token's rarity. Vocabularies list frequent tokens first, so a token's place tells its rarity
    (Zipf's law): no table of frequencies is needed. Single characters say least.
    """
    centered = embeddings.float() - embeddings.float().mean(0)
    _, directions = torch.linalg.eigh(centered.T @ centered)  # ascending
    size = min(BAG_SIZE, centered.shape[1])
    table = F.pad(centered @ directions[:, -size:], (0, BAG_SIZE - size))
    texts = tokenizer.convert_ids_to_tokens(list(range(len(embeddings))))
    weights = torch.full((len(embeddings),), _SHORT_WEIGHT)
    special = set(tokenizer.all_special_tokens)
    long = [place for place, text in enumerate(texts) if len(_plain(text)) > 1 and text not in special]
    for rank, place in enumerate(long, start=2):
        weights[place] = (math.log(rank) / math.log(len(long) + 1)) ** 2
    return table * weights[:, None]


def _plain(token: str | None) -> str:
    """A token without the marks that tokenizers put at the start of a word or inside one."""
    return (token or "").removeprefix("##").removeprefix("▁").removeprefix("Ġ")


class _Memory(Generic[K, V]):
    """The newest results, by what they are of. Threads may share it."""

    def __init__(self) -> None:
        self._known: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def each(self, items: Sequence[K], find: Callable[[Sequence[K]], list[V]]) -> list[V]:
        """The result of each item; `find` is called once, with the distinct items that are new."""
        with self._lock:
            known = {item: self._known[item] for item in items if item in self._known}
        new = [item for item in dict.fromkeys(items) if item not in known]
        if new:
            known.update(zip(new, find(new), strict=True))
            with self._lock:
                self._known.update((item, known[item]) for item in new)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return [known[item] for item in items]
