"""The marks around a user's turn are read off any chat template."""

import pytest
from transformers import PreTrainedTokenizerFast

from salem.models.chat import TurnFinder
from tests.tiny_models import tiny_tokenizer

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_start|>user\n",
    ),
    "headers": (
        "{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "<|head|>assistant<|/head|>\n\n",
        ["<|head|>", "<|/head|>", "<|eot|>"],
        "<|head|>user<|/head|>\n\n",
    ),
    "brackets that are special tokens": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        ["[INST]", "[/INST]"],
        "[INST] ",
    ),
    "brackets that are plain text": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        [],
        "[INST] ",
    ),
    "plain words": (
        "A chat.{% for m in messages %}{% if m.role == 'user' %} USER: {{ m.content }}"
        "{% else %} ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %} ASSISTANT:",
        [],
        "USER: ",
    ),
}


def _tokenizer(template: str | None, special: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_user_turn_is_found(name: str) -> None:
    template, special, opening = TEMPLATES[name]
    tokenizer = _tokenizer(template, special)
    finder = TurnFinder.of(tokenizer)
    assert finder.opening == opening
    for turns in (
        [("user", "Who is it?")],
        [("user", "Hello!"), ("assistant", "Hi."), ("user", "Who is it?")],
    ):
        messages = [{"role": role, "content": text} for role, text in turns]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert finder.question(prompt) == "Who is it?"
        place = finder.last_user_turn(prompt)
        changed = prompt[: place.start] + "Where?" + prompt[place.stop :]
        assert finder.question(changed) == "Where?"
        assert "Who is it?" not in changed


def test_a_text_without_marks_is_one_turn() -> None:
    finder = TurnFinder.of(_tokenizer(TEMPLATES["chatml"][0], TEMPLATES["chatml"][1]))
    assert finder.question("  Who is it? ") == "  Who is it? "
    assert finder.last_user_turn("") == slice(0, 0)


def test_a_prompt_that_is_cut_off_ends_with_its_turn() -> None:
    finder = TurnFinder(opening="<|user|>", closing="<|end|>")
    assert finder.question("<|user|>One<|end|><|user|> Two ") == "Two"
    assert finder.quote("<|user|>One<|end|><|user|> Two ") == '"Two"'


@pytest.mark.parametrize(
    "template",
    [None, "{{ raise_exception('no roles') }}", "{% for m in messages %}{{ m.content }}|{% endfor %}"],
    ids=["no template", "a template that refuses", "roles that look alike"],
)
def test_without_usable_marks_the_whole_prompt_is_the_turn(template: str | None) -> None:
    finder = TurnFinder.of(_tokenizer(template, []))
    assert finder.question("One|Two|") == "One|Two|"
