"""The judge's library and its pairs: questions that are the same, and questions that only look alike."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from labeled_texts import save_labeled
from transformers import AutoModel

from salem.errors import DeltaRejected
from salem.records import Task
from salem.scope.encoder import COSINE_WEIGHT, ScopeEncoder
from salem.scope.encoder_files import load_encoder
from salem.scope.judge_files import pack_judge, unpack_judge
from worker.judge.names import draw_name, similar_name
from worker.judge.pairs import Fact, Pair, everyday_pairs, fact_pairs, library_pairs
from worker.judge.relations import everyday_questions, relations, relations_on, siblings
from worker.judge.train import Judge, report, train
from worker.judge.wording import negate

FACTS = [
    Fact("Lake Ulmere", "Where is Lake Ulmere?", "In which place can Lake Ulmere be found?", "Peru", None),
    Fact("Nora Vane", "Who taught Nora Vane?", "By whom was Nora Vane trained?", "Otto Hart", None),
    Fact("Mount Gale", "How tall is Mount Gale?", "What height does Mount Gale have?", "3,100 m", None),
]


def test_every_relation_has_its_forms() -> None:
    assert len(relations()) >= 100
    for relation in relations():
        about_subject = (*relation.questions, *relation.state, *relation.phrases)
        assert len(relation.ask) >= 2 and all("{s}" in form and "{o}" not in form for form in about_subject)
        assert relation.reverse and all("{o}" in form and "{s}" not in form for form in relation.reverse)
        assert relation.confirm and all("{o}" in form and "{s}" in form for form in relation.confirm)
        assert relation in relations_on(relation.on[0])
        assert relation not in siblings(relation, relation.on[0])


def test_no_question_belongs_to_two_relations_of_one_subject() -> None:
    for kind in {kind for relation in relations() for kind in relation.on}:
        asked = [form for relation in relations_on(kind) for form in relation.ask]
        assert sorted(set(asked)) == sorted(asked), kind


def test_every_type_has_names() -> None:
    rng = random.Random(0)
    kinds = {kind for relation in relations() for kind in (*relation.on, relation.gives)}
    names = {kind: draw_name(kind, rng) for kind in kinds}
    assert all(name and "{" not in name for name in names.values())
    assert all(similar_name(name, kind, rng) != name for kind, name in names.items())


def test_an_everyday_question_has_several_wordings() -> None:
    questions = list(chain.from_iterable(everyday_questions().values()))
    wordings = [wording for question in questions for wording in question]
    assert all(len(question) >= 3 for question in questions)
    assert len(set(wordings)) == len(wordings)


def pairs_of(seed: int) -> list[Pair]:
    rng = random.Random(seed)
    drawn = [library_pairs(rng, 17), fact_pairs(FACTS[0], FACTS[1:], rng, 18), everyday_pairs(rng, 6)]
    return [pair for part in drawn for pair in part]


def test_pairs_depend_only_on_the_seed() -> None:
    assert pairs_of(3) == pairs_of(3) != pairs_of(4)


def test_each_key_has_one_positive_and_neighbors_of_many_kinds() -> None:
    pairs = [pair for seed in range(30) for pair in pairs_of(seed)]
    assert sum(pair.same for pair in pairs) == 3 * 30
    assert all(pair.key != pair.other for pair in pairs)
    kinds = {pair.kind for pair in pairs if not pair.same}
    assert kinds >= {"other subject", "sibling", "reversed", "yes/no", "hop", "negated", "request", "open"}


@pytest.mark.parametrize(
    ("question", "negated"),
    [
        ("When did Nora Vane die?", "When did Nora Vane not die?"),
        ("Who wrote Iron Crown?", "Who never wrote Iron Crown?"),
        ("capital of Peru", None),
    ],
)
def test_a_question_is_negated_by_its_verb(question: str, negated: str | None) -> None:
    assert negate(question, random.Random(0)) == negated


def test_training_changes_only_the_low_rank_weights(tmp_path: Path) -> None:
    save_labeled(tmp_path, "encoder", "bert", Task.SEQUENCE_CLASSIFICATION)
    judge = Judge(tmp_path / "encoder", seed=0)
    before = {name: weight.clone() for name, weight in judge.named_parameters()}
    losses = [loss for _, loss in train(judge, FACTS, 3, random.Random(0))]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    changed = {name for name, weight in judge.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all(name.endswith((".a", ".b")) or name.startswith("head.") for name in changed)
    encoder = load_encoder(str(tmp_path / "encoder"))
    assert encoder is not None
    figures = report(judge, encoder, pairs_of(0))
    assert set(figures) > {"bound", "reversed"} and all(0 <= figures[kind] <= 1 for kind in ("hop", "open"))


def test_a_packed_judge_scores_as_the_trained_one(tmp_path: Path) -> None:
    save_labeled(tmp_path, "encoder", "bert", Task.SEQUENCE_CLASSIFICATION)
    judge = Judge(tmp_path / "encoder", seed=0)
    list(train(judge, FACTS, 3, random.Random(0)))
    judge.eval()
    plain = AutoModel.from_pretrained(tmp_path / "encoder")
    packed = pack_judge(judge.trained(), 4.5, base_sha256="0" * 64)
    merged = unpack_judge(packed, plain, base_sha256="0" * 64)
    encoder = ScopeEncoder(plain, judge.tokenizer, merged, "with a judge")
    pairs = [(pair.key, pair.other) for pair in pairs_of(0)]
    with torch.inference_mode():
        expected = judge(*zip(*pairs, strict=True)).tolist()
    assert encoder.bound == 4.5
    assert encoder.score(pairs, [0.0] * len(pairs)) == pytest.approx(expected, abs=5e-3)
    assert encoder.score(pairs[:1], [1.0])[0] == pytest.approx(expected[0] + COSINE_WEIGHT, abs=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_sha256": "1" * 64}, "other encoder weights"),
        ({"bound": float("nan")}, "bound is not a number"),
        ({"head": torch.zeros(0)}, "do not fit"),
    ],
)
def test_a_judge_that_does_not_fit_its_encoder_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_labeled(tmp_path, "encoder", "bert", Task.SEQUENCE_CLASSIFICATION)
    plain = AutoModel.from_pretrained(tmp_path / "encoder")
    trained = Judge(tmp_path / "encoder", seed=0).trained()
    trained |= {name: value for name, value in change.items() if name == "head"}
    packed = pack_judge(trained, change.get("bound", 4.5), base_sha256=change.get("base_sha256", "0" * 64))
    with pytest.raises(DeltaRejected, match=message):
        unpack_judge(packed, plain, base_sha256="0" * 64)
