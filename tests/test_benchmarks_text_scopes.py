"""The benchmark of text scopes runs, and its kinds of questions take the stages that they are named for."""

import json
import random

import pytest

from benchmarks.text_scopes import facts, main, milliseconds, near, scope_of
from salem.scope.encoder import ScopeEncoder
from salem.scope.encoder_files import load_encoder


def test_it_prints_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "2", "--entries", "40"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.pop("entries") == 40
    assert set(found) == {"ruled_out_ms", "encoded_ms", "judged_ms", "together_ms_per_question"}
    assert all(value > 0 for value in found.values())


def test_near_questions_reach_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("package")
    assert encoder is not None
    draw = random.Random(0)
    scope = scope_of(encoder, [next(facts(draw)) for _ in range(20)])
    judged: list[object] = []
    whole = ScopeEncoder.score

    def score(self: ScopeEncoder, pairs: list[tuple[str, str]], cosines: list[float]) -> list[float]:
        judged.extend(pairs)
        return whole(self, pairs, cosines)

    monkeypatch.setattr(ScopeEncoder, "score", score)
    milliseconds(scope, ([text] for text in near(scope, draw)), 4)
    assert len(judged) >= 4
