"""Transactions on a SQL database, SQLite (WAL) or PostgreSQL: one `read()` and one `write()`.

Knows engines, locks, and migrations. Must not know what is stored: `registry` does.
A forked child may keep using the object. It leaves its parent's connections alone and opens its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SqliteConnection

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from salem.errors import Conflict, Misconfigured, SalemError, Unavailable

_BUSY_TIMEOUT_MS = 15_000
_CONNECT_TIMEOUT_S = 5
_LOCK_TIMEOUT_MS = 15_000
# These notice a server that disappears within seconds; TCP alone takes a quarter of an hour.
_POSTGRESQL_OPTIONS = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}
# PostgreSQL's codes, and SQLite's messages, because SQLite has no codes for these
_NO_SUCH_TABLE = ("42P01", "42703")  # table, column
_NO_SUCH_TABLE_MESSAGE = re.compile(r"no such (table|column)|has no column named")
_DISK_FULL = "53100"
# no permission, wrong password or user, no such database; and SQLite's messages for these
_NO_PERMISSION = ("42501", "28P01", "28000", "3D000")
_NO_PERMISSION_MESSAGE = re.compile("attempt to write a readonly database|unable to open database file")
_MIGRATION_LOCK = 0x5A1E3  # any number that every process of Salem uses


class Database:
    """One engine and its transactions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()

    @classmethod
    def connect(cls, url: str) -> Database:
        """Open a database. Creates the folder of a SQLite file if it is missing.

        Raises:
            Misconfigured: the URL is not one of SQLite or PostgreSQL.
            Unavailable: the database does not answer.
        """
        database = cls(_create_engine(_parse(url)))
        database.ping()
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads. It never waits for a writer.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits completely or not at all.

        On SQLite it is the only writer from its first statement on (BEGIN IMMEDIATE), so what it reads is
        still true when it writes. On PostgreSQL, callers lock the rows that a decision depends on.

        Raises:
            Conflict: a constraint was violated; nothing changed.
            Misconfigured: the tables are not those of this version of Salem.
            Unavailable: the database does not answer, is full, or was locked for too long.
        """
        with self._transaction(writes=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        self._leave_connections_of_parent()
        try:
            with (
                self._engine.connect().execution_options(salem_writes=writes) as connection,
                connection.begin(),
            ):
                yield connection
        except IntegrityError as error:
            raise Conflict(
                "another request changed the same resource at the same time",
                remedy="read the resource again, then repeat the request",
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            raise _as_salem_error(error) from error

    def _leave_connections_of_parent(self) -> None:
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._pid = os.getpid()

    def migrate(self) -> None:
        """Bring the tables up to date. Processes that start together take turns.

        Raises:
            Misconfigured: a newer version of Salem wrote the database.
        """
        config = _migrations()
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                # the migration of another process may take long
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise _newer_tables() from error

    def check_tables(self) -> None:
        """Refuse tables that this version of Salem cannot read and write.

        Raises:
            Misconfigured: they are from an older or a newer version of Salem.
        """
        with self.read() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
        known = ScriptDirectory.from_config(_migrations())
        if present == known.get_current_head():
            return
        if present is None or present in {script.revision for script in known.walk_revisions()}:
            raise _old_tables()
        raise _newer_tables()

    def installation(self) -> str:
        """The id of this installation, chosen when the tables were created."""
        with self.read() as connection:
            return str(connection.execute(text("SELECT id FROM installation")).scalar_one())

    def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self._engine.dispose()


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", "salem.storage:migrations")
    return config


def _old_tables() -> Misconfigured:
    return Misconfigured(
        "the database's tables are not those of this version of Salem",
        remedy="`salem migrate` brings them up to date",
    )


def _newer_tables() -> Misconfigured:
    return Misconfigured(
        "a newer version of Salem wrote the database", remedy="run that version, or a later one"
    )


def _as_salem_error(error: DBAPIError | PoolTimeout) -> SalemError:
    """Unavailable if waiting may help, and Misconfigured if only a person can."""
    message = str(getattr(error, "orig", error))
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    if code in _NO_SUCH_TABLE or _NO_SUCH_TABLE_MESSAGE.search(message):
        return _old_tables()
    if code == _DISK_FULL or "database or disk is full" in message:
        return Unavailable("the disk of the database is full", remedy="free some space there")
    if code in _NO_PERMISSION or _NO_PERMISSION_MESSAGE.search(message):
        return Misconfigured(
            "this process may not use the database",
            remedy="check that DATABASE_URL names a user who may read and write, and a database that exists",
        )
    if isinstance(error, DataError | ProgrammingError):
        return SalemError("the database refused a statement")
    return Unavailable("the database did not answer in time", remedy="try again in a moment")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Misconfigured(
            "the database URL is not valid", remedy="write sqlite:///… or postgresql://…"
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _create_engine(url: URL) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(url)
    if backend == "postgresql":
        return _postgresql_engine(url)
    raise Misconfigured(f'Salem does not support the database "{backend}"', remedy="use SQLite or PostgreSQL")


def _postgresql_engine(url: URL) -> Engine:
    try:
        engine = create_engine(
            url,
            hide_parameters=True,  # texts of users stay out of tracebacks
            pool_pre_ping=True,
            connect_args=_POSTGRESQL_OPTIONS,
        )
    except (ImportError, NoSuchModuleError) as error:
        raise Misconfigured(
            "the driver for PostgreSQL is not installed",
            remedy='install it with: pip install "salem[postgres]"',
        ) from error
    except SQLAlchemyError as error:
        raise Misconfigured("the database URL is not valid") from error
    event.listen(engine, "begin", _limit_waiting)
    return engine


def _limit_waiting(connection: Connection) -> None:
    # for one transaction, not for the session: a connection pooler shares sessions
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("the folder of the database cannot be created") from error
    engine = create_engine(url, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: SqliteConnection, _record: object) -> None:
    connection.isolation_level = None  # _begin_sqlite begins transactions, not the driver
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("salem_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
