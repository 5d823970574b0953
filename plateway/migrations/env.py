"""Run by Alembic: migrate the connection that the caller holds, inside the caller's transaction.

``alembic revision`` (see CONTRIBUTING) brings none: its revisions are written from the records, with no database.
"""

from alembic import context

from plateway.records import Record

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Record.metadata,
    render_as_batch=True,  # SQLite alters a table by writing it anew
)
context.run_migrations()
