"""The history of the tables in salem.schema, as Alembic revisions; `Registry.migrate()` runs them."""
