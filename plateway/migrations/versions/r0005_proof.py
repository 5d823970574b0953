"""Proof: what was read and when it last changed, kinds of damage as columns, incidents, and the site with its places.

What code decides on was told by the beginning of a text before: on the way up the columns are filled from that, on the
way down the text still tells it.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DAMAGE = """
    UPDATE export SET damage_kind = CASE WHEN damage LIKE 'lost%' THEN 'lost' ELSE 'changed' END
    WHERE damage IS NOT NULL
"""
RESTORED = """
    UPDATE purge SET cause = CASE reason
        WHEN 'restored on request' THEN 'requested'
        WHEN 'interrupted before anything was moved' THEN 'interrupted'
        ELSE 'unproven' END
    WHERE restored_at IS NOT NULL
"""
REMOVING = "UPDATE purge SET removing_at = trashed_at WHERE place != 'bucket' AND gone_at IS NOT NULL"


def moment(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    """A time in UTC."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def of_event(table: str) -> sa.ForeignKeyConstraint:
    """Tie rows to the revision of an event."""
    name = op.f(f"fk_{table}_event")
    return sa.ForeignKeyConstraint(["event_id", "revision"], ["event.id", "event.revision"], name=name)


def incident() -> None:
    op.create_table(
        "incident",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        moment("at", nullable=False),
        moment("last_at", nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        of_event("incident"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incident")),
    )
    op.create_index("ix_incident_event", "incident", ["event_id", "revision", "id"])


def site() -> None:
    op.create_table(
        "site",
        sa.Column("id", sa.Uuid(), nullable=False),
        moment("created_at", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
    )


def known_place() -> None:
    op.create_table(
        "known_place",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("marked", sa.Boolean(), nullable=False),
        moment("recorded_at", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_known_place")),
    )


def upgrade() -> None:
    for create in (incident, site, known_place):
        create()
    op.add_column("export", moment("seen_modified"))
    op.add_column("export", sa.Column("damage_kind", sa.String(), nullable=True))
    op.add_column("export", sa.Column("seen_version", sa.Text(), nullable=True))
    op.execute(DAMAGE)
    with op.batch_alter_table("export") as export:
        export.create_check_constraint(op.f("ck_export_damage_kind"), "(damage IS NULL) = (damage_kind IS NULL)")
    op.add_column("archive_location", sa.Column("seen_size", sa.BigInteger(), nullable=True))
    op.add_column("archive_location", moment("seen_modified"))
    op.add_column("archive_location", sa.Column("damage", sa.Text(), nullable=True))
    op.add_column("archive_location", sa.Column("damage_kind", sa.String(), nullable=True))
    op.add_column("archive_location", moment("damaged_at"))
    op.create_index("ix_archive_location_read", "archive_location", ["read_at"])
    op.add_column("purge", moment("removing_at"))
    op.add_column("purge", sa.Column("cause", sa.String(), nullable=True))
    op.execute(RESTORED)
    op.execute(REMOVING)
    with op.batch_alter_table("purge") as purge:
        purge.drop_constraint(op.f("ck_purge_restored_why"), type_="check")
        purge.create_check_constraint(
            op.f("ck_purge_restored_why"), "restored_at IS NULL OR (reason IS NOT NULL AND cause IS NOT NULL)"
        )


def downgrade() -> None:
    with op.batch_alter_table("purge") as purge:
        purge.drop_constraint(op.f("ck_purge_restored_why"), type_="check")
        purge.create_check_constraint(op.f("ck_purge_restored_why"), "restored_at IS NULL OR reason IS NOT NULL")
        purge.drop_column("cause")
        purge.drop_column("removing_at")
    op.drop_index("ix_archive_location_read", "archive_location")
    with op.batch_alter_table("archive_location") as location:
        for name in ("damaged_at", "damage_kind", "damage", "seen_modified", "seen_size"):
            location.drop_column(name)
    with op.batch_alter_table("export") as export:
        export.drop_constraint(op.f("ck_export_damage_kind"), type_="check")
        for name in ("seen_version", "damage_kind", "seen_modified"):
            export.drop_column(name)
    for name in ("known_place", "site", "incident"):
        op.drop_table(name)
