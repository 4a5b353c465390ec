"""Checks the corpus that an editor is trained on, and the use of an editor in an edit request.

Pure functions. Must not know HTTP or SQL: the caller passes in a function that finds editors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from app.validation.edits import EditLimits, check_edit_request
from app.validation.recipes import OptionsIn
from app.validation.samples import EditIn, SampleIn
from app.validation.texts import TextReader, check_text
from salem.errors import Pointer
from salem.messages import quote
from salem.records import Editor, EditorOptions, HostedModel, Name

FEWEST_EDITS = 32  # in a corpus: a quarter of them is held out to measure the editor


def check_editor_names(model: HostedModel, reference: str, name: str | None) -> Iterator[Pointer]:
    """Problems of how a request names the model (`reference`) and the editor (`name`)."""
    if reference != model.name:
        detail = f'an editor is trained on the base and works for all versions; write "{model.name}"'
        yield Pointer("/model", detail)
    if name is not None:
        yield from check_text("/name", name, "name")


def check_corpus(
    model: HostedModel,
    edits: Sequence[EditIn],
    pass_samples: Sequence[SampleIn] | None,
    *,
    options: EditorOptions,
    max_edits: int,
    reader: TextReader,
) -> list[Pointer]:
    """Every problem of the samples and options to train an editor with."""
    found: list[Pointer] = []
    if 0 < len(edits) < FEWEST_EDITS:
        detail = (
            f"{len(edits)} edits are too few to train an editor, which needs {FEWEST_EDITS}; send more, or "
            'send these to POST /edits with the recipe "mend", which trains an editor for the job'
        )
        found.append(Pointer("/edits", detail))
    limits = EditLimits(max_edits=max_edits, remedy="leave some out")
    found += check_edit_request(model, edits, pass_samples, options=options, limits=limits, reader=reader)
    found += _check_no_neighbors(edits)
    found += _check_nothing_forgotten(
        edits, "an editor learns from correct answers only; leave out this edit", reader
    )
    return found


def _check_no_neighbors(edits: Sequence[EditIn]) -> Iterator[Pointer]:
    for index, edit in enumerate(edits):
        if edit.neighbors:
            detail = "an editor is not measured on neighbors; leave them out, and send them with POST /edits"
            yield Pointer(f"/edits/{index}/neighbors", detail)


def _check_nothing_forgotten(edits: Sequence[EditIn], remedy: str, reader: TextReader) -> Iterator[Pointer]:
    for index, edit in enumerate(edits):
        if edit.forget is not None:
            yield Pointer(
                f"/edits/{index}/forget", f"{reader.quote(edit.input)} has an answer to forget, but {remedy}"
            )


def with_editor(
    model: Name,
    options: OptionsIn,
    edits: Sequence[EditIn],
    find: Callable[[str], Editor | None],
    reader: TextReader,
) -> tuple[OptionsIn, list[Pointer]]:
    """The options with the layer of the editor that they name, and their problems."""
    if options.editor_id is None:
        return options, []
    editor = find(options.editor_id)
    if editor is None or editor.model != model:
        return options, [Pointer("/options/editor", _unknown_editor(model, options.editor_id, editor))]
    settled = options.model_copy(update={"layer": editor.layer})
    remedy = "an editor only makes corrections; leave out options.editor, or this edit"
    return settled, [*_check_options(options, editor), *_check_nothing_forgotten(edits, remedy, reader)]


def _unknown_editor(model: Name, named: str, editor: Editor | None) -> str:
    whose = f"was trained for {quote(editor.model)}" if editor else "is not the id of an editor"
    return f"{quote(named)} {whose}; GET /editors?model={model} lists the editors of {quote(model)}"


def _check_options(options: OptionsIn, editor: Editor) -> Iterator[Pointer]:
    if options.layer not in (None, editor.layer):
        detail = (
            f"{editor.id} edits {editor.layer}, not {quote(str(options.layer))}; leave out one of the two"
        )
        yield Pointer("/options/layer", detail)
