"""Tape: the manifests that arrive and what they name, objects that nobody recorded, and bucket copies that expire.

Types are spelt out, not taken from ``records.py``: a revision says what it did then, whatever the records say now.
On the way down, what only these tables knew is forgotten, and so are the tombstones of bucket copies.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEYS = (("event", "key"), ("export", "bucket"), ("export", "key"))


def exactly() -> Any:
    """Text that compares by bytes."""
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def archive_manifest() -> None:
    op.create_table(
        "archive_manifest",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("door", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("date", sa.DateTime(timezone=True), nullable=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_archive_manifest")),
    )
    op.create_index("ix_archive_manifest_order", "archive_manifest", ["received_at", "digest"])


def archive_entry() -> None:
    op.create_table(
        "archive_entry",
        sa.Column("manifest", sa.String(), nullable=False),
        sa.Column("path", exactly(), nullable=False),
        sa.Column("key", exactly(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("member", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("checksum", sa.String(), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refuted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "settled_at IS NULL OR refuted_at IS NULL", name=op.f("ck_archive_entry_settled_or_refuted")
        ),
        sa.ForeignKeyConstraint(
            ["manifest"], ["archive_manifest.digest"], name=op.f("fk_archive_entry_archive_manifest")
        ),
        sa.PrimaryKeyConstraint("manifest", "path", "key", name=op.f("pk_archive_entry")),
    )
    op.create_index("ix_archive_entry_key", "archive_entry", ["key", "path"])
    op.create_index(
        "ix_archive_entry_unsettled",
        "archive_entry",
        ["key", "path", "manifest"],
        sqlite_where=sa.text("settled_at IS NULL"),
        postgresql_where=sa.text("settled_at IS NULL"),
    )


def door() -> None:
    op.create_table(
        "door",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("etag", sa.String(), nullable=True),
        sa.Column("modified", sa.String(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_door")),
    )


def dark_object() -> None:
    op.create_table(
        "dark_object",
        sa.Column("bucket", exactly(), nullable=False),
        sa.Column("key", exactly(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.String(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "key", name=op.f("pk_dark_object")),
    )


def places(condition: str) -> None:
    """Return from which places something may go."""
    with op.batch_alter_table("purge") as purge:
        purge.drop_constraint(op.f("ck_purge_place"), type_="check")
        purge.create_check_constraint(op.f("ck_purge_place"), condition)


def upgrade() -> None:
    for create in (archive_manifest, archive_entry, door, dark_object):
        create()
    op.add_column("archive_location", sa.Column("offset", sa.BigInteger(), nullable=True))
    for name in ("evidence_at", "read_at"):
        op.add_column("archive_location", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    places("place IN ('raw', 'staging', 'bucket')")
    for table, column in KEYS if postgres() else ():  # SQLite compares by bytes anyway
        op.alter_column(table, column, type_=sa.Text(collation="C"), existing_nullable=False)


def downgrade() -> None:
    for table, column in KEYS if postgres() else ():
        op.alter_column(table, column, type_=sa.String(), existing_nullable=False)
    op.execute("DELETE FROM purge WHERE place = 'bucket'")
    places("place IN ('raw', 'staging')")
    with op.batch_alter_table("archive_location") as location:
        location.drop_column("read_at")
        location.drop_column("evidence_at")
        location.drop_column("offset")
    for name in ("dark_object", "door", "archive_entry", "archive_manifest"):
        op.drop_table(name)
