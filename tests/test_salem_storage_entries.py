"""Entries of versions in the registry: pages, what was removed, texts, and the migration that adds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from registry_records import NOW, claim, new_job, new_version, ready_model

from salem.errors import NotFound
from salem.records import (
    Delta,
    Edit,
    EditId,
    EditRequest,
    Entry,
    EntryKey,
    Hyperparameters,
    JobKind,
    ModelReference,
    TextInput,
    Version,
)
from salem.storage.database import Database
from salem.storage.registry import Registry
from salem.storage.rows.entries import MadeEntries


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
    parent = registry.list_versions("intents")
    version = new_version(parent=parent[0].number if parent else 0).model_copy(
        update={"deltas": tuple(deltas)}
    )
    job = new_job(registry)
    return registry.finish_edit(job.id, claim(registry, job), version, None, {}, MadeEntries(entries))


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


def test_pages_follow_one_another_over_the_ends_of_deltas(registry: Registry) -> None:
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


def test_removed_entries_are_gone_and_the_others_keep_their_ids(registry: Registry) -> None:
    ready_model(registry)
    version = publish(registry, [scoped("a")], {0: [(place, entry(f"a {place}")) for place in range(4)]})
    cut = scoped("b", version=1, made_in=1, removed=(0, 2))
    without = publish(registry, [cut], {})
    assert ids(registry, without) == ["1.1", "1.3"] and ids(registry, version) == ["1.0", "1.1", "1.2", "1.3"]
    with pytest.raises(NotFound):
        registry.entries.list_page(without, after=EditId(1, 2))
    assert [cut.index_of(place) for place in range(2)] == [1, 3]
    assert [cut.entry_of(place) for place in (1, 3)] == [0, 1]


def test_a_replayed_delta_has_entries_of_its_own_under_the_old_ids(registry: Registry) -> None:
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


def test_the_requests_behind_versions(registry: Registry) -> None:
    ready_model(registry)
    request = EditRequest(model="intents", parent=0, edits=(Edit(input="a", target="refund"),))
    job, _ = registry.create_job(JobKind.EDIT, "intents", request.model_dump(mode="json"))
    registry.finish_edit(job.id, claim(registry, job), new_version(), None, {})
    assert registry.entries.edit_requests("intents", [1, 1, 2]) == {1: request}


def migrated_to(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "salem:migrations")
    config.attributes["connection"] = connection
    if revision == "head":
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def test_an_older_database_keeps_its_data_and_learns_of_its_entries(
    database_url: str, registry: Registry
) -> None:
    """Go back to the older tables, write what was written then, and come forward again."""
    ready_model(registry)
    edits = [
        {"input": "my lamp", "target": "refund", "paraphrases": ["lamp of  mine"]},
        {"input": "b", "target": "c"},
    ]
    database = Database.connect(database_url)
    with database.write() as connection:
        migrated_to(connection, "0001")
        assert not sa.inspect(connection).has_table("entries")
        old = [
            scoped(blob).model_dump(mode="json", exclude={"metric", "version", "made_in", "removed"})
            for blob in "ab"
        ]
        plain = old[0] | {"blob": "c" * 64, "kind": "dense"}
        for number, deltas in ((1, old[:1]), (2, [old[0], plain]), (3, [old[0], plain, old[1]])):
            insert_old(connection, number, deltas, edits)
    with database.write() as connection:
        migrated_to(connection, "head")
    database.close()
    newest = registry.resolve(ModelReference(model="intents", number=3))
    assert [(delta.version, delta.made_in, delta.removed) for delta in newest.deltas] == [
        (number, number, ()) for number in (1, 2, 3)
    ]
    listed, _ = registry.entries.list_page(newest)
    assert [found.id for found in listed] == ["1.0", "1.1", "3.0", "3.1"]
    assert (listed[0].input, listed[0].target, listed[0].keys, listed[0].job_id) == (
        "my lamp",
        "refund",
        (),
        "job-1",
    )
    found = registry.entries.find(newest, [TextInput(input="lamp of mine")])
    assert [each.id for each in found] == ["3.0", "1.0"]
    assert registry.entries.edit_requests("intents", [2])[2].edits[0].paraphrases == ("lamp of  mine",)


@pytest.mark.parametrize("revision", ["0004", "0005"])
def test_older_code_is_not_given_a_metric_that_it_cannot_read(
    database_url: str, registry: Registry, revision: str
) -> None:
    ready_model(registry)
    database = Database.connect(database_url)
    with database.write() as connection:
        connection.execute(sa.text(f"UPDATE models SET scope_metric = '{'b' * 64}'"))
        config = Config()
        config.set_main_option("script_location", "salem:migrations")
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        assert connection.execute(sa.text("SELECT scope_metric FROM models")).scalars().all() == [None]
        command.upgrade(config, "head")
    database.close()
    assert registry.get_model("intents").scope_metric is None, "the next job trains one"


@contextmanager
def stored_options(
    registry: Registry, database_url: str, used: Hyperparameters, older: str
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Options of a version and of its job as they are stored, in an older database and then in this one."""
    ready_model(registry)
    request = EditRequest(
        model="intents", parent=0, edits=(Edit(input="a", target="refund"),), hyperparameters=used
    )
    job, _ = registry.create_job(JobKind.EDIT, "intents", request.model_dump(mode="json"))
    version = new_version().model_copy(update={"hyperparameters": used})
    registry.finish_edit(job.id, claim(registry, job), version, None, {})
    database = Database.connect(database_url)
    versions = sa.select(sa.table("versions", sa.column("hyperparameters", sa.JSON)))
    requests = sa.select(sa.table("jobs", sa.column("request", sa.JSON)))
    revisions = iter((older, "head"))

    def stored() -> list[dict[str, Any]]:
        with database.write() as connection:
            migrated_to(connection, next(revisions))
            found = [*connection.execute(versions).scalars()]
            found += [each.get("hyperparameters") for each in connection.execute(requests).scalars()]
        return [each for each in found if each]

    yield stored
    database.close()


@pytest.mark.parametrize(("weight", "before"), [(0.05, 0.2), (0.0, 0.0), (0.25, 1.0), (1.5, 2.0)])
def test_what_an_exchanged_word_cost_is_said_in_the_new_unit(
    registry: Registry, database_url: str, weight: float, before: float
) -> None:
    """Of versions and of jobs' requests; what was not allowed before becomes the largest that was."""
    used = Hyperparameters(lexical_weight=weight)
    with stored_options(registry, database_url, used, "0006") as stored:
        assert [options["lexical_weight"] for options in stored()] == [before] * 2
        assert [options["lexical_weight"] for options in stored()] == [min(weight, 0.5)] * 2


@pytest.mark.parametrize(
    ("candidates", "before"), [("recipe", "middle"), ("middle", "middle"), ("all", "all")]
)
def test_what_was_made_before_there_were_stand_ins_had_none(
    registry: Registry, database_url: str, candidates: str, before: str
) -> None:
    used = Hyperparameters.model_validate({"candidates": candidates})
    with stored_options(registry, database_url, used, "0007") as stored:
        older, newer = stored(), stored()
    assert [options["candidates"] for options in older] == [before] * 2
    assert not any("anchor_samples" in options for options in older)
    assert [(options["anchor_samples"], options["candidates"]) for options in newer] == [(0, before)] * 2


def insert_old(connection: sa.Connection, number: int, deltas: list[Any], edits: list[Any]) -> None:
    tables = sa.MetaData()
    tables.reflect(connection, only=("jobs", "versions"))
    job = {
        "id": f"job-{number}", "kind": "edit", "model": "intents", "state": "succeeded", "phase": "done",
        "progress": 1.0, "attempt": 1, "saliency": [], "metrics": {}, "created_at": NOW,
        "request": {"model": "intents", "parent": number - 1, "edits": edits},
    }  # fmt: skip
    version = {
        "model": "intents", "number": number, "parent": number - 1, "deltas": deltas, "created_at": NOW,
        "job_id": f"job-{number}",
    }  # fmt: skip
    connection.execute(sa.insert(tables.tables["jobs"]).values(job))
    connection.execute(sa.insert(tables.tables["versions"]).values(version))


def test_the_metric_that_a_job_made_is_the_models_and_is_in_use(registry: Registry) -> None:
    ready_model(registry)
    delta = scoped("a").model_copy(update={"metric": "b" * 64})
    for made in (MadeEntries({}, "b" * 64), MadeEntries({})):
        job = new_job(registry)
        version = new_version().model_copy(update={"deltas": (delta,)})
        registry.finish_edit(job.id, claim(registry, job), version, None, {}, made)
        assert registry.get_model("intents").scope_metric == "b" * 64
    assert {"a" * 64, "b" * 64} <= registry.blobs_in_use()
