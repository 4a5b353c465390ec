"""Reads the Dockerfile and the compose files into plain data, for tests that check and run them.

Knows the parts of both formats that these files use. Needs no Docker.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from source_modules import ROOT

FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
OWN_SERVICES = ("migrate", "api", "worker")
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def example_environment() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled_environment() -> dict[str, str]:
    """`.env` as a user would fill it in: every secret has a value."""
    return {name: value or f"{name.lower()}-value" for name, value in example_environment().items()}


def interpolate(text: str) -> str:
    """What Compose makes of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(match: re.Match[str]) -> str:
        given = filled_environment().get(match["name"], "")
        return given or (match["rest"] if match["kind"] == "-" else "")

    return VARIABLE.sub(value, text)


@cache
def compose(*names: str) -> dict[str, Any]:
    """Compose files merged in order: mappings by key, everything else by the later file."""

    def merge(base: Any, over: Any) -> Any:
        if isinstance(base, dict) and isinstance(over, dict):
            return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
        return over

    merged: dict[str, Any] = {}
    for name in names:
        merged = merge(merged, yaml.safe_load(interpolate((ROOT / name).read_text())))
    return merged


def services(*names: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose(*(names or FILES[:1]))["services"]
    return found


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage of the Dockerfile -> its instructions, after those of the stage that it builds on."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            current = found[name] = list(found.get(base, []))
        else:
            current.append((instruction, arguments.strip()))
    return found


def last(stage: str, instruction: str) -> str:
    return [arguments for name, arguments in stages()[stage] if name == instruction][-1]


def health_command(stage: str) -> list[str]:
    command: list[str] = json.loads(last(stage, "HEALTHCHECK").partition(" CMD ")[2])
    return command


def start_command(service: str) -> list[str]:
    """The command that the container of a service runs: from the compose file, else from the image."""
    described = services()[service]
    entrypoint = described.get("entrypoint") or json.loads(last(described["build"]["target"], "ENTRYPOINT"))
    return [*entrypoint, *described.get("command", [])]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a container's command with this environment's Python in front of the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, **environment, "PATH": path}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
