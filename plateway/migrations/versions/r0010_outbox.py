"""Messages to others, one row for each target that is to get it, and the targets."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox_target",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("holder", sa.String(), nullable=True),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("error_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_outbox_target")),
    )
    op.create_table(
        "outbox_message",
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("message", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("fact", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["event_id", "revision"], ["event.id", "event.revision"], name=op.f("fk_outbox_message_event")
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_outbox_message")),
    )
    pending, done = sa.text("delivered_at IS NULL"), sa.text("delivered_at IS NOT NULL")
    for name, columns, where in (
        ("ix_outbox_message_pending", ["target", "sequence"], pending),
        ("ix_outbox_message_delivered", ["target", "delivered_at"], done),
    ):
        op.create_index(name, "outbox_message", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_table("outbox_message")
    op.drop_table("outbox_target")
