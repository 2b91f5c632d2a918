"""Alembic's entry: runs the migrations on the connection that `Database` has begun a transaction on."""

from alembic import context

from storage.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
