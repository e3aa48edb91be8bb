"""Postings are checked by the statement that adds them, all transactions at once, and not one by one at the
commit. So a statement adds whole transactions.
"""

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("drop trigger ledger_posting_balanced on ledger_posting")
    op.execute("drop function ledger_balanced()")
    op.execute("""
        create function ledger_balanced() returns trigger language plpgsql as $$
        declare
            wrong record;
        begin
            select transaction_id, sum(amount_picousd) as total into wrong from added
            group by transaction_id having sum(amount_picousd) <> 0 limit 1;
            if found then
                raise exception 'postings of ledger transaction % sum to %', wrong.transaction_id, wrong.total
                    using errcode = 'check_violation';
            end if;
            return null;
        end $$
    """)
    op.execute(
        "create trigger ledger_posting_balanced after insert on ledger_posting "
        "referencing new table as added for each statement execute function ledger_balanced()"
    )


def downgrade() -> None:
    """One by one again."""
    op.execute("drop trigger ledger_posting_balanced on ledger_posting")
    op.execute("drop function ledger_balanced()")
    op.execute("""
        create function ledger_balanced() returns trigger language plpgsql as $$
        declare
            total numeric;
        begin
            select sum(amount_picousd) into total from ledger_posting
            where transaction_id = new.transaction_id;
            if total <> 0 then
                raise exception 'postings of ledger transaction % sum to %', new.transaction_id, total
                    using errcode = 'check_violation';
            end if;
            return null;
        end $$
    """)
    op.execute(
        "create constraint trigger ledger_posting_balanced after insert on ledger_posting deferrable "
        "initially deferred for each row execute function ledger_balanced()"
    )
