"""What a version consists of: its entries, and the requests that brought its edits (SQL).

Knows which reads belong together: each public method is one transaction. Does not know tensors, HTTP, nor the
tables: entry_rows and version_rows do. Entries are written by the registry, together with their version.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from salem.records import Edit, EditId, EditRequest, ListedEntry, Name, TextInput, Version
from salem.storage.database import Database
from salem.storage.rows import entries as entry_rows
from salem.storage.rows import versions as version_rows


class Entries:
    """The parts of versions. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_page(
        self, version: Version, *, limit: int = 20, after: EditId | None = None
    ) -> tuple[list[ListedEntry], bool]:
        """One page of what acts in a version, oldest first, and whether there are more.

        Raises:
            NotFound: the version has no entry `after`.
        """
        with self._database.read() as connection:
            return entry_rows.list_page(connection, version, limit=limit, after=after)

    def find(self, version: Version, inputs: Sequence[TextInput]) -> list[ListedEntry]:
        """The entries of a version that own one of these texts as edit or paraphrase, newest first."""
        with self._database.read() as connection:
            return entry_rows.find(connection, version, inputs)

    def edit_requests(self, model: Name, numbers: Collection[int]) -> dict[int, EditRequest]:
        """The stored request behind each of these versions; one that no edit job made is left out."""
        with self._database.read() as connection:
            return version_rows.edit_requests(connection, model, numbers)

    def edits(self, model: Name, numbers: Collection[int] | None = None) -> dict[int, tuple[Edit, ...]]:
        """The edits that each of these versions, or of all, brought; those of edit jobs only."""
        with self._database.read() as connection:
            return version_rows.edits(connection, model, numbers)
