"""The first tables: facts about events, exports, tape and purges.

Types are spelt out, not taken from ``records.py``: a revision says what it did then, whatever the records say now.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def of_event(table: str) -> sa.ForeignKeyConstraint:
    """Tie rows to the revision of an event."""
    name = op.f(f"fk_{table}_event")
    return sa.ForeignKeyConstraint(["event_id", "revision"], ["event.id", "event.revision"], name=name)


def only(condition: str) -> dict[str, Any]:
    """Restrict an index to some rows."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def event() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("system", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("plate", sa.BigInteger(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("path", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("image_count", sa.BigInteger(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("announced_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("fingerprint_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("present", sa.BigInteger(), nullable=True),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("staged_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_event_revision")),
        sa.PrimaryKeyConstraint("id", "revision", name=op.f("pk_event")),
        sa.UniqueConstraint("key", name=op.f("uq_event_key")),
        sa.UniqueConstraint("id", "digest", name=op.f("uq_event_id_digest")),
    )
    op.create_index("ix_event_experiment", "event", ["experiment"])
    op.create_index("ix_event_order", "event", ["timestamp", "id", "revision"])
    op.create_index("ix_event_place", "event", ["system", "path"])
    op.create_index("ix_event_plate", "event", ["plate"])
    op.create_index(
        "ix_event_sealed",
        "event",
        ["sealed_at", "id", "revision"],
        **only("sealed_at IS NOT NULL"),
    )
    op.create_index(
        "ix_event_unsettled",
        "event",
        ["system"],
        **only("sealed_at IS NULL"),
    )


def event_file() -> None:
    op.create_table(
        "event_file",
        sa.Column("system", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("system", "name", name=op.f("pk_event_file")),
    )


def archive_location() -> None:
    op.create_table(
        "archive_location",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("checksum", sa.String(), nullable=True),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        of_event("archive_location"),
        sa.PrimaryKeyConstraint("event_id", "revision", "path", name=op.f("pk_archive_location")),
    )


def export() -> None:
    op.create_table(
        "export",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("bucket", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("etag", sa.String(), nullable=False),
        sa.Column("part_size", sa.BigInteger(), nullable=False),
        sa.Column("member_count", sa.Integer(), nullable=False),
        sa.Column("manifest_offset", sa.BigInteger(), nullable=False),
        sa.Column("manifest_size", sa.BigInteger(), nullable=False),
        sa.Column("manifest_sha256", sa.String(), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("evidence", sa.String(), nullable=True),
        sa.Column("evidence_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_etag", sa.String(), nullable=True),
        sa.Column("read_back_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("damage", sa.Text(), nullable=True),
        sa.Column("damaged_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(damage IS NULL) = (damaged_at IS NULL)", name=op.f("ck_export_damage_dated")),
        sa.CheckConstraint("(evidence IS NULL) = (evidence_at IS NULL)", name=op.f("ck_export_evidence_dated")),
        sa.CheckConstraint("evidence IS NULL OR damage IS NULL", name=op.f("ck_export_good_or_damaged")),
        of_event("export"),
        sa.PrimaryKeyConstraint("event_id", "revision", name=op.f("pk_export")),
    )
    op.create_index("ix_export_place", "export", ["bucket", "key"], unique=True)
    op.create_index(
        "ix_export_read_back",
        "export",
        ["read_back_at"],
        **only("evidence IS NOT NULL"),
    )
    op.create_index(
        "ix_export_unverified",
        "export",
        ["uploaded_at"],
        **only("evidence IS NULL AND damage IS NULL"),
    )


def lease() -> None:
    op.create_table(
        "lease",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        of_event("lease"),
        sa.PrimaryKeyConstraint("event_id", "revision", name=op.f("pk_lease")),
    )


def purge() -> None:
    op.create_table(
        "purge",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("proof", sa.JSON(), nullable=False),
        sa.Column("intended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trash", sa.Text(), nullable=False),
        sa.Column("trashed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("restored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("place IN ('raw', 'staging')", name=op.f("ck_purge_place")),
        sa.CheckConstraint("restored_at IS NULL OR reason IS NOT NULL", name=op.f("ck_purge_restored_why")),
        sa.CheckConstraint("gone_at IS NULL OR trashed_at IS NOT NULL", name=op.f("ck_purge_aside_first")),
        of_event("purge"),
        sa.PrimaryKeyConstraint("event_id", "revision", "place", "attempt", name=op.f("pk_purge")),
    )
    op.create_index(
        "ix_purge_going",
        "purge",
        ["place"],
        **only("gone_at IS NULL AND restored_at IS NULL"),
    )


def quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("system", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        of_event("quarantine"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
    )
    op.create_index(
        "ix_quarantine_event",
        "quarantine",
        ["event_id", "revision"],
        unique=True,
        **only("released_at IS NULL"),
    )
    op.create_index(
        "ix_quarantine_file",
        "quarantine",
        ["system", "name"],
        unique=True,
        **only("released_at IS NULL AND event_id IS NULL"),
    )


def setback() -> None:
    op.create_table(
        "setback",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        of_event("setback"),
        sa.PrimaryKeyConstraint("event_id", "revision", "verb", name=op.f("pk_setback")),
    )


def upgrade() -> None:
    for create in (event, event_file, archive_location, export, lease, purge, quarantine, setback):
        create()


def downgrade() -> None:
    for name in ("setback", "quarantine", "purge", "lease", "export", "archive_location", "event_file", "event"):
        op.drop_table(name)
