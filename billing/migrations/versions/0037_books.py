"""What is owed to the makers of models, and the closing of a month's books."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

_NOW_MS = sa.text("(extract(epoch from clock_timestamp()) * 1000)::bigint")


def upgrade() -> None:
    op.create_table(
        "maker_terms",
        sa.Column("version", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("maker", sa.Text(), nullable=False),
        sa.Column("from_hour", sa.BigInteger(), nullable=False),
        sa.Column("share_basis_points", sa.Integer(), nullable=True),
        sa.Column("input_picousd", sa.BigInteger(), nullable=True),
        sa.Column("output_picousd", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), server_default=_NOW_MS, nullable=False),
        sa.CheckConstraint("share_basis_points between 0 and 10000", name=op.f("ck_maker_terms_share")),
        sa.CheckConstraint(
            "input_picousd >= 0 and output_picousd >= 0", name=op.f("ck_maker_terms_not_negative")
        ),
        sa.CheckConstraint(
            "(share_basis_points is null) = (input_picousd is not null) and "
            "(input_picousd is null) = (output_picousd is null)",
            name=op.f("ck_maker_terms_either"),
        ),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_maker_terms_model_model")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_maker_terms")),
    )
    op.create_index(op.f("ix_maker_terms_model_from_hour"), "maker_terms", ["model", "from_hour"])
    op.create_table(
        "books",
        sa.Column("month", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("ledger_upto", sa.BigInteger(), nullable=False),
        sa.Column("statements", postgresql.JSONB(), nullable=False),
        sa.Column("closed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("month", name=op.f("pk_books")),
    )
    for table in ("maker_terms", "books"):
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    op.execute("select audit_table('maker_terms', 'version')")
    op.execute("select audit_table('books', 'month', '', 'statements')")


def downgrade() -> None:
    """The statements are lost; their entries stay in the ledger."""
    op.drop_table("books")
    op.drop_table("maker_terms")
