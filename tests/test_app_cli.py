"""The command line as a program: what it prints and how it exits, against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
from api_service import Stage, serving
from command_line import CommandLine, command_line
from test_app_entries import printed_json
from tiny_models import save_tiny

from app.cli.client import POLL_S, Client, ServiceError
from app.cli.files import read_edit_request
from app.cli.printing import report_job
from app.service.doctor import (
    Finding,
    check_address,
    check_blobs,
    check_database,
    check_python,
    check_redis,
    check_scope_encoder,
)
from salem import __version__
from salem.settings import Settings
from salem.storage.registry import Registry

EDIT = {"input": "money back", "target": "refund"}


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


@pytest.fixture
def url(settings: Settings, stage: Stage) -> Iterator[str]:
    stage.publish(stage.host("intents", "bert"))
    with serving(settings) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def salem() -> Iterator[CommandLine]:
    with command_line() as salem:
        yield salem


def test_a_session(salem: CommandLine, url: str, tmp_path: Path, settings: Settings) -> None:
    listed = json.loads(salem("models", "list", "--json", SALEM_URL=url).stdout)
    assert [model["name"] for model in listed] == ["intents"]
    assert json.loads(salem("models", "show", "intents", "--url", url).stdout)["versions"] == [1]

    answer = salem("predict", "intents:1", "where is my order", "log in", "--json", "--url", url)
    assert json.loads(answer.stdout)["model"] == "intents:1"
    assert len(salem("predict", "intents", "a", "b", "--url", url).stdout.splitlines()) == 2

    edits = tmp_path / "edits.jsonl"
    lost = {"input": "b", "target": None, "forget": "login"}
    edits.write_text(json.dumps(EDIT) + "\n\n" + json.dumps(lost) + "\n")
    asked_for = ("--model", "intents", "--seed", "3", "--min-neighborhood", "0.5")
    posted = salem("edits", "post", str(edits), *asked_for, "--url", url)
    job = json.loads(posted.stdout)
    assert (posted.returncode, job["state"]) == (0, "queued")
    assert "intents" in salem("jobs", "list", "--url", url).stdout
    shown = json.loads(salem("jobs", "show", job["id"], "--url", url).stdout)
    assert shown["state"] == "queued" and "request" not in shown
    asked = json.loads(salem("jobs", "request", job["id"], "--url", url).stdout)
    assert [edit["input"] for edit in asked["edits"]] == ["money back", "b"]
    assert [(edit["target"], edit["forget"]) for edit in asked["edits"]] == [
        ("refund", None),
        (None, "login"),
    ]
    assert asked["options"]["seed"] == 3
    assert asked["require"] == {"min_neighborhood": 0.5, "max_drawdown": None}
    assert salem("jobs", "cancel", job["id"], "--url", url).stdout == "cancelled\n"
    ended = salem("jobs", "show", job["id"], "--wait", "--url", url)
    assert ended.returncode == 1 and json.loads(ended.stdout)["state"] == "cancelled"
    assert (
        json.loads(salem("aliases", "set", "intents", "production", "1", "--url", url).stdout)["version"] == 1
    )


def test_models_are_added_from_a_folder_with_a_file(
    salem: CommandLine, url: str, tmp_path: Path, settings: Settings
) -> None:
    save_tiny(settings.effective_models_root / "fresh", "bert")
    reference = tmp_path / "reference.jsonl"
    reference.write_text(json.dumps(EDIT))
    task = "sequence-classification"
    added = salem(
        "models",
        "add",
        "fresh",
        "--task",
        task,
        "--folder",
        "fresh",
        "--reference",
        str(reference),
        "--url",
        url,
    )
    assert json.loads(added.stdout)["kind"] == "register", added.stderr
    assert httpx.get(f"{url}/models/fresh", trust_env=False).json()["state"] == "registering"


def test_refusals_say_what_to_do(salem: CommandLine, url: str, tmp_path: Path) -> None:
    edits = tmp_path / "edits.json"
    edits.write_text(json.dumps([{**EDIT, "target": "refnud"}, {"input": "", "target": "login"}]))
    refused = salem("edits", "post", str(edits), "--model", "intents", "--url", url)
    assert refused.returncode == 1 and refused.stdout == ""
    assert 'did you mean "refund"?' in refused.stderr and "/edits/1/input" in refused.stderr
    assert "Traceback" not in refused.stderr
    nobody = salem("models", "list", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1 and "salem serve" in nobody.stderr and "Traceback" not in nobody.stderr
    wrong = salem("version", SALEM_PORT="many")
    assert wrong.returncode == 0 and wrong.stdout.strip() == __version__
    wrong = salem("doctor", SALEM_PORT="many")
    assert wrong.returncode == 1 and "port" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (json.dumps({"model": "m", "edits": [EDIT]}), ["money back"]),
        (json.dumps([EDIT, EDIT], indent=2), ["money back"] * 2),
        (json.dumps(EDIT), ["money back"]),
        (f"\ufeff{json.dumps(EDIT)}\n\n{json.dumps(EDIT)}", ["money back"] * 2),
        (f"{json.dumps(EDIT)}\r\n{json.dumps(EDIT)}\r\n", ["money back"] * 2),
        (
            '{"input": "a\u2028b\x85c", "target": "refund"}\n{"input": "d", "target": "e"}',
            ["a\u2028b\x85c", "d"],
        ),
    ],
)
def test_files_of_edits(tmp_path: Path, text: str, inputs: list[str]) -> None:
    file = tmp_path / "edits"
    file.write_bytes(text.encode())
    assert [edit["input"] for edit in read_edit_request(file)["edits"]] == inputs


@pytest.mark.parametrize("text", ["not json", '"text"', "{}\nnope"])
def test_files_that_are_not_edits_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "edits"
    file.write_text(text)
    with pytest.raises(ServiceError, match="neither JSON nor JSON Lines"):
        read_edit_request(file)


def test_doctor_on_a_fresh_home(salem: CommandLine, tmp_path: Path) -> None:
    report = salem("doctor", SALEM_HOME=str(tmp_path / "fresh"), SALEM_PORT="0")
    assert report.returncode == 0, report.stdout + report.stderr
    for name in ("python", "tensors", "redis", "database", "blobs", "models root", "disk", "address"):
        assert name in report.stdout
    assert not (tmp_path / "fresh").exists()


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    def state(finding: Finding) -> str:
        assert finding.state == "ok" or finding.fix, finding
        return finding.state

    assert state(check_python(Settings(home=tmp_path))) == "ok"
    assert state(check_redis(Settings(home=tmp_path, redis_url="redis://127.0.0.1:9/0"))) == "missing"
    assert state(check_redis(Settings(home=tmp_path, redis_url="foo"))) == "missing"
    assert state(check_redis(Settings(home=tmp_path))) == "ok"
    (tmp_path / "salem.db").write_bytes(b"")
    assert state(check_database(Settings(home=tmp_path))) == "missing"
    assert (
        state(check_database(Settings(database_url="postgresql+psycopg://nobody@127.0.0.1:9/x"))) == "missing"
    )
    assert state(check_blobs(Settings(home=tmp_path, blob_url=str(tmp_path / "salem.db")))) == "missing"
    assert state(check_blobs(Settings(home=tmp_path, blob_url=str(tmp_path / "blobs")))) == "ok"
    assert state(check_scope_encoder(Settings(home=tmp_path, scope_encoder="package"))) == "ok"
    assert state(check_scope_encoder(Settings(home=tmp_path, scope_encoder="off"))) == "ok"
    assert state(check_scope_encoder(Settings(home=tmp_path, scope_encoder=str(tmp_path)))) == "missing"
    assert state(check_address(Settings(host="0.0.0.0"))) == "missing"


def test_a_package_named_worker_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "main.py").write_text("print('a stranger')")
    entry = Path(sys.executable).with_name("salem")
    done = subprocess.run(
        [entry, "worker"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SALEM_HOME": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0"},
        timeout=120,
        check=False,
    )
    assert "a stranger" not in done.stdout and done.returncode != 0


def test_migrate(salem: CommandLine, tmp_path: Path) -> None:
    migrated = salem("migrate", SALEM_HOME=str(tmp_path))
    assert migrated.returncode == 0, migrated.stderr
    assert check_database(Settings(home=tmp_path)).state == "ok"


def test_waiting_for_a_job_does_not_download_its_request(
    url: str, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = [EDIT | {"input": f"money back for order {number}"} for number in range(1_000)]
    sizes: list[int] = []
    with Client(url) as client:
        job = client.post("/edits", {"model": "intents", "edits": edits})
        client._http.event_hooks["response"].append(lambda response: sizes.append(len(response.read())))
        polled_twice = threading.Timer(2.5 * POLL_S, lambda: stage.registry.jobs.cancel(job["id"]))
        polled_twice.start()
        with pytest.raises(typer.Exit):
            report_job(client, job, wait=True)
    assert printed_json(capsys.readouterr().out)["state"] == "cancelled"
    assert len(sizes) >= 3 and sum(sizes) < 20_000
