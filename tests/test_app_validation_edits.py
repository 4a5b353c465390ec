"""Checks of an edit request: one response names every problem and where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter
from tiny_models import tiny_network

from app.validation.editors import FEWEST_EDITS, check_corpus
from app.validation.edits import EditLimits, check_edit_request, override_notes
from app.validation.recipes import AnyOptions, OptionsIn
from app.validation.samples import EditIn, SampleIn
from app.validation.texts import TextReader
from salem.errors import MAX_PLACES
from salem.models import tokens
from salem.models.batching import IGNORED, encode
from salem.models.chat import TurnFinder
from salem.records import (
    EditorOptions,
    EntryKey,
    FolderSource,
    HostedModel,
    Layer,
    ListedEntry,
    ModelState,
    Sample,
    Task,
    TextInput,
)

LIMITS = EditLimits(max_edits=3, max_paraphrases=2, max_pass_samples=2)
LAYER = Layer(
    path="bert.encoder.layer.2.output.dense",
    stack="bert.encoder.layer",
    block=2,
    matrix="output.dense",
    d_in=4,
    d_out=2,
    transposed=False,
)


def chosen(**options: Any) -> OptionsIn:
    """Options as the API reads them."""
    return TypeAdapter(AnyOptions).validate_python(options)


def hosted(task: Task = Task.SEQUENCE_CLASSIFICATION) -> HostedModel:
    return HostedModel(
        name="intents",
        task=task,
        source=FolderSource(path="intents"),
        state=ModelState.READY,
        created_at=datetime.now(UTC),
        labels=() if task.generates else ("refund", "delivery", "login"),
        max_input_tokens=6,
        layers=(LAYER,),
    )


def count_words(inputs: Sequence[TextInput]) -> list[int]:
    return [len(f"{item.input} {item.text_pair or ''}".split()) for item in inputs]


READER = TextReader(count_words)


def check(
    *edits: EditIn,
    pass_samples: Sequence[SampleIn] | None = None,
    task: Task = Task.SEQUENCE_CLASSIFICATION,
    layer: str | None = None,
    recipe: str = "scoped",
) -> dict[str, str]:
    options = chosen(layer=layer, recipe=recipe)
    found = check_edit_request(
        hosted(task), edits, pass_samples, options=options, limits=LIMITS, reader=READER
    )
    return {problem.pointer: problem.detail for problem in found}


def edit(text: str, target: str = "refund", *paraphrases: str, pair: str | None = None) -> EditIn:
    return EditIn(input=text, target=target, paraphrases=paraphrases, text_pair=pair)


def test_a_valid_request_has_no_problems() -> None:
    kept = [SampleIn(input="hello", target="login"), SampleIn(input="hello", target="login")]
    assert check(edit("money back", "refund", "i want it back"), edit("no parcel", "delivery")) == {}
    assert check(edit("money back"), pass_samples=kept, layer=LAYER.path) == {}


def test_an_unknown_label_gets_a_suggestion() -> None:
    found = check(edit("a"), edit("b"), edit("c", "refnud"))
    assert found == {
        "/edits/2/target": '"refnud" is not one of the model\'s 3 labels; did you mean "refund"?'
    }


def test_a_label_in_another_case_gets_a_suggestion_and_a_distant_one_lists_all() -> None:
    assert 'did you mean "refund"?' in check(edit("a", "REFUND"))["/edits/0/target"]
    assert "refund, delivery, login" in check(edit("a", "zzz"))["/edits/0/target"]


def test_a_text_that_is_far_too_long_is_refused_without_counting_its_tokens() -> None:
    counted: list[TextInput] = []

    def count(inputs: Sequence[TextInput]) -> list[int]:
        counted.extend(inputs)
        return count_words(inputs)

    long = "a" * (6 * 64)
    asked = [edit("a", pair=long), edit("b", "refund", long), edit("c", "refund", "d")]
    found = check_edit_request(
        hosted(), asked, None, options=chosen(), limits=LIMITS, reader=TextReader(count)
    )
    assert [problem.pointer for problem in found] == ["/edits/0/input", "/edits/1/paraphrases/0"]
    assert found[0].detail == 'the text has 391 characters, but intents takes 6 tokens; shorten "a"'
    assert {item.input for item in counted} == {"b", "c", "d"}
    for task in (Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION):
        assert list(check(edit("a", long), task=task)) == ["/edits/0/input"]


def test_only_places_that_the_response_names_get_a_suggestion() -> None:
    limits = EditLimits(max_edits=200, max_pass_samples=200)
    asked = [edit(f"text {index}", "refnud") for index in range(60)]
    kept = [SampleIn(input=f"kept {index}", target="refnud") for index in range(60)]
    found = check_edit_request(hosted(), asked, kept, options=chosen(), limits=limits, reader=READER)
    assert len(found) == 120 and all("not one of the model's 3 labels" in each.detail for each in found)
    assert ["did you mean" in each.detail for each in found] == [True] * MAX_PLACES + [False] * 20


def test_generated_targets_may_be_any_text_that_is_not_empty() -> None:
    found = check(edit("a", "anything"), edit("b", "  "), task=Task.TEXT2TEXT_GENERATION)
    assert list(found) == ["/edits/1/target"]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "a\x00b"])
def test_blank_and_unstorable_texts_are_refused(text: str) -> None:
    kept = [SampleIn(input=text, target=text)]
    found = check(edit(text, "refund", text), edit("a", pair=text), pass_samples=kept)
    assert set(found) == {
        "/edits/0/input",
        "/edits/0/paraphrases/0",
        "/edits/1/text_pair",
        "/pass_samples/0/input",
        "/pass_samples/0/target",
    }


HALF = "half \ud83d"  # of a surrogate pair


def count_utf8(inputs: Sequence[TextInput]) -> list[int]:
    """Count like a fast tokenizer, which fails on text that is not valid UTF-8."""
    return [len(f"{item.input} {item.text_pair or ''}".encode().split()) for item in inputs]


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("field", ["input", "text_pair", "target", "forget"])
def test_a_sample_is_neither_counted_nor_compared_if_any_of_its_texts_is_unreadable(
    field: str, task: Task
) -> None:
    given = {"input": "a", "target": None if field == "forget" else "refund", field: HALF}
    edits = [EditIn(paraphrases=("b",), **given), EditIn(input="c", target="refund")]
    kept = [] if field == "forget" else [SampleIn(**given)]
    options = chosen()
    found = check_edit_request(
        hosted(task), edits, kept or None, options=options, limits=LIMITS, reader=TextReader(count_utf8)
    )
    places = [f"/edits/0/{field}", *(f"/pass_samples/{index}/{field}" for index in range(len(kept)))]
    assert [problem.pointer for problem in found] == places
    assert all("half of a surrogate pair" in problem.detail for problem in found)


def test_too_many_tokens_name_the_sample_and_the_limit() -> None:
    found = check(edit("a b c d e f g", "refund", "a a a a a a a a"), edit("a b c d", "zzz", pair="e f g"))
    assert set(found) == {"/edits/0/input", "/edits/0/paraphrases/0", "/edits/1/input", "/edits/1/target"}
    assert found["/edits/0/input"] == 'the text has 7 tokens, but intents takes 6; shorten "a b c d e f g"'


def test_a_decoder_reads_input_and_target_in_one_window() -> None:
    assert check(edit("a b c", "d e"), task=Task.TEXT_GENERATION) == {}
    found = check(edit("a b c d", "e f g"), edit("a b c", "d e f"), task=Task.TEXT_GENERATION)
    assert found["/edits/1/input"].startswith("the input, the answer, and its end have 7 tokens")
    assert found["/edits/0/input"].startswith("the input, the answer, and its end have 8 tokens")


def test_a_text_without_tokens_is_refused() -> None:
    found = check_edit_request(
        hosted(),
        [edit("\u200b")],
        None,
        options=chosen(),
        limits=LIMITS,
        reader=TextReader(lambda inputs: [0] * len(inputs)),
    )
    assert [problem.pointer for problem in found] == ["/edits/0/input"]


def test_contradicting_targets_across_edits_and_paraphrases_are_refused() -> None:
    found = check(
        edit("my  money", "refund"), edit("my money", "delivery"), edit("other", "login", "my money")
    )
    assert set(found) == {"/edits/1/target", "/edits/2/paraphrases/0"}
    assert 'should be "delivery" here but "refund" at /edits/0' in found["/edits/1/target"]


def test_the_pair_is_part_of_the_input() -> None:
    assert check(edit("a", "refund", pair="x"), edit("a", "login", pair="y")) == {}
    assert set(check(edit("a", "refund", pair="x"), edit("a", "login", pair="x"))) == {"/edits/1/target"}


def test_repeated_edits_and_paraphrases_are_refused() -> None:
    found = check(edit("a", "refund", "a", "b"), edit("a", "refund"), edit("c", "refund", "d", "d"))
    assert "the edit itself" in found["/edits/0/paraphrases/0"]
    assert "already at /edits/0" in found["/edits/1"]
    assert "another paraphrase" in found["/edits/2/paraphrases/1"]
    assert len(found) == 3


def test_a_pass_sample_that_is_also_an_edit_is_refused() -> None:
    kept = [SampleIn(input="a", target="login"), SampleIn(input="b", target="refund")]
    found = check(edit("a", "refund", "b"), pass_samples=kept)
    assert set(found) == {"/pass_samples/0", "/pass_samples/1"}
    assert "/edits/0/paraphrases/0" in found["/pass_samples/1"]


def test_contradicting_pass_samples_are_refused() -> None:
    kept = [SampleIn(input="z", target="login"), SampleIn(input="z", target="refund")]
    assert set(check(edit("a"), pass_samples=kept)) == {"/pass_samples/1/target"}


def test_limits_are_checked() -> None:
    kept = [SampleIn(input=f"k{index}", target="login") for index in range(3)]
    found = check(edit("a", "refund", "b", "c", "d"), edit("e"), edit("f"), edit("g"), pass_samples=kept)
    assert set(found) == {"/edits", "/edits/0/paraphrases", "/pass_samples"}
    assert set(check(pass_samples=[])) == {"/edits", "/pass_samples"}


def test_items_over_a_limit_are_not_read() -> None:
    def counting(_: Sequence[TextInput]) -> list[int]:
        pytest.fail("counted")

    request = [edit(text, "no label") for text in "abcd"]
    limits = EditLimits(max_edits=3)
    found = check_edit_request(
        hosted(), request, None, options=chosen(), limits=limits, reader=TextReader(counting)
    )
    assert [place.pointer for place in found] == ["/edits"]


def test_an_unknown_layer_gets_a_suggestion() -> None:
    found = check(edit("a"), layer="bert.encoder.layer.2.output.dens")
    assert f'did you mean "{LAYER.path}"?' in found["/options/layer"]


def test_everything_is_reported_at_once() -> None:
    found = check(
        edit("", "nope"), edit("a b c d e f g h"), edit("x", "refund", "x"), layer="head", pass_samples=[]
    )
    assert set(found) == {
        "/pass_samples",
        "/edits/0/input",
        "/edits/0/target",
        "/edits/1/input",
        "/edits/2/paraphrases/0",
        "/options/layer",
    }


def forgetting(text: str, forget: str = "refund", *paraphrases: str) -> EditIn:
    return EditIn(input=text, target=None, forget=forget, paraphrases=paraphrases)


def test_one_request_may_correct_and_forget() -> None:
    assert check(forgetting("money back", "refund", "i want it back"), edit("no parcel", "delivery")) == {}
    assert check(forgetting("a", "any text"), task=Task.TEXT_GENERATION, recipe="mend") == {}


def test_an_edit_has_either_a_target_or_an_answer_to_forget() -> None:
    neither, both = EditIn(input="a"), EditIn(input="b", target="login", forget="refund")
    found = check(neither, both, forgetting("c", "refnud"))
    assert set(found) == {"/edits/0/target", "/edits/1/forget", "/edits/2/forget"}
    assert '"a" has no target' in found["/edits/0/target"] and "`forget`" in found["/edits/0/target"]
    assert '"b" has a target and an answer to forget' in found["/edits/1/forget"]
    assert 'did you mean "refund"?' in found["/edits/2/forget"]
    assert "the answer to forget is empty" in check(forgetting("d", " "))["/edits/0/forget"]


@pytest.mark.parametrize("recipe", ["ridge", "paper"])
def test_a_recipe_that_cannot_forget_is_refused(recipe: str) -> None:
    assert check(edit("a"), recipe=recipe) == {}
    found = check(edit("a"), forgetting("b"), recipe=recipe)
    assert set(found) == {"/options/recipe"}
    assert all(word in found["/options/recipe"] for word in (recipe, '"b"', "use scoped or mend"))


def test_one_text_cannot_be_both_corrected_and_forgotten() -> None:
    found = check(edit("a", "delivery"), forgetting("a"), forgetting("b", "login", "a"))
    assert 'to "a" should be anything but "refund" here but "delivery" at' in found["/edits/1/forget"]
    assert 'anything but "login" here' in found["/edits/2/paraphrases/0"]
    assert "already at" in check(forgetting("a"), forgetting("a"))["/edits/1"]
    kept = [SampleIn(input="a", target="refund")]
    assert set(check(forgetting("a"), pass_samples=kept)) == {"/pass_samples/0"}


def test_a_decoder_reads_input_and_forgotten_answer_in_one_window() -> None:
    found = check(forgetting("a b c d", "e f g"), task=Task.TEXT_GENERATION)
    assert found["/edits/0/input"].startswith("the input, the answer, and its end have 8 tokens")


def check_answers(
    *edits: EditIn,
    task: Task,
    window: int | None = 10_000,
    kept: Sequence[SampleIn] | None = None,
    count: Callable[[Sequence[TextInput]], list[int]] = count_words,
    **options: int,
) -> dict[str, str]:
    """Problems with answers, for a model with a window of this size."""
    found = check_edit_request(
        hosted(task).model_copy(update={"max_input_tokens": window}),
        edits,
        kept,
        options=chosen(recipe="mend", **options),
        limits=LIMITS,
        reader=TextReader(count),
    )
    return {problem.pointer: problem.detail for problem in found}


def words(num: int) -> str:
    return " ".join(["b"] * num)


@pytest.mark.parametrize(("gives", "field", "end"), [(edit, "target", 1), (forgetting, "forget", 0)])
def test_an_answer_longer_than_max_new_tokens_is_refused(
    gives: Callable[..., EditIn], field: str, end: int
) -> None:
    """If it were cut off, it would never equal the target and always count as forgotten."""
    writes, most = Task.TEXT_GENERATION, 32 - end
    assert check_answers(gives("a", words(most), "c"), gives("d", words(2)), task=writes) == {}
    found = check_answers(gives("a", words(2)), gives("c d", words(most + 1), "e"), task=writes)
    assert set(found) == {f"/edits/1/{field}"}
    assert found[f"/edits/1/{field}"].startswith('"b b b')
    assert found[f"/edits/1/{field}"].endswith(
        "takes 33 tokens to write, but the limit is 32; raise options.max_new_tokens to 33"
    )
    assert check_answers(gives("c d", words(most + 1)), task=writes, max_new_tokens=33) == {}
    long, longer = gives("a", words(512 - end)), gives("c", words(513 - end))
    found = check_answers(long, longer, task=writes, max_new_tokens=40)
    assert found[f"/edits/0/{field}"].endswith("raise options.max_new_tokens to 512")
    assert found[f"/edits/1/{field}"].endswith("options.max_new_tokens is at most 512; shorten it")
    assert check_answers(long, task=writes, window=None, max_new_tokens=512) == {}


def test_an_encoder_decoder_has_a_separate_window_for_its_answer() -> None:
    """The number of words already includes the end-of-sequence token."""
    reads = Task.TEXT2TEXT_GENERATION
    kept = [SampleIn(input=text, target=words(num)) for text, num in (("k", 40), ("l", 41))]
    assert check_answers(edit(words(40), words(32)), task=reads, window=40) == {}
    found = check_answers(
        edit("a", words(33)),
        edit("c", words(41)),
        forgetting("d", words(41)),
        task=reads,
        window=40,
        kept=kept,
    )
    assert set(found) == {"/edits/0/target", "/edits/1/target", "/edits/2/forget", "/pass_samples/1/target"}
    assert found["/edits/0/target"].endswith("raise options.max_new_tokens to 33")
    for pointer in set(found) - {"/edits/0/target"}:
        assert found[pointer].endswith("has 41 tokens, but intents takes 40; shorten it")


def test_labels_and_pass_samples_are_not_limited_by_max_new_tokens() -> None:
    assert check(edit("a", "refund"), pass_samples=[SampleIn(input="b", target="login")]) == {}
    kept = [SampleIn(input="k", target=words(600))]
    assert check_answers(edit("a", "c"), task=Task.TEXT_GENERATION, kept=kept) == {}


@pytest.mark.parametrize("task", list(Task))
def test_an_edit_without_an_answer_is_refused(task: Task) -> None:
    found = check_answers(EditIn(input="who?"), edit("a"), task=task) if task.generates else None
    found = check(EditIn(input="who?"), edit("a")) if found is None else found
    assert set(found) == {"/edits/0/target"}
    assert "has no target" in found["/edits/0/target"]


@pytest.mark.parametrize("text", ["", " ", "\x00", "half \ud83d"])
def test_tokens_of_an_unreadable_answer_are_not_counted(text: str) -> None:
    def counting(inputs: Sequence[TextInput]) -> list[int]:
        return [len(item.input.strip("\x00 ").encode()) or pytest.fail("blank") for item in inputs]

    found = check_answers(edit("a", text), task=Task.TEXT2TEXT_GENERATION, count=counting, window=None)
    assert set(found) == {"/edits/0/target"}


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "opt", "llama", "gemma"])
def test_an_answer_has_the_length_that_training_encodes(architecture: str) -> None:
    network = replace(tiny_network(architecture), max_input_tokens=10_000)
    lengths = []
    for size in (8, 12, 16, 20, 24, 28, 32):
        sample = Sample(input="where is", target=" ".join(["parcel", *["a"] * size]))
        length = int((encode(network, [sample]).targets != IGNORED).sum())
        found = check_answers(
            edit("where is", sample.answer),
            task=network.task,
            count=lambda inputs: tokens.count_tokens(network.tokenizer, inputs),
        )
        lengths.append(length)
        assert [detail.endswith(f"to {length}") for detail in found.values()] == [True] * (length > 32)
    assert min(lengths) <= 32 < max(lengths)


@pytest.mark.parametrize("max_new_tokens", [32, 40])
def test_the_answers_of_a_corpus_are_limited_by_its_own_options(max_new_tokens: int) -> None:
    corpus = [edit(f"text {number}", words(35)) for number in range(FEWEST_EDITS)]
    found = check_corpus(
        hosted(Task.TEXT_GENERATION).model_copy(update={"max_input_tokens": None}),
        corpus,
        None,
        options=EditorOptions(max_new_tokens=max_new_tokens),
        max_edits=FEWEST_EDITS,
        reader=READER,
    )
    assert len(found) == (FEWEST_EDITS if max_new_tokens == 32 else 0)


def test_an_entry_that_forgets_is_overridden_like_any_other() -> None:
    lost = listed("1.0", "login", "a").model_copy(update={"target": None, "forget": "login"})
    assert override_notes([forgetting("a", " login ").checked()], [lost], READER) == ()
    (note,) = override_notes([edit("a", "login").checked()], [lost], READER)
    assert note == '"a" overrides entry 1.0: it was anything but "login", now "login"'
    (note,) = override_notes([forgetting("a").checked()], [listed("1.0", "login", "a")], READER)
    assert note.endswith('it was "login", now anything but "refund"')


PROMPT = "<user>{}<end>"
ABOUT_PROMPTS = TextReader(count_words, quote=TurnFinder("<user>", "<end>").quote)


def test_every_problem_of_a_prompt_quotes_its_question() -> None:
    edits = [
        {"input": "no answer"},
        {"input": "two answers", "target": "refund", "forget": "login"},
        {"input": "twice", "target": "refund"},
        {"input": "twice", "target": "refund"},
        {"input": "same words", "target": "refund", "paraphrases": ["same words"]},
        {"input": "disputed", "target": "refund"},
        {"input": "disputed", "target": "login"},
        {"input": "one two three four five six seven", "target": "refund"},
        {"input": "too long" + "g" * 400, "target": "refund"},
        {"input": "without subject", "target": "refund", "subject": "absent"},
        {"input": "near", "target": "refund", "neighbors": ["near", "a", "a"]},
        {
            "input": "wanted",
            "target": "refund",
            "neighbors": [{"input": "wrong neighbor", "target": "refund"}],
        },
    ]
    found = check_edit_request(
        hosted(),
        [EditIn.model_validate(_prompted(each)) for each in edits],
        [SampleIn(input=PROMPT.format("twice"), target="refund")],
        options=chosen(recipe="ridge"),
        limits=EditLimits(max_edits=20),
        reader=ABOUT_PROMPTS,
    )
    details = [problem.detail for problem in found]
    assert not [detail for detail in details if "<user>" in detail]
    for each in edits[:-1]:
        assert any(f'"{each["input"]}'[:20] in detail for detail in details), each
    assert '"wrong neighbor" has the target of its edit' in " ".join(details)


def _prompted(edit: dict[str, Any]) -> dict[str, Any]:
    """The edit with its texts as prompts."""
    texts = {
        key: [_prompt(text) for text in edit[key]] for key in ("paraphrases", "neighbors") if key in edit
    }
    return edit | texts | {"input": _prompt(edit["input"])}


def _prompt(text: Any) -> Any:
    return text | {"input": _prompt(text["input"])} if isinstance(text, dict) else PROMPT.format(text)


def test_an_override_of_a_prompt_quotes_its_question() -> None:
    known = listed("1.0", "login", PROMPT.format("who is it"))
    (note,) = override_notes([edit(PROMPT.format("who is it")).checked()], [known], ABOUT_PROMPTS)
    assert note == '"who is it" overrides entry 1.0: it was "login", now "refund"'


def listed(number: str, target: str, *texts: str, pair: str | None = None) -> ListedEntry:
    keys = tuple(EntryKey(text=text, radius=0.5) for text in texts)
    version = int(number.split(".")[0])
    return ListedEntry(
        id=number,
        input=texts[0],
        text_pair=pair,
        target=target,
        keys=keys,
        layer="l",
        version=version,
        job_id=None,
    )


def test_only_the_newest_entry_of_a_text_is_overridden() -> None:
    newest_first = [
        listed("2.0", "login", "a"),
        listed("1.1", "refund", "b", "b two"),
        listed("1.0", "x", "a"),
    ]
    assert override_notes([edit("a", "login").checked()], newest_first, READER) == ()
    assert override_notes([edit(" a ", "refund").checked()], newest_first, READER) == (
        '"a" overrides entry 2.0: it was "login", now "refund"',
    )
    reworded = edit("c", "login", "b  two").checked()
    assert [note.split(":")[0] for note in override_notes([reworded], newest_first, READER)] == [
        '"b two" overrides entry 1.1'
    ]
    assert override_notes([edit("a", "refund", pair="p").checked()], newest_first, READER) == ()
    assert override_notes([edit("a").checked()], [], READER) == ()
