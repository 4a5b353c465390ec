"""What Alembic runs for each migration: it works on the connection and in the transaction of its caller.

Knows the tables. Does not know URLs: `Database.migrate` opens the database and holds the lock.
"""

from __future__ import annotations

from alembic import context

from salem.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
