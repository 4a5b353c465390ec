"""Tokenizers without their models: as many as models fit in memory, least recently used out first.

A tokenizer is needed before its model is loaded: the API checks the length of each text of a request and
quotes texts in messages. Must not know what loads a tokenizer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from salem.models import tokens
from salem.models.chat import TurnFinder
from salem.records import TextInput


@dataclass(frozen=True)
class LockedTokenizer:
    """A hosted model's tokenizer. Two threads may not use it at once, so each use holds a lock."""

    tokenizer: PreTrainedTokenizerBase
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, inputs: Sequence[TextInput]) -> list[int]:
        with self.lock:
            return tokens.count_tokens(self.tokenizer, inputs)

    @cached_property
    def turns(self) -> TurnFinder:
        """Finds the last user turn in a prompt of a chat model."""
        with self.lock:
            return TurnFinder.of(self.tokenizer)


class TokenizerCache:
    """Tokenizers by the identity of their model. Threads share it."""

    def __init__(self, max_tokenizers: int) -> None:
        self._max_tokenizers = max_tokenizers
        self._tokenizers: OrderedDict[str, LockedTokenizer] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokenizers)

    def get(self, key: str, load: Callable[[], PreTrainedTokenizerBase]) -> LockedTokenizer:
        """The tokenizer of a model; `load` reads it if it is not kept."""
        with self._lock:
            tokenizer = self._tokenizers.get(key)
        if tokenizer is None:
            tokenizer = LockedTokenizer(load())
        with self._lock:
            tokenizer = self._tokenizers.setdefault(key, tokenizer)
            self._tokenizers.move_to_end(key)
            while len(self._tokenizers) > self._max_tokenizers:
                self._tokenizers.popitem(last=False)
        return tokenizer

    def clear(self) -> None:
        with self._lock:
            self._tokenizers.clear()
