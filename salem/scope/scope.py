"""The two kinds of scope.

A text scope compares texts by the scope encoder, so what fires is known before the hosted model runs. A state
scope reads the hosted model's own states, where the encoder does not fit: pairs of texts, other languages,
code. Both have `reader`, `owners`, `fire`, `rows`, `joined`, `to`, and `fits`.
"""

from __future__ import annotations

from collections.abc import Sequence

from salem.scope.state_scope import StateScope
from salem.scope.text_scope import TextScope

Scope = StateScope | TextScope


def joined_scope(parts: Sequence[Scope]) -> Scope:
    """Scopes with the same reader as one."""
    if isinstance(parts[0], TextScope):
        return TextScope.joined([part for part in parts if isinstance(part, TextScope)])
    return StateScope.joined([part for part in parts if isinstance(part, StateScope)])
