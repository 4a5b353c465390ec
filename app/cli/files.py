"""Reads files of corrections: a whole request, a list of edits, or one edit per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.cli.client import ServiceError


def read_edit_request(path: Path) -> dict[str, Any]:
    """The file as the body of `POST /edits`. The service checks its content.

    Raises:
        ServiceError: the file is neither JSON nor JSON Lines.
    """
    text = path.read_text(encoding="utf-8-sig")
    content = _as_json(text)
    if content is None:
        # not splitlines(): a JSON text may contain other line separators, such as U+2028
        lines = [line for line in text.split("\n") if line.strip()]
        content = [_as_json(line) for line in lines]
    if isinstance(content, dict):
        # a single edit may also be a JSON Lines file of one line
        return content if "edits" in content else {"edits": [content]}
    if not isinstance(content, list) or None in content:
        raise ServiceError(
            f"{path.name} is neither JSON nor JSON Lines",
            remedy='Write each edit as {"input": "...", "target": "...", "paraphrases": ["..."]}; to forget '
            'an answer, write "target": null and "forget": "..."',
        )
    return {"edits": content}


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
