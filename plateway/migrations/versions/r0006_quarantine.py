"""Setbacks record what caused them, quarantine how often a file was rewritten.

What failed before counts as the event's own failure: it keeps its time. Of files that were rewritten all versions stay
that are there; from the next one on, only the first and the newest do.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COUNT = """
    UPDATE quarantine SET versions = (
        SELECT count(*) FROM quarantine AS other WHERE other.system = quarantine.system AND other.name = quarantine.name
        AND other.event_id IS NULL AND other.id <= quarantine.id
    ) WHERE event_id IS NULL
"""


def upgrade() -> None:
    with op.batch_alter_table("setback") as setback:
        setback.add_column(sa.Column("cause", sa.String(), nullable=False, server_default="event"))
        setback.add_column(sa.Column("endpoint", sa.String(), nullable=True))
        setback.create_check_constraint(op.f("ck_setback_cause"), "cause IN ('endpoint', 'event')")
    op.add_column("quarantine", sa.Column("versions", sa.Integer(), nullable=False, server_default="1"))
    op.execute(COUNT)


def downgrade() -> None:
    op.drop_column("quarantine", "versions")
    with op.batch_alter_table("setback") as setback:
        setback.drop_constraint(op.f("ck_setback_cause"), type_="check")
        setback.drop_column("endpoint")
        setback.drop_column("cause")
