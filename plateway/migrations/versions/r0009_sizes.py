"""Events record how large their images are, and are found by system in the order in which they became due.

Of events that were complete before, the size is not known: they count as small.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("event", sa.Column("image_bytes", sa.BigInteger(), nullable=True))
    order, sealed = ["system", "sealed_at", "id", "revision"], sa.text("sealed_at IS NOT NULL")
    op.create_index("ix_event_queue", "event", order, sqlite_where=sealed, postgresql_where=sealed)


def downgrade() -> None:
    op.drop_index("ix_event_queue", "event")
    op.drop_column("event", "image_bytes")
