"""The database under the registry: migrations, transactions and forks, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from registry_records import (
    at_once,
    new_job,
    ready_model,
)
from sqlalchemy import inspect, text

from salem.errors import Misconfigured, SalemError, Unavailable
from salem.records import JobState
from salem.storage import database as database_module
from salem.storage.database import Database
from salem.storage.registry import Registry
from salem.storage.schema import metadata


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def test_migrations_make_the_tables_of_the_schema(database_url: str, registry: Registry) -> None:
    database = Database.connect(database_url)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_the_initial_migration_can_be_undone(database_url: str, registry: Registry) -> None:
    ready_model(registry)
    config = Config()
    config.set_main_option("script_location", "salem.storage:migrations")
    database = Database.connect(database_url)
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.close()
    registry.migrate()
    assert registry.list_models()[0] == []


def test_migrating_again_and_all_at_once_is_harmless(database_url: str) -> None:
    registries = [Registry.connect(database_url) for _ in range(3)]
    assert at_once(*(registry.migrate for registry in registries)) == [None] * 3
    registries[0].migrate()
    assert registries[0].list_models()[0] == []
    for registry in registries:
        registry.close()


def test_a_newer_database_is_refused(database_url: str, registry: Registry) -> None:
    database = Database.connect(database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(Misconfigured, match="newer"):
        registry.migrate()


def test_tables_of_another_version_are_refused(database_url: str) -> None:
    registry = Registry.connect(database_url)
    with pytest.raises(Misconfigured, match="not those of this version") as caught:
        registry.check_tables()
    assert caught.value.remedy is not None and "salem migrate" in caught.value.remedy
    registry.migrate()
    registry.check_tables()
    database = Database.connect(database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Misconfigured, match="newer"):
        registry.check_tables()
    database.close()
    registry.close()


@pytest.mark.parametrize("statement", ["SELECT id FROM absent", "SELECT absent FROM jobs"])
def test_a_missing_table_or_column_does_not_count_as_an_outage(
    database_url: str, registry: Registry, statement: str
) -> None:
    database = Database.connect(database_url)
    with pytest.raises(Misconfigured, match="not those of this version") as caught:  # noqa: SIM117
        with database.read() as connection:
            connection.execute(text(statement))
    assert "absent" in caught.value.reason and "absent" not in caught.value.message
    database.close()


def test_a_full_database_is_reported(tmp_path: Path) -> None:
    database = Database.connect(f"sqlite:///{tmp_path}/small.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE kept (text TEXT)"))
    with pytest.raises(Unavailable, match="is full"), database.write() as connection:
        connection.execute(text("PRAGMA max_page_count = 3"))
        connection.execute(text("INSERT INTO kept VALUES (:text)"), {"text": "x" * 100_000})
    database.close()


def test_a_database_without_write_permission_is_a_configuration_error(
    database_url: str, registry: Registry
) -> None:
    database = Database.connect(database_url)
    if "sqlite" in database_url:
        with pytest.raises(Misconfigured, match="may not use"), database.write() as connection:
            connection.execute(text("PRAGMA query_only = 1"))
            connection.execute(text("DELETE FROM aliases"))
    else:
        with pytest.raises(Misconfigured, match="may not use"), database.write() as connection:
            connection.execute(text("SET LOCAL ROLE pg_monitor"))
            connection.execute(text("SELECT rolpassword FROM pg_authid"))
    database.close()


def test_an_invalid_statement_does_not_count_as_an_outage(database_url: str) -> None:
    database = Database.connect(database_url)
    with pytest.raises(SalemError) as caught, database.read() as connection:
        place = "?" if connection.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(f"SELECT {place}, {place}", ("too few",))
    assert caught.value.code == "internal" and "ProgrammingError" in caught.value.reason
    database.close()


@pytest.mark.parametrize("bad", ["nonsense", "mysql://localhost/salem", ""])
def test_a_database_of_another_kind_is_refused(bad: str) -> None:
    with pytest.raises(Misconfigured):
        Registry.connect(bad)


def test_an_unreachable_database_is_unavailable_and_its_message_has_no_secret() -> None:
    with pytest.raises(Unavailable) as caught:
        Registry.connect("postgresql://salem:secret@127.0.0.1:1/salem")
    assert "secret" not in caught.value.message


def test_sqlite_is_configured_for_many_processes(tmp_path: Path) -> None:
    database = Database.connect(f"sqlite:///{tmp_path}/salem.db")
    with database.read() as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert settings["journal_mode"] == "wal"
    assert settings["foreign_keys"] == 1
    assert settings["busy_timeout"] >= 5_000
    database.close()


def test_readers_do_not_wait_for_a_writer(database_url: str, registry: Registry) -> None:
    database = Database.connect(database_url)
    with database.write() as connection:
        connection.execute(text("DELETE FROM aliases"))
        began_at = time.monotonic()
        assert registry.list_models()[0] == []
        assert time.monotonic() - began_at < 2
    database.close()


def test_waiting_too_long_for_a_lock_is_an_error(
    database_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_MS", 100)
    first, second = Database.connect(database_url), Database.connect(database_url)
    with first.write() as holding:
        holding.execute(text("DELETE FROM aliases"))
        if holding.dialect.name == "postgresql":
            holding.execute(text("LOCK TABLE aliases"))
        began_at = time.monotonic()
        with pytest.raises(Unavailable), second.write() as waiting:
            waiting.execute(text("DELETE FROM aliases"))
        assert time.monotonic() - began_at < 5
    first.close()
    second.close()


def test_a_forked_child_opens_its_own_connections(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    child = os.fork()
    if child == 0:
        os._exit(0 if registry.jobs.claim(job.id, 30) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registry.jobs.get(job.id).state is JobState.RUNNING
