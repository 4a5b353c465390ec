"""What a job publishes together with a version. Knows records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from salem.records import BrokenNeighbor, EditOutcome, Entry, Flip, Name, Sha256


@dataclass(frozen=True)
class AliasMove:
    """An alias that should name the new version."""

    name: Name
    was: int | None  # the version that it named when the job was created; None: no version


@dataclass(frozen=True)
class Publication:
    """What is stored with a version, in the same transaction."""

    entries: Mapping[int, Sequence[tuple[int, Entry]]] = field(default_factory=dict)
    """By place of a delta in the chain: its entries, each with the place of its edit in the request."""
    outcomes: Sequence[EditOutcome] = ()
    flips: Sequence[Flip] = ()
    broken_neighbors: Sequence[BrokenNeighbor] = ()
    metric: Sha256 | None = None
    """A scope metric that the job trained, for the next job of the hosted model."""
    given_metric: Sha256 | None = None
    """The hosted model's scope metric when the job started. If it changed since, it is not overwritten."""
    alias: AliasMove | None = None
