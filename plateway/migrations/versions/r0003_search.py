"""Search: exports by the time when they arrived and those that are damaged, archives by their path."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_export_order", "export", ["uploaded_at", "event_id", "revision"])
    damaged = sa.text("damage IS NOT NULL")
    op.create_index(
        "ix_export_damaged", "export", ["event_id", "revision"], sqlite_where=damaged, postgresql_where=damaged
    )
    op.create_index("ix_archive_location_path", "archive_location", ["path", "reported_at"])


def downgrade() -> None:
    op.drop_index("ix_archive_location_path", "archive_location")
    op.drop_index("ix_export_damaged", "export")
    op.drop_index("ix_export_order", "export")
