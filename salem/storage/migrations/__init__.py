"""The history of the tables in salem.storage.schema, as Alembic revisions; `Registry.migrate()` runs them."""
