"""The chat benchmark's rivals that change weights, on a tiny chat model; and the base's stored answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from tiny_models import build_network

from app.api.schemas import EditsIn
from app.validation.samples import ReferenceSampleIn
from benchmarks.chat_quality import model as chat_models
from benchmarks.chat_quality import rivals
from benchmarks.chat_quality.chat import Turn, last_question, rendered, user
from benchmarks.chat_quality.edits import ChatEdit, as_sent
from benchmarks.chat_quality.model import ChatModel
from benchmarks.chat_quality.rivals import WeightMethod, opened_loc_ft, opened_lora
from benchmarks.chat_quality.service import line, sent
from salem.records import Edit

TEMPLATE = (
    "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
EDITS = [ChatEdit("where is it", "Rome", ("where",)), ChatEdit("who is it", "Anna", ())]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ChatModel:
    monkeypatch.setattr(chat_models, "CACHE", tmp_path)
    network = build_network("llama")
    network.tokenizer.chat_template = TEMPLATE
    return ChatModel(tmp_path / "tiny", network)


def test_a_conversation_is_rendered_with_the_model_s_template(model: ChatModel) -> None:
    conversation = (Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "who"))
    assert rendered(model.network.tokenizer, conversation) == "<hi><hello><who>="
    assert last_question(conversation) == "who"


def test_edits_are_sent_as_rendered_prompts(model: ChatModel) -> None:
    first, second = as_sent(model, EDITS)
    assert first == Edit(input="<where is it>=", target="Rome", paraphrases=("<where>=",))
    assert second.paraphrases == ()


def test_the_service_accepts_what_is_sent(model: ChatModel) -> None:
    edits = as_sent(model, EDITS)
    accepted = EditsIn.model_validate({"model": "chat", "edits": sent(edits)})
    assert [edit.target for edit in accepted.edits] == ["Rome", "Anna"]
    assert ReferenceSampleIn.model_validate_json(line(edits[0])).input == "<where is it>="


def test_the_base_answers_once_and_is_remembered(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [user("where is it"), user("who is it")]
    answers = model.base_answers(asked)
    monkeypatch.setattr(chat_models, "predict", lambda *args, **more: pytest.fail("asked again"))
    assert len(answers) == 2 and model.base_answers(asked) == answers


@pytest.mark.parametrize("opened", [opened_loc_ft, opened_lora])
def test_a_rival_answers_its_edits_and_leaves_the_base_alone(
    opened: Callable[[ChatModel], AbstractContextManager[WeightMethod]],
    model: ChatModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rivals, "LORA_RATE", 3e-2)  # random weights need larger steps
    monkeypatch.setattr(rivals, "LOC_FT_RATE", 1.0)
    monkeypatch.setattr(rivals, "reference_set", lambda model: [Edit(input="<a>=", target="b")])
    before = {name: value.clone() for name, value in model.network.model.state_dict().items()}
    with opened(model) as method:
        edited = method.edit(EDITS)
        asked = [user(edit.question) for edit in EDITS]
        answers = edited.answers(asked)
    assert answers != model.base_answers(asked)
    after = model.network.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
