"""Tokenizers that count tokens: as many as models fit in memory, least recently used out first.

A tokenizer is needed before its model is loaded: the API checks the length of each text of a request. Must
not know what loads a tokenizer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from salem.models import tokens
from salem.records import TextInput


@dataclass(frozen=True)
class TokenCounter:
    """A hosted model's tokenizer. Two threads may not use it at once, so counting holds a lock."""

    tokenizer: PreTrainedTokenizerBase
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, inputs: Sequence[TextInput]) -> list[int]:
        with self.lock:
            return tokens.count_tokens(self.tokenizer, inputs)


class TokenizerCache:
    """Token counters by the identity of their model. Threads share it."""

    def __init__(self, max_tokenizers: int) -> None:
        self._max_tokenizers = max_tokenizers
        self._counters: OrderedDict[str, TokenCounter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counters)

    def get(self, key: str, load: Callable[[], PreTrainedTokenizerBase]) -> TokenCounter:
        """The counter of a model; `load` reads its tokenizer if it is not kept."""
        with self._lock:
            counter = self._counters.get(key)
        if counter is None:
            counter = TokenCounter(load())
        with self._lock:
            counter = self._counters.setdefault(key, counter)
            self._counters.move_to_end(key)
            while len(self._counters) > self._max_tokenizers:
                self._counters.popitem(last=False)
        return counter

    def clear(self) -> None:
        with self._lock:
            self._counters.clear()
