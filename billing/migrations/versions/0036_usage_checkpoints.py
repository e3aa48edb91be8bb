"""Where chains stood at the end of each day, signed."""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_checkpoint",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("chain", "day", name=op.f("pk_usage_checkpoint")),
        sa.UniqueConstraint("chain", "position", name=op.f("uq_usage_checkpoint_chain_position")),
    )
    op.create_index(
        "ix_usage_checkpoint_unsigned",
        "usage_checkpoint",
        ["chain"],
        postgresql_where=sa.text("signature is null"),
    )
    op.execute("""
        create function keep_signed() returns trigger language plpgsql as $$
        begin
          if tg_op = 'UPDATE' and old.signature is null
              and (new.chain, new.day, new.position, new.hash)
                = (old.chain, old.day, old.position, old.hash) then
            return new;
          end if;
          raise exception 'table % is append-only', tg_table_name using errcode = 'restrict_violation';
        end $$
    """)
    op.execute(
        "create trigger usage_checkpoint_append_only before update or delete on usage_checkpoint "
        "for each row execute function keep_signed()"
    )
    op.execute(
        "create trigger usage_checkpoint_kept before truncate on usage_checkpoint "
        "for each statement execute function refuse_change()"
    )


def downgrade() -> None:
    """What was signed is lost here; its tenants may have it."""
    op.drop_table("usage_checkpoint")
    op.execute("drop function keep_signed()")
