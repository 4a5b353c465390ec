"""What the scopes of stored deltas compare inputs with, for tests that read delta files."""

from collections.abc import Callable

from salem.deltas.files import Readers
from salem.errors import EncoderMissing
from salem.scope.encoder import ScopeEncoder
from salem.scope.metric import Metric


def no_encoder(sha256: str) -> ScopeEncoder:
    raise EncoderMissing(f"This test has no scope encoder {sha256}.")


def reads_states(metric: Metric | Callable[[str], Metric]) -> Readers:
    """Readers of state scopes: one metric for all, or one by the sha256 of its file."""
    return Readers(metric if callable(metric) else lambda sha256: metric, no_encoder)
