"""Runs commands of `salem` one after another in one process, so that it is imported only once.

Run as a program, it reads commands from its standard input, one JSON document per line, and answers each with
one line. Does not know what the commands do.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

from app.cli import main


@dataclass(frozen=True)
class Done:
    """What a command printed and how it exited."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandLine:
    """Call it with the arguments of a command; keyword arguments become environment variables."""

    process: subprocess.Popen[str]

    def __call__(self, *arguments: str, **variables: str) -> Done:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([arguments, variables]) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """A process that runs commands without any of the caller's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SALEM_")}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=inherited | {"COLUMNS": "200", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    ) as process:
        yield CommandLine(process)


def run(arguments: list[str], variables: dict[str, str]) -> Done:
    printed, said = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with (
        patch.object(sys, "argv", ["salem", *arguments]),
        patch.dict(os.environ, variables),
        redirect_stdout(printed),
        redirect_stderr(said),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
            code = 1
    return Done(code if isinstance(code, int) else int(code is not None), printed.getvalue(), said.getvalue())


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asdict(run(*json.loads(line)))), flush=True)
