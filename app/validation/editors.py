"""Checks of editors: a corpus to train one on, and the use of one in an edit request. Pure.

Knows drafts and the rows of models and editors. Does not know HTTP or SQL: a function that finds editors is
passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from app.validation.drafts import DraftEdit, DraftSample
from app.validation.edits import EditLimits, check_edit_request
from app.validation.recipes import OptionsIn
from app.validation.texts import CountTokens, check_text
from salem.errors import Pointer
from salem.messages import quoted
from salem.records import Editor, EditorOptions, HostedModel, Name

FEWEST_EDITS = 32  # of a corpus: a quarter of them measures the editor


def check_corpus(
    model: HostedModel,
    reference: str,
    name: str | None,
    edits: Sequence[DraftEdit],
    pass_samples: Sequence[DraftSample] | None,
    *,
    options: EditorOptions,
    max_edits: int,
    count_tokens: CountTokens,
) -> list[Pointer]:
    """Everything that is wrong with a request to train an editor; `reference` is how it names the model."""
    found: list[Pointer] = []
    if reference != model.name:
        detail = f'an editor is trained on the base, for every version of it; write "{model.name}"'
        found.append(Pointer("/model", detail))
    found += check_text("/name", name, "name") if name is not None else ()
    if 0 < len(edits) < FEWEST_EDITS:
        detail = (
            f"{len(edits)} edits are too few to train an editor on, the least is {FEWEST_EDITS}; give more, "
            'or POST them to /edits with the recipe "mend", which trains for the job'
        )
        found.append(Pointer("/edits", detail))
    limits = EditLimits(max_edits=max_edits, beyond="leave some out")
    found += check_edit_request(
        model, edits, pass_samples, options=options, limits=limits, count_tokens=count_tokens
    )
    found += _check_nothing_forgotten(edits, "an editor learns from right answers; leave this edit out")
    return found


def _check_nothing_forgotten(edits: Sequence[DraftEdit], remedy: str) -> Iterator[Pointer]:
    for index, edit in enumerate(edits):
        if edit.forget is not None:
            yield Pointer(f"/edits/{index}/forget", f"{quoted(edit.input)} is to forget an answer; {remedy}")


def with_editor(
    model: Name,
    options: OptionsIn,
    edits: Sequence[DraftEdit],
    find: Callable[[str], Editor | None],
) -> tuple[OptionsIn, list[Pointer]]:
    """The options with the layer of the editor that they name, and what is wrong with them."""
    if options.editor_id is None:
        return options, []
    editor = find(options.editor_id)
    if editor is None or editor.model != model:
        return options, [Pointer("/options/editor", _not_the_models(model, options.editor_id, editor))]
    settled = options.model_copy(update={"layer": editor.layer})
    remedy = "an editor makes corrections only; leave out options.editor, or this edit"
    return settled, [*_check_options(options, editor), *_check_nothing_forgotten(edits, remedy)]


def _not_the_models(model: Name, named: str, editor: Editor | None) -> str:
    whose = f"was trained for {quoted(editor.model)}" if editor else "is not the id of an editor"
    return f"{quoted(named)} {whose}; GET /editors?model={model} lists those of {quoted(model)}"


def _check_options(options: OptionsIn, editor: Editor) -> Iterator[Pointer]:
    if options.layer not in (None, editor.layer):
        detail = (
            f"{editor.id} edits {editor.layer}, not {quoted(str(options.layer))}; leave out one of the two"
        )
        yield Pointer("/options/layer", detail)
