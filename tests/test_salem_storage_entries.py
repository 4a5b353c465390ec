"""Entries of versions in the registry: pages, removed entries, and lookups by text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from registry_records import claim, new_job, new_version, ready_model, versions_of

from salem.errors import NotFound
from salem.records import (
    Delta,
    Edit,
    EditId,
    EditRequest,
    Entry,
    EntryKey,
    JobKind,
    ModelReference,
    RecipeOptions,
    TextInput,
    Version,
)
from salem.storage.publication import Publication
from salem.storage.registry import Registry


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def entry(text: str, target: str = "refund", *rewordings: str, pair: str | None = None) -> Entry:
    keys = tuple(EntryKey(text=words, radius=0.5, nearest_likeness=0.25) for words in (text, *rewordings))
    return Entry(input=text, text_pair=pair, target=target, keys=keys)


def scoped(blob: str, **numbers: Any) -> Delta:
    return Delta(layer="encoder.1", blob=blob * 64, num_bytes=9, kind="scoped", rank=None, **numbers)


def publish(
    registry: Registry, deltas: Sequence[Delta], entries: dict[int, Sequence[tuple[int, Entry]]]
) -> Version:
    parent = versions_of(registry, "intents")
    version = new_version(parent=parent[0].number if parent else 0).model_copy(
        update={"deltas": tuple(deltas)}
    )
    job = new_job(registry)
    return registry.finish_edit(job.id, claim(registry, job), version, {}, Publication(entries=entries))


def ids(registry: Registry, version: Version, **query: Any) -> list[str]:
    return [found.id for found in registry.entries.list_page(version, **query)[0]]


def test_a_version_lists_its_own_entries_and_those_of_its_chain_oldest_first(registry: Registry) -> None:
    ready_model(registry)
    first = publish(registry, [scoped("a")], {0: [(0, entry("a")), (1, entry("b", pair="p"))]})
    plain = scoped("c").model_copy(update={"kind": "low_rank"})
    second = publish(registry, [*first.deltas, plain], {})
    third = publish(registry, [*second.deltas, scoped("d")], {2: [(0, entry("a", "login"))]})
    assert ids(registry, first) == ["1.0", "1.1"] == ids(registry, second)
    assert ids(registry, third) == ["1.0", "1.1", "3.0"]
    (shown, paired, newest), more = registry.entries.list_page(third)
    assert not more and shown.keys == entry("a").keys and shown.layer == "encoder.1"
    assert (paired.text_pair, paired.version, paired.job_id) == ("p", 1, first.job_id)
    assert (newest.target, newest.version, newest.job_id) == ("login", 3, third.job_id)


def test_pages_continue_from_one_delta_to_the_next(registry: Registry) -> None:
    ready_model(registry)
    version = publish(registry, [scoped("a")], {0: [(place, entry(f"a {place}")) for place in range(3)]})
    version = publish(registry, [*version.deltas, scoped("b")], {1: [(0, entry("b 0")), (1, entry("b 1"))]})
    whole = ["1.0", "1.1", "1.2", "2.0", "2.1"]
    for limit in (1, 2, 3, 4, 5, 9):
        seen: list[str] = []
        more, after = True, None
        while more:
            page, more = registry.entries.list_page(version, limit=limit, after=after)
            assert 0 < len(page) <= limit
            seen += [found.id for found in page]
            after = EditId.parse(seen[-1])
        assert seen == whole
    for unknown in ("1.3", "3.0", "2.2"):
        with pytest.raises(NotFound, match=unknown):
            registry.entries.list_page(version, after=EditId.parse(unknown))


def test_removed_entries_are_not_listed_and_the_others_keep_their_ids(registry: Registry) -> None:
    ready_model(registry)
    version = publish(registry, [scoped("a")], {0: [(place, entry(f"a {place}")) for place in range(4)]})
    cut = scoped("b", version=1, made_in=1, removed=(0, 2))
    without = publish(registry, [cut], {})
    assert ids(registry, without) == ["1.1", "1.3"] and ids(registry, version) == ["1.0", "1.1", "1.2", "1.3"]
    with pytest.raises(NotFound):
        registry.entries.list_page(without, after=EditId(1, 2))
    assert [cut.index_of(place) for place in range(2)] == [1, 3]
    assert [cut.entry_of(place) for place in (1, 3)] == [0, 1]


def test_a_replayed_delta_has_new_entries_under_the_old_ids(registry: Registry) -> None:
    ready_model(registry)
    publish(registry, [scoped("a")], {0: [(0, entry("a")), (1, entry("b"))]})
    replayed = publish(registry, [scoped("b", version=1, removed=(0,))], {0: [(1, entry("b", "login"))]})
    assert replayed.deltas[0].made_in == 2
    ((found,), _) = registry.entries.list_page(replayed)
    assert (found.id, found.target) == ("1.1", "login")
    first = registry.resolve(ModelReference(model="intents", number=1))
    assert [found.target for found in registry.entries.list_page(first)[0]] == ["refund", "refund"]


def test_entries_are_found_by_any_of_their_texts_newest_first(registry: Registry) -> None:
    ready_model(registry)
    version = publish(registry, [scoped("a")], {0: [(0, entry("my lamp", "refund", "the  lamp of mine"))]})
    version = publish(
        registry, [*version.deltas, scoped("b")], {1: [(0, entry("x")), (1, entry("the lamp of mine"))]}
    )

    def find(*inputs: TextInput) -> list[str]:
        return [found.id for found in registry.entries.find(version, inputs)]

    assert find(TextInput(input="my\nlamp ")) == ["1.0"]
    assert find(TextInput(input="the lamp of mine")) == ["2.1", "1.0"]
    assert find(TextInput(input="my lamp", text_pair="other")) == [] == find(TextInput(input="no such"))
    many = [TextInput(input=f"text {number}") for number in range(1_200)]
    assert find(*many, TextInput(input="x")) == ["2.0"]
    cut = publish(registry, [version.deltas[0]], {})
    assert [found.id for found in registry.entries.find(cut, [TextInput(input="the lamp of mine")])] == [
        "1.0"
    ]


def test_ten_thousand_entries_are_written_and_paged_fast(registry: Registry) -> None:
    ready_model(registry)
    began = time.monotonic()
    version = publish(
        registry, [scoped("a")], {0: [(place, entry(f"text {place}")) for place in range(10_000)]}
    )
    written = time.monotonic()
    page, more = registry.entries.list_page(version, limit=100, after=EditId(1, 9_000))
    found = registry.entries.find(version, [TextInput(input="text 77")])
    assert more and page[0].id == "1.9001" and len(page) == 100 and found[0].id == "1.77"
    assert time.monotonic() - written < 0.5
    assert written - began < 20


def test_requests_are_found_by_the_versions_that_they_made(registry: Registry) -> None:
    ready_model(registry)
    request = EditRequest(
        model="intents",
        parent=0,
        edits=(Edit(input="a", target="refund"),),
        options=RecipeOptions(recipe="scoped"),
    )
    job, _ = registry.jobs.create(JobKind.EDIT, "intents", request.model_dump(mode="json"))
    registry.finish_edit(job.id, claim(registry, job), new_version(), {})
    assert registry.entries.edit_requests("intents", [1, 1, 2]) == {1: request}


def test_a_metric_that_a_job_trained_becomes_the_models_metric_and_is_in_use(registry: Registry) -> None:
    ready_model(registry)
    delta = scoped("a").model_copy(update={"metric": "b" * 64})
    for made in (Publication(metric="b" * 64), Publication()):
        job = new_job(registry)
        version = new_version().model_copy(update={"deltas": (delta,)})
        registry.finish_edit(job.id, claim(registry, job), version, {}, made)
        assert registry.get_model("intents").scope_metric == "b" * 64
    assert {"a" * 64, "b" * 64} <= registry.blobs_in_use()
