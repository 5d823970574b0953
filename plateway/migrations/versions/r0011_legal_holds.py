"""Legal holds: what may not be deleted, who set and released that, when and why."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "legal_hold",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("experiment", sa.String(), nullable=True),
        sa.Column("system", sa.String(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_by", sa.Text(), nullable=True),
        sa.Column("release_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "event_id IS NOT NULL OR experiment IS NOT NULL OR system IS NOT NULL",
            name=op.f("ck_legal_hold_scope"),
        ),
        sa.CheckConstraint(
            "released_at IS NULL OR (released_by IS NOT NULL AND release_reason IS NOT NULL)",
            name=op.f("ck_legal_hold_released_why"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_legal_hold")),
    )
    standing = sa.text("released_at IS NULL")
    op.create_index(
        "ix_legal_hold_standing", "legal_hold", ["event_id"], sqlite_where=standing, postgresql_where=standing
    )


def downgrade() -> None:
    op.drop_table("legal_hold")
