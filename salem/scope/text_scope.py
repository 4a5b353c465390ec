"""Text scopes: where an edit applies, decided for each input from its text alone, by the scope encoder.

Each entry owns keys: the texts of its edit and of the paraphrases, each with a bound. An input fires the
entry of the key whose bound its score exceeds most. The stages get finer and more expensive, and each sees
only what the one before lets through: bags of tokens, then one embedding per text, then the judge, which
reads both texts together. Texts that differ by a negation or by a number never match. A mistyped word counts
as the key's word that was meant.

Related work: SERAC's scope classifier (Mitchell et al., "Memory-Based Model Editing at Scale", ICML 2022),
which has one stage and is trained per model. Must not know what an entry does when it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from salem.records import TextInput
from salem.scope.encoder import ScopeEncoder
from salem.scope.firing import Firing, Reading
from salem.scope.lexical import WordCounts, is_text, numbers
from salem.scope.questions import View, views
from salem.scope.spelling import Spelling
from salem.scope.state_scope import joined_columns

BAG_BOUND = 0.6  # cosine of two bags; keeps more than 99% of paraphrases
COSINE_BOUND = 0.55  # cosine of two embeddings; keeps more than 99% of paraphrases
MOST_JUDGED = 3  # keys that the judge compares with one text: those with the largest cosines
EXACT = 20.0  # the score of a key's own words, above all that the judge says
FAR = -20.0  # the margin of an input that no stage let through
LENIENCE = 2.5  # how much less a sentence may score together with the sentences next to it
TIE = 2.0  # a newer delta prevails over an older one unless its margin is smaller by more than this
MOST_BYTES = 2_048  # of a key's text that are kept; the encoder reads fewer
_ROWS = 512  # inputs that are compared at a time


@dataclass(frozen=True)
class TextScope:
    """The keys of entries as texts: `k` keys. All tensors are on the CPU, where the encoder runs."""

    encoder: ScopeEncoder
    keys: Tensor  # [k, d] the encoder's embeddings, unit rows
    bounds: Tensor  # [k] the score above which the gate is open
    owners: Tensor  # [k] the entry that each key belongs to
    texts: Tensor  # [k, w] uint8: the text of each key, padded with zeros

    @classmethod
    def of(cls, encoder: ScopeEncoder, texts: Sequence[str], bounds: Tensor, owners: Tensor) -> TextScope:
        """A scope with these texts as keys; `bounds` and `owners` are [k]."""
        return cls(encoder, encoder.embed(texts), bounds, owners, pack_texts(texts))

    @property
    def reader(self) -> str:
        """sha256 of what compares texts: scopes with the same reader can be joined."""
        return self.encoder.sha256

    @cached_property
    def key_texts(self) -> list[str]:
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in self.texts.numpy()]

    @cached_property
    def _bags(self) -> Tensor:
        return self.encoder.bags(self.key_texts)  # [k, b]

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.key_texts, self.encoder.is_word)

    @cached_property
    def _exact(self) -> dict[str, list[int]]:
        """The keys that have the same words, by these words."""
        found: dict[str, list[int]] = {}
        for key, text in enumerate(self.key_texts):
            found.setdefault(_words(text), []).append(key)
        return found

    def scores(self, questions: Sequence[str], *, thorough: bool = True) -> Tensor:
        """How surely n questions are the same as each key -> [n, k]; FAR where a stage ruled it out.

        Args:
            thorough: whether a text with the very words of a key is compared with the other keys as well.
        """
        parts = [questions[start : start + _ROWS] for start in range(0, len(questions), _ROWS)]
        empty = self.keys.new_zeros(0, len(self.keys))
        return torch.cat([self._scores(part, thorough) for part in parts]) if parts else empty

    def _scores(self, questions: Sequence[str], thorough: bool) -> Tensor:
        seen = [(row, view) for row, question in enumerate(questions) for view in views(question)]
        spelled = {text: self._spelling.corrected(text) for _, view in seen for text in _texts(view)}
        texts = list(dict.fromkeys([*spelled, *spelled.values()]))
        exact = [self._exact.get(_words(text), []) for text in texts]
        scores = self.keys.new_full((len(texts), len(self.keys)), FAR)
        compared = [row for row, keys in enumerate(exact) if thorough or not keys]
        scores[compared] = self._compared([texts[row] for row in compared])
        for row, keys in enumerate(exact):
            scores[row, keys] = EXACT
        place = {text: row for row, text in enumerate(texts)}
        found = scores.new_full((len(questions), len(self.keys)), FAR)
        for row, view in seen:
            own = [torch.maximum(scores[place[text]], scores[place[spelled[text]]]) for text in _texts(view)]
            if view.context is not None:
                own[0] = torch.minimum(own[0], own[1] + LENIENCE)
            found[row] = torch.maximum(found[row], own[0])
        return found

    def _compared(self, texts: Sequence[str]) -> Tensor:
        """Scores [t, k] of texts by bags, then by embeddings, then by the judge."""
        scores = self.keys.new_full((len(texts), len(self.keys)), FAR)
        near = (self.encoder.bags(texts) @ self._bags.T > BAG_BOUND).nonzero()  # [q, 2]
        if len(near):
            rows, place = torch.unique(near[:, 0], return_inverse=True)
            embedded = self.encoder.embed([texts[row] for row in rows.tolist()])
            cosines = torch.full_like(scores, -1.0)
            for part in torch.split(torch.arange(len(near)), 2**14):
                row, key = near[part].unbind(1)
                cosines[row, key] = (embedded[place[part]] * self.keys[key]).sum(-1)
            self._judge(texts, cosines, scores)
        return scores

    def _judge(self, texts: Sequence[str], cosines: Tensor, scores: Tensor) -> None:
        """Fill in the scores [t, k] of texts at the keys with the largest cosines [t, k]."""
        most, nearest = cosines.topk(min(MOST_JUDGED, cosines.shape[1]), dim=1)
        rows, columns = (most > COSINE_BOUND).nonzero(as_tuple=True)
        keys = nearest[rows, columns]
        pairs = [
            (self.key_texts[key], texts[row]) for row, key in zip(rows.tolist(), keys.tolist(), strict=True)
        ]
        judged = [place for place, pair in enumerate(pairs) if not differ_in_meaning(*pair)]
        rows, keys, cosine = rows[judged], keys[judged], most[rows, columns][judged]
        found = self.encoder.score([pairs[place] for place in judged], cosine.tolist())
        scores[rows, keys] = torch.tensor(found).clamp(FAR, EXACT - 1)

    def fire(self, reading: Reading, ages: Tensor | None = None) -> Firing:
        """Which entry acts on each input that was read.

        Args:
            ages: [k] a number per key. Of keys that hold an input about equally well, the newest counts.
        """
        scores = self.scores(reading.questions, thorough=False)
        margins = scores - self.bounds  # [n, k]
        best, nearest = margins.max(-1)
        if ages is not None:
            exact = (scores >= EXACT).any(-1, keepdim=True) & (scores < EXACT)
            held = (margins > 0) & (margins > best[:, None] - TIE) & ~exact
            claims = torch.where(held, ages.to(margins.device).float(), -1.0)
            newest = held & (claims == claims.amax(-1, keepdim=True))
            inside = newest.any(-1)
            best_newest, nearest_newest = margins.masked_fill(~newest, -torch.inf).max(-1)
            best = torch.where(inside, best_newest, best)
            nearest = torch.where(inside, nearest_newest, nearest)
        place = reading.device
        return Firing(self.owners[nearest].long().to(place), best.to(place), (best > 0).float().to(place))

    def rows(self, index: Tensor) -> TextScope:
        """The scope with only the keys at `index` [r]."""
        return TextScope(
            self.encoder, self.keys[index], self.bounds[index], self.owners[index], self.texts[index]
        )

    @staticmethod
    def joined(parts: Sequence[TextScope]) -> TextScope:
        """Scopes of one encoder as one."""
        if len(parts) == 1:
            return parts[0]
        keys, bounds, owners = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("keys", "bounds", "owners")
        )
        return TextScope(
            parts[0].encoder, keys, bounds, owners, joined_columns([part.texts for part in parts])
        )

    def to(self, device: torch.device) -> TextScope:
        """The same scope: it stays where the encoder runs."""
        return self

    def fits(self, num_entries: int) -> bool:
        """Whether all shapes agree, every text is text, and every key belongs to an entry."""
        k, owners = len(self.keys), self.owners
        return (
            k > 0
            and self.keys.shape == (k, self.encoder.width)
            and self.bounds.shape == owners.shape == (k,)
            and self.texts.dim() == 2
            and len(self.texts) == k
            and bool(((owners >= 0) & (owners < num_entries) & (owners % 1 == 0)).all())
            and is_text(self.texts)
        )


def pack_texts(texts: Sequence[str]) -> Tensor:
    """Texts as bytes [k, w], padded with zeros and cut at MOST_BYTES."""
    rows = [" ".join(text.replace("\0", " ").split()).encode()[:MOST_BYTES] for text in texts]
    rows = [row.decode(errors="ignore").encode() for row in rows]  # not in the middle of a character
    width = max(map(len, rows), default=0) or 1
    return torch.tensor([list(row.ljust(width, b"\0")) for row in rows], dtype=torch.uint8).view(-1, width)


@lru_cache(maxsize=2**16)
def differ_in_meaning(one: str, other: str) -> bool:
    """Whether two texts differ by a negation, or each has a number that the other lacks."""
    first, second = (WordCounts.of(TextInput(input=text)) for text in (one, other))
    if first.negation_difference(second):
        return True
    ours, theirs = numbers(one), numbers(other)
    return bool(ours - theirs) and bool(theirs - ours)


def _texts(view: View) -> tuple[str, ...]:
    return (view.text,) if view.context is None else (view.text, view.context)


def _words(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(" ?.!")
