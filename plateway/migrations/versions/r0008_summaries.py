"""Counts by hour and by archive, so that no question counts all events, and marks of those that must be counted again.

Triggers set the marks: whatever writes a fact, the counts that it alters are computed again before they are next read.
SQLite drops the triggers of a table that is rebuilt (``batch_alter_table``): a revision that does so makes them again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATES = ("waiting", "ready", "exported", "archived", "purged", "quarantined", "lost", "changed")
COUNTS = ("events", "exports", "archives", *STATES, "sound", "away", "unsent", "harmed", "safe_events")
TIMES = ("oldest_unsent", "oldest_unverified", "oldest_stuck", "last_success")
SORTED = sa.String().with_variant(sa.Text(collation="C"), "postgresql")
EXACTLY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
EXPORT = "size, uploaded_at, evidence, evidence_at, damage, damage_kind"
# table: columns whose change alters a count, and where a row is counted
MARKED = {
    "event": ("sealed_at, system, kind, experiment, timestamp, first_seen", ["own hour"]),
    "export": (EXPORT, ["event's hour", "own upload"]),
    "purge": ("trashed_at, restored_at", ["event's hour", "export's upload"]),
    "archive_location": ("path, reported_at, damage_kind", ["event's hour", "archive"]),
    "quarantine": ("event_id, revision, released_at", ["event's hour"]),
    "setback": ("verb", ["event's hour"]),
}
TRIGGERS = (("INSERT", "NEW"), ("UPDATE", "NEW"), ("UPDATE", "OLD"), ("DELETE", "OLD"))


def upgrade() -> None:
    op.create_table(
        "hour_summary",
        sa.Column("hour", SORTED, nullable=False),
        sa.Column("system", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*COUNTS, "exported_bytes", "safe_bytes")),
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=True) for name in TIMES),
        sa.PrimaryKeyConstraint("hour", "system", name=op.f("pk_hour_summary")),
    )
    op.create_table(
        "upload_summary",
        sa.Column("hour", SORTED, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("listed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "kind", name=op.f("pk_upload_summary")),
    )
    op.create_table(
        "archive_summary",
        sa.Column("path", SORTED, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("members", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_archive_summary")),
    )
    op.create_index("ix_archive_summary_id", "archive_summary", ["id"])
    op.create_index("ix_archive_summary_order", "archive_summary", ["reported_at", "path"])
    op.create_table(
        "stale_summary",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("part", EXACTLY, nullable=False),
        sa.Column("writer", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "part", "writer", name=op.f("pk_stale_summary")),
    )
    op.create_index("ix_lease_expires_at", "lease", ["expires_at"])
    op.create_index("ix_event_first_seen", "event", ["first_seen"])
    op.create_index("ix_archive_location_reported", "archive_location", ["reported_at"])
    _mark_all()
    for table, (columns, parts) in MARKED.items():
        _create_triggers(table, columns, parts)


def downgrade() -> None:
    for table in MARKED:
        for event, row in TRIGGERS:
            name = f"mark_{table}_{event}_{row}".lower()
            op.execute(f"DROP TRIGGER {name} ON {table}" if _postgres() else f"DROP TRIGGER {name}")
        for row in ("new", "old") if _postgres() else ():
            op.execute(f"DROP FUNCTION mark_{table}_{row}()")
    op.drop_index("ix_archive_location_reported", "archive_location")
    op.drop_index("ix_event_first_seen", "event")
    op.drop_index("ix_lease_expires_at", "lease")
    for table in ("stale_summary", "archive_summary", "upload_summary", "hour_summary"):
        op.drop_table(table)


def _postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _hour(column: str) -> str:
    """Return the hour (UTC) of a time as YYYY-MM-DD HH, in SQL."""
    if _postgres():
        return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24')"
    return f"substr({column}, 1, 13)"


def _mark_all() -> None:
    insert = "INSERT INTO stale_summary (kind, part, writer) SELECT DISTINCT"
    op.execute(f"{insert} 'hour', {_hour('timestamp')}, 0 FROM event")
    op.execute(f"{insert} 'upload', {_hour('uploaded_at')}, 0 FROM export")
    op.execute(f"{insert} 'archive', path, 0 FROM archive_location")


def _mark(row: str, where: str) -> str:
    """Return a statement that marks where a row (``NEW`` or ``OLD``) is counted."""
    mine = f"= {row}.event_id AND revision = {row}.revision"
    bucket = f"FROM export WHERE {row}.place = 'bucket' AND event_id {mine}"
    kind, part, source = {
        "own hour": ("hour", _hour(f"{row}.timestamp"), ""),
        "event's hour": ("hour", _hour("timestamp"), f"FROM event WHERE id {mine}"),
        "own upload": ("upload", _hour(f"{row}.uploaded_at"), ""),
        "export's upload": ("upload", _hour("uploaded_at"), bucket),
        "archive": ("archive", f"{row}.path", ""),
    }[where]
    if _postgres():  # each transaction has marks of its own: none waits for another, and none relies on another's
        source += " ON CONFLICT DO NOTHING"
    else:
        known = f"SELECT 1 FROM stale_summary AS s WHERE s.kind = '{kind}' AND s.part = {part}"  # noqa: S608 - ours
        source = f"{source} {'AND' if source else 'WHERE'} NOT EXISTS ({known})"
    writer = "txid_current()" if _postgres() else "0"
    return f"INSERT INTO stale_summary (kind, part, writer) SELECT '{kind}', {part}, {writer} {source}"


def _create_triggers(table: str, columns: str, places: list[str]) -> None:
    marks = {row: ";\n".join(_mark(row, place) for place in places) for row in ("NEW", "OLD")}
    for row, body in marks.items() if _postgres() else ():
        function = f"mark_{table}_{row}()".lower()
        op.execute(
            f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n{body};\nRETURN NULL; END $$"
        )
    for event, row in TRIGGERS:
        when = f"AFTER {event} {f'OF {columns}' if event == 'UPDATE' else ''} ON {table} FOR EACH ROW"
        act = f"EXECUTE FUNCTION mark_{table}_{row}()".lower() if _postgres() else f"BEGIN\n{marks[row]};\nEND"
        op.execute(f"CREATE TRIGGER {f'mark_{table}_{event}_{row}'.lower()} {when} {act}")
