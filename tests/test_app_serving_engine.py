"""Serving: which models stay in memory, what they share, and how versions answer."""

from __future__ import annotations

import gc
import hashlib
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from api_service import Stage
from test_salem_scope_state_scope import metric_of, scoped_delta
from tiny_models import LABELS, tiny_network, tiny_tokenizer

from app.serving.engine import Engine
from app.serving.loaded_versions import ChainCache
from salem.deltas.chain import Chain
from salem.deltas.files import pack, unpack
from salem.deltas.terms import LayerDelta, LowRank
from salem.errors import BlobCorrupted, BlobMissing, DeltaRejected, ModelNotReady, SalemError
from salem.inference import gate, predict
from salem.models import digests, loading
from salem.models import network as networks
from salem.models.digests import FileDigests
from salem.models.folders import weights_sha256
from salem.models.layers import find_layers
from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import (
    Delta,
    HostedModel,
    Layer,
    ModelReference,
    ModelState,
    Task,
    TextInput,
    Version,
)
from salem.scope.metric_files import pack_metric
from salem.settings import Settings
from salem.storage.registry import Registry

INPUTS = [TextInput(input=text) for text in ("where is my order", "refund", "log in", "the lamp is broken")]


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


def engine_of(stage: Stage, max_resident_models: int = 2) -> Engine:
    own = {"device": "cpu", "max_resident_models": max_resident_models}
    return Engine(stage.blobs, stage.settings.model_copy(update=own))


def base(stage: Stage, model: HostedModel) -> Version:
    return stage.registry.resolve(ModelReference(model=model.name, number=0))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("bert", Task.SEQUENCE_CLASSIFICATION),
        ("gpt2", Task.TEXT_GENERATION),
        ("t5", Task.TEXT2TEXT_GENERATION),
    ],
)
def test_a_version_answers_like_a_model_with_changed_weights(
    stage: Stage, architecture: str, task: Task
) -> None:
    model = stage.host("m", architecture, task)
    version = stage.publish(model)
    engine = engine_of(stage)
    given = engine.predict(model, version, INPUTS, max_new_tokens=6)

    network = loading.load(stage.settings.effective_models_root / "m", task, device="cpu")
    untouched = predict.predict(network, INPUTS, max_new_tokens=6)
    unedited = engine.predict(model, base(stage, model), INPUTS, max_new_tokens=6)
    assert [(each.output, each.scores) for each in unedited] == [(e.output, e.scores) for e in untouched]
    assert model.sha256 is not None and version.layer is not None
    data = stage.blobs.get(version.deltas[0].blob)
    delta = unpack(data, base_sha256=model.sha256, layers=network.layers)
    weight = network.module(version.layer).get_parameter("weight")
    addition = torch.stack([term.dense() for term in delta.terms]).sum(0)  # [d_out, d_in]
    with torch.no_grad():
        weight += addition.T if architecture == "gpt2" else addition
    edited = predict.predict(network, INPUTS, max_new_tokens=6)
    assert [answer.output for answer in given] == [answer.output for answer in edited]
    assert given != unedited


def test_weights_that_a_worker_hashed_are_not_hashed_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = stage.host("m", "bert"), stage.settings.effective_models_root / "m"
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))  # files that were just written count as settled
    assert weights_sha256(folder, FileDigests(stage.settings.file_digests)) == model.sha256
    read, plain = [], hashlib.file_digest

    def noted(file: Any, algorithm: str) -> Any:
        read.append(Path(file.name).suffix)
        return plain(file, algorithm)

    monkeypatch.setattr(digests.hashlib, "file_digest", noted)
    assert engine_of(stage).predict(model, base(stage, model), INPUTS, max_new_tokens=1)
    assert set(read) == {".json"}, "the small files only"


def test_the_number_of_models_in_memory_is_limited(stage: Stage) -> None:
    models = [stage.host(f"m{index}", name) for index, name in enumerate(("bert", "distilbert", "roberta"))]
    engine = engine_of(stage, max_resident_models=2)
    first = [engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1) for model in models]
    assert len(engine._models) == 2
    assert [engine.predict(m, base(stage, m), INPUTS, max_new_tokens=1) for m in models] == first


def test_many_requests_at_once_load_a_model_once_and_stay_within_the_limit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [stage.host("m0", "bert"), stage.host("m1", "roberta")]
    engine, load = engine_of(stage, max_resident_models=1), loading.load
    there: set[int] = set()  # of the models: which of their networks somebody still holds
    most = 0

    def counted(folder: Path, *arguments: Any, **options: Any) -> Network:
        nonlocal most
        network = load(folder, *arguments, **options)
        there.add(name := id(network.model))
        weakref.finalize(network.model, there.discard, name)
        gc.collect()
        most = max(most, len(there))
        return network

    monkeypatch.setattr(loading, "load", counted)
    monkeypatch.setattr(loading, "copy_into_memory", lambda network: network)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(engine.predict, m, base(stage, m), INPUTS, max_new_tokens=1) for m in models * 8]
        given = [future.result(60) for future in asked]
    assert given == given[:2] * 8 and given[0] != given[1]
    assert most == 1 and len(engine._models) == 1


def test_a_model_is_served_at_the_layers_that_were_registered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release may find other layers."""
    model = stage.host("m", "bert")
    version = stage.publish(model)
    given = engine_of(stage).predict(model, version, INPUTS, max_new_tokens=1)
    layers: list[tuple[Layer, ...]] = []
    unpatched = predict.predict

    def seen(network: Network, *arguments: Any, **options: Any) -> list[predict.Answer]:
        layers.append(network.layers)
        return unpatched(network, *arguments, **options)

    monkeypatch.setattr(predict, "predict", seen)
    monkeypatch.setattr(networks, "find_layers", lambda loaded: find_layers(loaded)[:1])
    assert engine_of(stage).predict(model, version, INPUTS, max_new_tokens=1) == given
    assert layers == [model.layers]


def test_a_model_with_a_missing_or_unreadable_folder_is_not_ready(stage: Stage) -> None:
    model = stage.host("m", "bert")
    folder = stage.settings.effective_models_root / "m"
    (folder / "notes.txt").mkdir()  # named as a file that is read
    engine = engine_of(stage)
    engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)
    shutil.rmtree(folder)
    for ask in (
        lambda: engine_of(stage).predict(model, base(stage, model), INPUTS, max_new_tokens=1),
        lambda: engine_of(stage).count_tokens(model, INPUTS),
    ):
        with pytest.raises(ModelNotReady, match="There is no folder"):
            ask()


def test_two_names_of_the_same_weights_share_one_copy(stage: Stage) -> None:
    one, two = stage.host("one", "bert"), stage.host("two", "bert")
    engine = engine_of(stage)
    for model in (one, two):
        engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)
    assert one.sha256 == two.sha256 and len(engine._models) == 1


def described_otherwise(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace(LABELS[0], "money back"))
    tiny_tokenizer("bytes").save_pretrained(folder)


@pytest.mark.parametrize("noted", [True, False])
def test_names_that_share_weights_keep_their_own_labels_and_tokens(stage: Stage, noted: bool) -> None:
    one, two = stage.host("one", "bert"), stage.host("two", "bert", prepare=described_otherwise)
    assert one.descriptions_sha256 != two.descriptions_sha256
    if not noted:
        one, two = (model.model_copy(update={"descriptions_sha256": None}) for model in (one, two))
    engine = engine_of(stage)
    for model, labels in ((one, LABELS), (two, ("money back", *LABELS[1:]))):
        tokenizer = loading.load_tokenizer(stage.settings.effective_models_root / model.name)
        assert engine.count_tokens(model, INPUTS) == count_tokens(tokenizer, INPUTS)
        answers = engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)
        assert [set(answer.scores or ()) for answer in answers] == [set(labels)] * len(INPUTS)
    assert one.sha256 == two.sha256
    assert engine.count_tokens(one, INPUTS) != engine.count_tokens(two, INPUTS)


def test_changing_or_deleting_the_file_does_not_change_answers(stage: Stage) -> None:
    model = stage.host("m", "bert")
    engine, ours = engine_of(stage), base(stage, model)
    answered = engine.predict(model, ours, INPUTS, max_new_tokens=1)
    weights = stage.settings.effective_models_root / "m" / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    with weights.open("r+b") as file:  # in place, as `cp` does
        file.seek(header)
        file.write(bytes(weights.stat().st_size - header))
        file.flush()
        assert engine.predict(model, ours, INPUTS, max_new_tokens=1) == answered
        file.truncate(header)  # a process that still reads past it through a mapping crashes
    assert engine.predict(model, ours, INPUTS, max_new_tokens=1) == answered


def test_labels_and_tokens_are_those_that_were_registered(stage: Stage) -> None:
    model = stage.host("m", "bert")
    engine = engine_of(stage)
    answered = engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)
    described_otherwise(stage.settings.effective_models_root / "m")
    assert engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1) == answered
    for ask in (
        lambda: engine_of(stage).predict(model, base(stage, model), INPUTS, max_new_tokens=1),
        lambda: engine_of(stage).count_tokens(model, INPUTS),
    ):
        with pytest.raises(ModelNotReady, match=r"config or tokenizer files .* not the ones") as refused:
            ask()
        assert "Put the registered files back" in str(refused.value.remedy)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_files_that_change_while_they_load_are_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    model, load = stage.host("m", "bert"), loading.load

    def load_late(folder: Path, task: Task, **options: Any) -> Network:
        network = load(folder, task, **options)
        (folder / file).touch()
        return network

    monkeypatch.setattr(loading, "load", load_late)
    engine = engine_of(stage)
    with pytest.raises(ModelNotReady, match="changed while they were read"):
        engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)


def test_a_slow_store_does_not_delay_other_versions(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage.host("m", "bert")
    version, engine = stage.publish(model), engine_of(stage)
    asked, go_on, get = threading.Event(), threading.Event(), stage.blobs.get

    def slow(digest: str) -> bytes:
        asked.set()
        assert go_on.wait(30)
        return get(digest)

    monkeypatch.setattr(stage.blobs, "get", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.predict, model, version, INPUTS, max_new_tokens=1)
        assert asked.wait(30)
        unedited = engine.predict(model, base(stage, model), INPUTS, max_new_tokens=1)
        go_on.set()
        assert waiting.result() != unedited


def test_threads_do_not_see_each_others_deltas(stage: Stage) -> None:
    model = stage.host("m", "bert")
    versions = [base(stage, model), *(stage.publish(model, seed=seed) for seed in range(3))]
    engine = engine_of(stage)
    alone = {v.number: engine.predict(model, v, INPUTS, max_new_tokens=1) for v in versions}
    with ThreadPoolExecutor(8) as pool:
        asked = [
            (v.number, pool.submit(engine.predict, model, v, INPUTS, max_new_tokens=1)) for v in versions * 8
        ]
        lengths = [pool.submit(engine.count_tokens, model, INPUTS) for _ in range(16)]
        assert all(future.result() == alone[number] for number, future in asked)
        assert len({tuple(future.result()) for future in lengths}) == 1


def test_a_delta_of_another_base_is_refused(stage: Stage) -> None:
    bert, other = stage.host("bert", "bert"), stage.host("other", "roberta")
    with pytest.raises(DeltaRejected):
        engine_of(stage).predict(other, stage.publish(bert), INPUTS, max_new_tokens=1)


def test_a_model_that_is_not_ready_is_refused(stage: Stage) -> None:
    model = stage.host("m", "bert")
    waiting = model.model_copy(update={"state": ModelState.REGISTERING})
    with pytest.raises(ModelNotReady):
        engine_of(stage).predict(waiting, base(stage, model), INPUTS, max_new_tokens=1)


@pytest.mark.parametrize("fault", [BlobMissing, BlobCorrupted])
def test_a_version_with_a_missing_or_damaged_file_is_named(stage: Stage, fault: type[SalemError]) -> None:
    model = stage.host("m", "bert")
    version = stage.publish(model)
    digest = version.deltas[0].blob
    (path,) = (stage.settings.home / "blobs").rglob(digest)
    path.unlink() if fault is BlobMissing else path.write_bytes(b"something else")
    engine = engine_of(stage)
    with pytest.raises(fault, match=f"m:{version.number} cannot answer: the stored file {digest[:12]}"):
        engine.predict(model, version, INPUTS, max_new_tokens=2)
    assert len(engine.predict(model, base(stage, model), INPUTS, max_new_tokens=2)) == len(INPUTS)


def test_the_version_cache_stays_within_its_budget() -> None:
    def chain(rank: int) -> Chain:
        return Chain.of([LayerDelta("layer", (LowRank(torch.zeros(rank, 1), torch.zeros(1, rank)),))])

    cache = ChainCache(max_bytes=24)
    for name in (b"a", b"b", b"c"):
        cache.put(("base", name), chain(1))  # of 8 bytes
        cache.get(("base", b"a"))
    cache.put(("base", b"d"), chain(1))
    assert [name for _, name in cache.chains] == [b"c", b"a", b"d"] and cache.num_bytes == 24
    cache.put(("base", b"huge"), chain(10))
    assert [name for _, name in cache.chains] == [b"huge"] and cache.num_bytes == 80


@pytest.fixture
def reads(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the names of the blobs that are read."""
    found: list[str] = []
    get = stage.blobs.get

    def counted(digest: str) -> bytes:
        found.append(digest)
        return get(digest)

    monkeypatch.setattr(stage.blobs, "get", counted)
    return found


def scoped_chain(stage: Stage, model: HostedModel, length: int) -> Version:
    """A version whose deltas all name one metric, each with an entry for one input."""
    network = tiny_network("bert")
    metric = metric_of(network)
    stored = stage.blobs.put(pack_metric(metric))
    version = base(stage, model)
    for place in range(length):
        inputs = [INPUTS[place % len(INPUTS)]]
        delta = scoped_delta(network, network.layers[-1], inputs, seed=place, metric=metric, size=5.0)
        data = pack(delta, base_sha256=str(model.sha256))
        blob = stage.blobs.put(data)
        kept = Delta(
            layer=delta.layer, blob=blob, num_bytes=len(data), kind="scoped", rank=None, metric=stored,
            version=place + 1,
        )  # fmt: skip
        version = version.model_copy(update={"deltas": (*version.deltas, kept), "number": place + 1})
    return version


def test_each_blob_of_a_version_is_read_once_and_its_metric_is_one_object(
    stage: Stage, reads: list[str]
) -> None:
    model = stage.host("m", "bert")
    version, engine = scoped_chain(stage, model, 20), engine_of(stage)
    first = engine.predict(model, version, INPUTS, max_new_tokens=1, explain=True)
    assert len(reads) == len(set(reads)) == 21
    assert engine.predict(model, version, INPUTS, max_new_tokens=1, explain=True) == first
    shorter = version.model_copy(update={"deltas": version.deltas[:19], "number": 19})
    engine.predict(model, shorter, INPUTS, max_new_tokens=1)
    assert len(set(reads[21:])) == len(reads[21:]) == 19, "a shorter version is read by itself"
    ((_, one), (_, other)) = engine._versions._cache.chains.values()
    assert one.scopes[0].metric is other.scopes[0].metric


def test_a_longer_version_reads_only_its_new_deltas(stage: Stage, reads: list[str]) -> None:
    model = stage.host("m", "bert")
    version = scoped_chain(stage, model, 6)
    expected = engine_of(stage).predict(model, version, INPUTS, max_new_tokens=1, explain=True)
    reads.clear()
    engine = engine_of(stage)
    for length in (2, 5, 6):
        part = version.model_copy(update={"deltas": version.deltas[:length], "number": length})
        found = engine.predict(model, part, INPUTS, max_new_tokens=1, explain=True)
    assert [name for name in reads if name != version.deltas[0].metric] == [d.blob for d in version.deltas]
    assert found == expected
    assert [answer.match and answer.match.edit_id for answer in found] == ["5.0", "6.0", "3.0", "4.0"]  # type: ignore[attr-defined]


def test_the_match_comes_from_the_pass_that_answers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage.host("m", "bert")
    version = scoped_chain(stage, model, 2)
    monkeypatch.setattr(gate, "fire", lambda *_: pytest.fail("the base ran a second time"))
    found = engine_of(stage).predict(model, version, INPUTS, max_new_tokens=1, explain=True)
    matched = [answer.match for answer in found]  # type: ignore[attr-defined]
    assert [match and match.edit_id for match in matched] == ["1.0", "2.0", None, None]


def test_the_number_of_tokenizers_in_memory_is_limited(stage: Stage) -> None:
    models = [stage.host(f"m{index}", name) for index, name in enumerate(("bert", "distilbert", "roberta"))]
    engine = engine_of(stage, max_resident_models=2)
    counts = [engine.count_tokens(model, INPUTS) for model in models]
    assert len(engine._tokenizers) == 2
    assert [engine.count_tokens(model, INPUTS) for model in models] == counts and len(engine._tokenizers) == 2
