"""Fixtures for all tests: settings with an empty home, its registry, and a Redis for this run.

No service needs to run on the machine.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import Service, running
from sqlalchemy import create_engine, make_url, text

from salem.queue.private_redis import PrivateRedis
from salem.settings import Settings
from salem.storage.registry import Registry

TEST_DATABASE_VARIABLE = "SALEM_TEST_DATABASE_URL"
# The files that take longest start first, so that no process is left alone with one of them at the end.
SLOWEST_FILES = (
    "worker_recipes_terms",
    "path",
    "path_interruptions",
    "worker_recipes_memory",
    "worker_jobs_removal",
    "app_service_supervisor",
    "worker_jobs_editor",
    "path_neighbors",
    "path_forgetting",
    "worker_hypernetworks_make_editor",
    "benchmarks_quality_unit_run",
    "benchmarks_baselines",
    "worker_main",
    "path_new_recipe",
    "path_editors",
    "path_entries",
    "path_text_scopes",
    "path_neighbors",
    "worker_forgetting",
    "app_serving_engine",
    "salem_models_streaming",
    "worker_runtime_work_horse",
    "worker_jobs_neighbors",
    "benchmarks_quality_models",
    "app_cli",
    "delivery_containers",
    "app_api",
    "worker_pipeline_steps",
    "app_entries",
    "app_deletions",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if os.environ.get(TEST_DATABASE_VARIABLE):
        return
    skip = pytest.mark.skip(reason=f"{TEST_DATABASE_VARIABLE} is not set")
    for item in items:
        if item.get_closest_marker("postgres"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests ignore the settings in the environment of whoever runs them.

    Scopes read states here, because the texts of tiny models mean nothing; tests of text scopes say so.
    """
    for name in list(os.environ):
        if name in ("DATABASE_URL", "REDIS_URL", "BLOB_URL") or (
            name.startswith("SALEM_") and not name.startswith(("SALEM_TEST_", "SALEM_SHARED"))
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SALEM_SCOPE_ENCODER", "off")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private Redis for all tests of the run. Each test needs its own queue."""
    with PrivateRedis.start(Settings(home=tmp_path_factory.mktemp("redis-home"))) as server:
        yield server.url


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One `salem serve` for all tests of the run. Each test needs its own model names."""
    home = tmp_path_factory.mktemp("s")  # short: a Unix socket's path has little room
    with running(Settings(home=home, scope_encoder="off"), home / "serve.log") as service:
        yield service


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    """An empty home, the run's Redis, and a queue that no other test uses."""
    return Settings(home=tmp_path / "home", redis_url=redis_url, queue=f"test-{tmp_path.name}")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """The registry in the home of `settings`, with its tables."""
    registry = Registry.connect(Settings(home=tmp_path / "home").effective_database_url)
    registry.migrate()
    yield registry
    registry.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: a file, or a new schema in PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/home/salem.db"
        return
    schema = f"test_{secrets.token_hex(6)}"
    server = make_url(os.environ[TEST_DATABASE_VARIABLE]).set(drivername="postgresql+psycopg")
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    own = server.update_query_dict({"options": f"-csearch_path={schema}"})
    yield own.set(drivername="postgresql").render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def any_registry(database_url: str) -> Iterator[Registry]:
    """A registry on each kind of database, with its tables."""
    registry = Registry.connect(database_url)
    registry.migrate()
    yield registry
    registry.close()
