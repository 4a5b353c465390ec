"""What a version is made of: its entries, and the requests that introduced its edits, in SQL.

Each public method is one transaction. The registry writes entries together with their version.
Must not know tensors, HTTP, or the tables: the modules in `rows/` do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from salem.records import Edit, EditId, EditRequest, ListedEntry, Name, TextInput, Version
from salem.storage.database import Database
from salem.storage.rows import entries as entry_rows
from salem.storage.rows import versions as version_rows


class Entries:
    """The entries and edits of versions. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_page(
        self, version: Version, *, limit: int = 20, after: EditId | None = None
    ) -> tuple[list[ListedEntry], bool]:
        """One page of the active entries of a version, oldest first, and whether there are more.

        Raises:
            NotFound: the version has no entry `after`.
        """
        with self._database.read() as connection:
            return entry_rows.list_page(connection, version, limit=limit, after=after)

    def find(self, version: Version, inputs: Sequence[TextInput]) -> list[ListedEntry]:
        """The entries of a version whose edit or paraphrase is one of these texts, newest first."""
        with self._database.read() as connection:
            return entry_rows.find(connection, version, inputs)

    def edit_requests(self, model: Name, numbers: Collection[int]) -> dict[int, EditRequest]:
        """The requests of the edit jobs that made these versions, by the version's number."""
        with self._database.read() as connection:
            return version_rows.edit_requests(connection, model, numbers)

    def edits(self, model: Name, numbers: Collection[int] | None = None) -> dict[int, tuple[Edit, ...]]:
        """The edits that each of these versions introduced, or each version of the model."""
        with self._database.read() as connection:
            return version_rows.edits(connection, model, numbers)
