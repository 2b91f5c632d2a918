"""Alembic's entry point: runs the migrations on a connection on which `Database` has begun a transaction."""

from alembic import context

from storage.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
