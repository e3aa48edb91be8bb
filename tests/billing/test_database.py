"""Which PostgreSQL URLs are taken, and that billing's connections work through PgBouncer in transaction
mode.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from billing.database import DatabaseError, connect, read_database_url
from billing.migrate import upgrade
from tests.fixtures.secure_stores import Certificates, Pooler


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_scheme_is_taken(scheme: str) -> None:
    url = read_database_url(f"{scheme}://u:p%2Fw@h:5433/taas?sslmode=verify-full")
    assert (url.drivername, url.username, url.password) == ("postgresql+psycopg", "u", "p/w")
    assert (url.host, url.port, url.database, dict(url.query)) == (
        "h",
        5433,
        "taas",
        {"sslmode": "verify-full"},
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:sesame@h/d", "begins with postgresql://"),
        ("postgresql+asyncpg://u:sesame@h/d", "begins with postgresql://"),
        ("sesame", "begins with postgresql://"),
        ("postgresql://u:ses@ame@h/d", "percent-encode"),
        ("postgresql://u:sesame@h:sesame/d", "cannot be read"),
        ("postgresql://u:sesame@h/d?pool_size=3", "libpq knows no option 'pool_size'"),
        ("postgresql://u:sesame @h/d", "no spaces"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line_without_its_password(url: str, said: str) -> None:
    with pytest.raises(DatabaseError, match=said) as failure:
        read_database_url(url)
    assert "\n" not in str(failure.value)
    assert not any(piece in str(failure.value) for piece in ("sesame", "ses@", "ame@"))


def test_statements_run_again_and_again_behind_pgbouncer(
    pgbouncer: Pooler, database_url: str, certificates: Certificates
) -> None:
    name = make_url(database_url).database or ""
    url = pgbouncer.url(name, "postgres", sslmode="verify-full", sslrootcert=certificates.path("ca.pem"))
    upgrade(url)
    engine = connect(url, program="taas-loops", pool_pre_ping=True, pool_size=12)
    together = threading.Barrier(12)

    def work(number: int) -> None:
        # More clients than server connections, all with a statement that a driver would prepare for itself.
        for _ in range(12):
            with engine.begin() as connection:
                connection.execute(text("select pg_advisory_xact_lock_shared(1)"))
                sent = connection.execute(text("select 2 * cast(:n as int)"), {"n": number}).scalar_one()
                assert sent == 2 * number
            together.wait(30)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    with engine.connect() as connection:
        # The audit log has it of what the loops of billing change.
        assert connection.execute(text("show application_name")).scalar_one() == "taas-loops"
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        assert connection.execute(text("show transaction_isolation")).scalar_one() == "repeatable read"
    with engine.connect() as connection:
        assert connection.execute(text("show transaction_isolation")).scalar_one() == "read committed"
    engine.dispose()


def test_a_wrong_password_and_a_strange_authority_are_told_without_the_password(
    pgbouncer: Pooler, certificates: Certificates
) -> None:
    right = pgbouncer.url("postgres", sslmode="verify-full", sslrootcert=certificates.path("ca.pem"))
    for url, said in (
        (right.replace(pgbouncer.password, "open-sesame"), "SASL authentication failed"),
        (pgbouncer.url("postgres", sslmode="verify-full", sslrootcert=certificates.path("stranger.pem")),
        "certificate verify failed"),
    ):  # fmt: skip
        with pytest.raises(OperationalError, match=said) as failure, connect(url).connect():
            pass
        assert "sesame" not in str(failure.value)
