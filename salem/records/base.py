"""The base class of all records, and the patterns of names and ids."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
EDIT_ID_PATTERN = r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})$"
EDITOR_ID_PATTERN = r"^editor-[0-9a-f]{20}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MAX_ITEMS = 100_000  # in any list of a request; most lists have a lower limit of their own


class Record(BaseModel):
    """Base of every record. Records are immutable and refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
