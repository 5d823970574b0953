"""Access keys of the S3 endpoint, and the locations that it publishes under a name of their own.

No secret is in these tables: a key's secret follows from its id and a file that is not in the catalogue.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

EXACTLY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # compares by bytes


def upgrade() -> None:
    op.create_table(
        "access_key",
        sa.Column("access_key_id", sa.String(), nullable=False),
        sa.Column("name", EXACTLY, nullable=False),
        sa.Column("secret_file", sa.String(), nullable=False),
        sa.Column("buckets", sa.JSON(), nullable=False),
        sa.Column("prefixes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("access_key_id", name=op.f("pk_access_key")),
        sa.UniqueConstraint("name", name=op.f("uq_access_key_name")),
    )
    op.create_table(
        "share",
        sa.Column("name", EXACTLY, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_share")),
    )


def downgrade() -> None:
    op.drop_table("share")
    op.drop_table("access_key")
