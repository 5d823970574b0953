"""Endpoints: an export, and an object that nobody recorded, say behind which one their bucket is.

Nobody noted that before: exports from then say nothing. On the way down, two objects that differ in nothing else
become the one that was seen first.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SAME = """
    DELETE FROM dark_object WHERE EXISTS (
        SELECT 1 FROM dark_object AS other WHERE other.bucket = dark_object.bucket AND other.key = dark_object.key
        AND (other.first_seen, other.endpoint) < (dark_object.first_seen, dark_object.endpoint)
    )
"""


def text(kind: Any) -> Any:
    """Text that compares by bytes."""
    return kind.with_variant(sa.Text(collation="C"), "postgresql")


def primary(*columns: str) -> None:
    """Return what tells one dark object from another."""
    with op.batch_alter_table("dark_object") as dark:
        dark.drop_constraint(op.f("pk_dark_object"), type_="primary")
        dark.create_primary_key(op.f("pk_dark_object"), list(columns))
        if "endpoint" in columns:
            dark.alter_column("endpoint", server_default=None)


def upgrade() -> None:
    op.add_column("export", sa.Column("endpoint", text(sa.String()), nullable=True))
    op.add_column("dark_object", sa.Column("endpoint", text(sa.Text()), nullable=False, server_default=""))
    primary("endpoint", "bucket", "key")


def downgrade() -> None:
    op.execute(SAME)
    primary("bucket", "key")
    op.drop_column("dark_object", "endpoint")
    op.drop_column("export", "endpoint")
