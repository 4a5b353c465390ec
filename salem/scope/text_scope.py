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

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
LEAD = 0.2  # keys are not judged if their cosine is smaller than the largest by more than this
EXACT = 20.0  # the score of a key's own words, above all that the judge says
FAR = -20.0  # the margin of an input that no stage let through
LENIENCE = 2.5  # how much less a sentence may score together with the sentences next to it
TIE = 2.0  # a newer delta prevails over an older one unless its margin is smaller by more than this
MOST_BYTES = 2_048  # of a key's text that are kept; the encoder reads fewer
_ROWS = 512  # inputs that are compared at a time

Hits = dict[int, float]  # the score of each key that no stage ruled out


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
        return self.encoder.bags(self.key_texts).T.contiguous()  # [b, k]

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

    def scores(self, questions: Sequence[str]) -> Tensor:
        """How surely n questions are the same as each key -> [n, k]; FAR where a stage ruled it out."""
        found = torch.full((len(questions), len(self.keys)), FAR)
        for row, hits in enumerate(self._hits(questions, thorough=True)):
            found[row, list(hits)] = torch.tensor(list(hits.values()))
        return found

    def fire(self, reading: Reading, ages: Tensor | None = None) -> Firing:
        """Which entry acts on each input that was read.

        Args:
            ages: [k] a number per key. Of keys that hold an input about equally well, the newest counts.
        """
        best = [self._best(hits, ages) for hits in self._hits(reading.questions, thorough=False)]
        entry = self.owners[torch.tensor([key for key, _ in best], dtype=torch.long)].long()
        margins = torch.tensor([margin for _, margin in best])
        return Firing(*(each.to(reading.device) for each in (entry, margins, (margins > 0).float())))

    def _best(self, hits: Hits, ages: Tensor | None) -> tuple[int, float]:
        """The key whose entry an input fires, and its margin; any key and FAR if none was compared."""
        if not hits:
            return 0, FAR
        keys = torch.tensor(sorted(hits))
        scores = torch.tensor([hits[key] for key in keys.tolist()])
        margins = scores - self.bounds[keys]
        best = margins.argmax()
        if ages is not None:
            exact = (scores >= EXACT).any() & (scores < EXACT)
            held = (margins > 0) & (margins > margins[best] - TIE) & ~exact
            if held.any():
                claims = torch.where(held, ages[keys.to(ages.device)].to(keys.device), -1)
                best = margins.masked_fill(claims < claims.max(), -torch.inf).argmax()
        return int(keys[best]), float(margins[best])

    def _hits(self, questions: Sequence[str], *, thorough: bool) -> Iterator[Hits]:
        """The scores of the keys that no stage ruled out, question by question.

        Args:
            thorough: whether a text with the very words of a key is compared with the other keys as well.
        """
        for start in range(0, len(questions), _ROWS):
            seen = [views(question) for question in questions[start : start + _ROWS]]
            spelled = {
                text: self._spelling.corrected(text)
                for each in seen
                for view in each
                for text in _texts(view)
            }
            hits = self._hits_of_texts(list(dict.fromkeys([*spelled, *spelled.values()])), thorough)
            either = {text: _largest(hits[text], hits[meant]) for text, meant in spelled.items()}
            yield from (_largest(*(_hits_of_view(view, either) for view in each)) for each in seen)

    def _hits_of_texts(self, texts: Sequence[str], thorough: bool) -> dict[str, Hits]:
        """The scores of the keys that no stage ruled out, text by text."""
        exact = {text: dict.fromkeys(self._exact.get(_words(text), ()), EXACT) for text in texts}
        judged = self._judged(self._nearest([text for text in texts if thorough or not exact[text]]))
        return {text: judged.get(text, {}) | exact[text] for text in texts}

    def _nearest(self, texts: Sequence[str]) -> Iterator[tuple[str, int, float]]:
        """Each text with the keys that bags and embeddings let through, and the cosines."""
        near = (self.encoder.bags(texts) @ self._bags > BAG_BOUND).nonzero()  # [q, 2]
        if not len(near):
            return
        rows, counts = torch.unique_consecutive(near[:, 0], return_counts=True)
        read = [texts[row] for row in rows.tolist()]
        parts = torch.split(near[:, 1], counts.tolist())
        for text, keys, embedding in zip(read, parts, self.encoder.embed(read), strict=True):
            cosines, places = (self.keys[keys] @ embedding).topk(min(MOST_JUDGED, len(keys)))
            bound = max(COSINE_BOUND, float(cosines[0]) - LEAD)
            for key, cosine in zip(keys[places].tolist(), cosines.tolist(), strict=True):
                if cosine > bound and not differ_in_meaning(self.key_texts[key], text):
                    yield text, key, cosine

    def _judged(self, compared: Iterable[tuple[str, int, float]]) -> dict[str, Hits]:
        """The scores of texts and keys, whose cosines are known."""
        compared = list(compared)
        pairs = [(self.key_texts[key], text) for text, key, _ in compared]
        scores = self.encoder.score(pairs, [cosine for _, _, cosine in compared]) if pairs else []
        found: dict[str, Hits] = {}
        for (text, key, _), score in zip(compared, scores, strict=True):
            found.setdefault(text, {})[key] = min(max(score, FAR), EXACT - 1)
        return found

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


def _hits_of_view(view: View, hits: Mapping[str, Hits]) -> Hits:
    """The scores of a view; with the sentences next to it, a key may score little less."""
    own = hits[view.text]
    if view.context is None:
        return own
    around = hits[view.context]
    return {key: min(score, around.get(key, FAR) + LENIENCE) for key, score in own.items()}


def _largest(*hits: Hits) -> Hits:
    """The largest score of each key."""
    return {key: max(each.get(key, FAR) for each in hits) for each in hits for key in each}


def _words(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(" ?.!")
