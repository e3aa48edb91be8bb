"""How `taas calibrate` reaches an engine: its key, and what machine it is on. The admin API shows nobody an
engine's key, so it is the operator's to give, or read from the registry by who may read Redis anyway.
"""

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from deploy.cli.connection import find_address

if TYPE_CHECKING:
    from deploy.cli.settings import CliSettings

_CPU_FILE: Final = Path("/proc/cpuinfo")
_LOOK_S: Final = 10.0


def find_key(instance: str, given: str | None) -> str | None:
    """What was given, else what the registry says; None: the engine asks for none. Raises ClickException
    when that cannot be known.
    """
    from billing.wire.instance_entry import InstanceEntry
    from billing.wire.redis_address import RedisAddressError, parse_redis_url
    from deploy.cli.settings import CliSettings
    from serving import registry
    from serving.launch import connect

    settings = CliSettings()
    if key := given or settings.engine_key:
        return key
    url = _redis_url(settings)
    if url is None:
        raise click.ClickException(
            "the engine's key is needed: give it in TAAS_ENGINE_KEY, or set TAAS_REDIS_URL, where "
            f"{instance} is registered with it."
        )

    async def read() -> InstanceEntry | None:
        async with connect(parse_redis_url(url)) as client:
            return await registry.find(client, instance)

    import redis.exceptions

    try:
        entry = asyncio.run(read())
    except RedisAddressError as exc:
        raise click.ClickException(f"TAAS_REDIS_URL: {exc}") from exc
    except (redis.exceptions.RedisError, OSError, ValueError) as exc:
        raise click.ClickException(
            f"Redis does not tell the engine's key ({type(exc).__name__}): correct TAAS_REDIS_URL, or give "
            "the key in TAAS_ENGINE_KEY."
        ) from exc
    if entry is None:
        raise click.ClickException(
            f"this Redis does not know {instance}: TAAS_REDIS_URL is that of another installation, or it "
            "has just gone."
        )
    return entry.key


def find_hardware(url: str, given: str | None) -> str:
    """What was given, else what this machine is, if the engine is on it. Raises UsageError for an engine
    elsewhere.
    """
    if given:
        return given
    if not _is_here(urlsplit(url).hostname or ""):
        raise click.UsageError(
            "the engine is on another machine: say what it is, such as --hardware '1 x H100 80GB'."
        )
    return _gpus() or _cpu()


def _is_here(host: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return True
    return False


def _redis_url(settings: "CliSettings") -> str | None:
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    from deploy.local.credentials import read_env

    # As with the admin key: what a home has written opens what that home runs, and nothing else.
    written = read_env(settings.home / "services.env")
    return written.get("TAAS_REDIS_URL") if written.get("TAAS_ADMIN_URL") == find_address().url else None


def _gpus() -> str | None:
    try:
        run = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_LOOK_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    return f"{len(names)} x {names[0]}"[:128] if run.returncode == 0 and names else None


def _cpu() -> str:
    import os
    import platform

    try:
        lines = _CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names and names[0] else platform.machine() or "CPU"
    return f"{os.cpu_count() or 1} cores of {name}"[:128]
