"""Chains of versions: what a version stores, what it inherits, and how fast a long chain is."""

from __future__ import annotations

import time

import pytest
from registry_records import NOW, claim, new_job, new_version, publish, ready_model, versions_of
from sqlalchemy import insert

from salem.records import (
    BrokenNeighbor,
    Delta,
    DetailedMetrics,
    EditOutcome,
    Flip,
    ListedBrokenNeighbor,
    ListedFlip,
    ListedOutcome,
    ModelReference,
    Proportion,
    Version,
)
from salem.storage import schema
from salem.storage.database import Database
from salem.storage.publication import Publication
from salem.storage.registry import Registry
from salem.storage.rows import chains
from salem.storage.schema import row_values

SHARE = Proportion(value=1.0, low=0.9, high=1.0, count=10)


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def scoped(number: int, **fields: object) -> Delta:
    new = Delta(layer="encoder.1", blob=f"{number:064x}", num_bytes=9, kind="scoped", rank=None)
    return new.model_copy(update=fields)


def on_top(registry: Registry, parent: Version | None, *deltas: Delta) -> Version:
    """A version whose chain is exactly these deltas."""
    version = new_version(parent=parent.number if parent else 0)
    return publish(registry, version.model_copy(update={"deltas": deltas}))


def read_again(registry: Registry, version: Version) -> Version:
    return registry.resolve(ModelReference(model=version.model, number=version.number))


def test_a_chain_is_read_back_in_the_order_of_application(registry: Registry) -> None:
    ready_model(registry)
    first = on_top(registry, None, scoped(1))
    second = on_top(registry, first, *first.deltas, scoped(2))
    branch = on_top(registry, first, *first.deltas, scoped(3))
    third = on_top(registry, second, *second.deltas, scoped(4))
    for version in (first, second, branch, third):
        assert read_again(registry, version) == version
    assert [delta.blob for delta in third.deltas] == [scoped(number).blob for number in (1, 2, 4)]
    assert [delta.version for delta in third.deltas] == [1, 2, 4]


def test_a_version_without_an_edit_has_the_same_chain_as_one_that_never_had_it(registry: Registry) -> None:
    """One delta is dropped, another loses an edit, and children inherit both changes."""
    ready_model(registry)
    first = on_top(registry, None, scoped(1))
    second = on_top(registry, first, *first.deltas, scoped(2))
    third = on_top(registry, second, *second.deltas, scoped(3))
    one, _, three = third.deltas
    smaller = three.model_copy(update={"blob": f"{9:064x}", "removed": (0,)})
    removed = on_top(registry, third, one, smaller)
    child = on_top(registry, removed, *removed.deltas, scoped(5))
    assert read_again(registry, removed).deltas == (one, smaller)
    assert read_again(registry, child) == child and read_again(registry, third) == third
    emptied = on_top(registry, child)
    assert read_again(registry, emptied).deltas == ()


def test_a_version_stores_only_what_it_adds(registry: Registry, database_url: str) -> None:
    ready_model(registry)
    version = on_top(registry, None, scoped(1))
    for number in (2, 3):
        version = on_top(registry, version, *version.deltas, scoped(number))
    database = Database.connect(database_url)
    with database.read() as connection:
        assert chains.ancestors(connection, "intents", 3) == {0, 1, 2, 3}
        rows = connection.exec_driver_sql("SELECT number, version FROM deltas ORDER BY number").all()
    database.close()
    assert [tuple(row) for row in rows] == [(1, 1), (2, 2), (3, 3)]


def test_a_thousand_chained_versions_are_listed_swept_and_resolved_fast(
    registry: Registry, database_url: str
) -> None:
    ready_model(registry)
    job = registry.jobs.get(new_job(registry).id)
    numbers = range(1, 1_001)
    header = {"model": "intents", "dropped": [], "metrics": None, "created_at": NOW}
    own = scoped(0, metric="c" * 64).model_dump(mode="json")
    database = Database.connect(database_url)
    with database.write() as connection:
        rows = [row_values(job) | {"id": f"job-{number}", "request": {}} for number in numbers]
        connection.execute(insert(schema.jobs), rows)
        rows = [header | {"number": n, "parent": n - 1, "job_id": f"job-{n}"} for n in numbers]
        connection.execute(insert(schema.versions), rows)
        rows = [
            own | {"model": "intents", "number": n, "version": n, "made_in": n, "blob": f"{n:064x}"}
            for n in numbers
        ]
        connection.execute(insert(schema.deltas), rows)
    database.close()
    began = time.process_time()
    in_use = registry.blobs_in_use()
    swept = time.process_time()
    versions, more = registry.list_versions("intents", limit=1_000)
    listed = time.process_time()
    newest = registry.resolve(ModelReference(model="intents", number=1_000))
    resolved = time.process_time()
    assert len(in_use) == 1_002 and len(versions) == 1_000 and not more
    assert [delta.version for delta in newest.deltas] == list(numbers)
    assert swept - began < 0.5 and listed - swept < 0.5 and resolved - listed < 0.5


OUTCOME = EditOutcome(edit=0, kind="edit", input="x", target="a", before="b", after="a", correct=True)
BROKEN = BrokenNeighbor(
    input="y", edit=0, kind="negated", origin="rule", before="a", after="b", held_out=True
)
FLIP = Flip(input="x", target="a", before="a", after="b", broken=True)


def measured(registry: Registry, num_outcomes: int) -> Version:
    metrics = DetailedMetrics(
        edit_accuracy=SHARE,
        adapt_accuracy=None,
        generalization=None,
        drawdown=None,
        locality=None,
        protocol="argmax",
        outcomes=tuple(OUTCOME.model_copy(update={"edit": edit}) for edit in range(num_outcomes)),
        flips=(FLIP,),
        broken_neighbors=(BROKEN,),
    )
    version = new_version().model_copy(update={"metrics": metrics})
    made = Publication(
        outcomes=metrics.outcomes, flips=metrics.flips, broken_neighbors=metrics.broken_neighbors
    )
    job = new_job(registry)
    return registry.finish_edit(job.id, claim(registry, job), version, {}, made)


def test_the_results_of_samples_are_stored_separately_from_the_version(registry: Registry) -> None:
    ready_model(registry)
    version = measured(registry, 5)
    (listed,), _ = registry.list_versions("intents")
    (resolved,) = versions_of(registry, "intents")
    kept_apart = {"outcomes", "flips", "broken_neighbors"}
    for found in (listed.metrics, resolved.metrics):
        assert found is not None and set(found.model_dump()) & kept_apart == set()
    outcomes, more = registry.list_results(ListedOutcome, "intents", version.number, limit=3)
    assert [(each.position, each.edit) for each in outcomes] == [(0, 0), (1, 1), (2, 2)] and more
    rest, more = registry.list_results(ListedOutcome, "intents", version.number, limit=3, after=2)
    assert [each.edit for each in rest] == [3, 4] and not more
    assert registry.list_results(ListedFlip, "intents", version.number)[0][0].after == "b"
    assert registry.list_results(ListedBrokenNeighbor, "intents", version.number)[0][0].kind == "negated"
    assert registry.list_results(ListedOutcome, "intents", 0) == ([], False)


def test_twelve_thousand_outcomes_do_not_slow_a_version_down(registry: Registry) -> None:
    ready_model(registry)
    few, many = measured(registry, 10), measured(registry, 12_000)

    def seconds(version: Version) -> float:
        times = []
        for _ in range(20):
            began = time.process_time()
            read_again(registry, version)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(many) - seconds(few) < 0.002


@pytest.mark.parametrize(
    ("stored", "trained", "kept"),
    [
        (None, "1" * 64, "1" * 64),  # nobody else has trained one
        ("2" * 64, "1" * 64, "2" * 64),  # another job was faster
        ("1" * 64, "1" * 64, "1" * 64),  # another job trained the same one
        ("2" * 64, None, "2" * 64),  # this job trained none
    ],
)
def test_a_metric_that_another_job_trained_meanwhile_is_not_overwritten(
    registry: Registry, stored: str | None, trained: str | None, kept: str
) -> None:
    ready_model(registry)
    mine, theirs = new_job(registry), new_job(registry)
    lease = claim(registry, mine)
    given = registry.get_model("intents").scope_metric
    registry.finish_edit(theirs.id, claim(registry, theirs), new_version(), {}, Publication(metric=stored))
    made = Publication(metric=trained, given_metric=given)
    version = registry.finish_edit(mine.id, lease, new_version(), {}, made)
    assert registry.get_model("intents").scope_metric == kept
    note = (
        f'another job updated the scope metric of model "intents" while this one ran: the next job starts '
        f"from the other metric, and {version.reference} keeps its own"
    )
    result = registry.jobs.get(mine.id).result or {}
    assert result.get("notes", []) == ([note] if trained not in (None, kept) else [])


def test_versions_come_in_pages(registry: Registry) -> None:
    ready_model(registry)
    for number in range(5):
        publish(registry, new_version(parent=number))
    first, more = registry.list_versions("intents", limit=2)
    assert [each.number for each in first] == [5, 4] and more
    rest, more = registry.list_versions("intents", limit=3, after=4)
    assert [each.number for each in rest] == [3, 2, 1] and not more


def test_models_aliases_and_history_come_in_pages(registry: Registry) -> None:
    for name in ("b", "a", "c"):
        ready_model(registry, name)
    page, more = registry.list_models(limit=2)
    assert [model.name for model in page] == ["a", "b"] and more
    page, more = registry.list_models(limit=2, after="b")
    assert [model.name for model in page] == ["c"] and not more
    job = new_job(registry, "a")
    registry.finish_edit(job.id, claim(registry, job), new_version("a"), {})
    for alias in ("x", "z", "y"):
        registry.set_alias("a", alias, 1)
    aliases, more = registry.list_aliases("a", limit=2)
    assert [alias.name for alias in aliases] == ["x", "y"] and more
    assert [alias.name for alias in registry.list_aliases("a", after="y")[0]] == ["z"]
    registry.set_alias("a", "x", 0)
    changes, more = registry.alias_history("a", "x", limit=1)
    assert [change.version for change in changes] == [0] and more
    changes, more = registry.alias_history("a", "x", after=changes[0].id)
    assert [change.version for change in changes] == [1] and not more
    assert registry.alias_history("a", "x", after=changes[0].id) == ([], False)
    assert registry.find_alias("a", "x") is not None and registry.find_alias("a", "none") is None
