"""What a worker decides before it starts: the model's entry, where its files are, and the plan of its
instance. It starts nothing that stays.
"""

import importlib.util
import ipaddress
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry
from billing.wire.redis_address import RedisAddress, RedisAddressError
from billing.wire.redis_server import WrongRedis, require_usable, trouble
from serving import registry
from serving.catalogue import known_models
from serving.cpu_dtype import cpu_dtype
from serving.engine_process import GUARD
from serving.model_files import ensure_model
from serving.ports import family_of
from serving.private_user import NoPrivateUser, PrivateUser, find_user, make_folders
from serving.served_model import ServedModel
from serving.settings import WorkerSettings, inherited_environment
from serving.vllm_command import (
    LOGGING_CONFIG,
    REQUEST_COUNTS_FOLDER,
    AdapterSlots,
    EngineOptions,
    build_command,
)
from serving.worker import WorkerPlan, WorkerTimes

_REDIS_TIMEOUT_S: Final = 1.5
# Linux's limit for the name of a socket, less its end.
_SOCKET_BYTES_MAX: Final = 107


class CannotStart(Exception):
    """Something that the worker needs is missing. The text says what, and what to do."""


def find_redis(redis_url: str) -> RedisAddress:
    """The address of a Redis that can be used. Raises CannotStart."""
    try:
        return require_usable(redis_url)
    except (RedisAddressError, WrongRedis) as exc:
        raise CannotStart(f"TAAS_REDIS_URL: {exc}") from exc


def connect(address: RedisAddress) -> Redis:
    """A client whose calls end before the lease does, so that a Redis that hangs does not prevent the next
    renewal. One retry, because a connection that was open when Redis restarted only fails when it is used.
    """
    return Redis(
        **address.client_arguments(),
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),
    )


async def read_entry(redis: Redis, address: RedisAddress, name: str, *, pooling: bool) -> ServedModel:
    """The model's entry in the catalogue, or its pooling part. Raises CannotStart."""
    try:
        raw = await redis.hget(redis_keys.MODELS, name)
        names = [_decoded(known) for known in await redis.hkeys(redis_keys.MODELS)]
    except (RedisError, OSError) as exc:
        raise _no_redis(address, exc) from exc
    if raw is None:
        there = (
            f"It has: {', '.join(sorted(names))}." if names else "It has none yet: is `taas billing` running?"
        )
        raise CannotStart(
            f"No model {name!r} in the catalogue at {address}. Add it with `taas model add {name}`. {there}"
        )
    try:
        model = ServedModel.from_json(raw)
        return model.pooling_part() if pooling else model
    except ValueError as exc:
        raise CannotStart(f"The catalogue's entry of {name} cannot be served: {exc}") from exc


async def read_previous(redis: Redis, address: RedisAddress, instance: str) -> InstanceEntry | None:
    """What an earlier worker left under this instance's name. Raises CannotStart."""
    try:
        return await registry.find(redis, instance)
    except (RedisError, OSError) as exc:
        raise _no_redis(address, exc) from exc


def check_host(host: str) -> str | None:
    """A warning for the operator if engine and metrics would listen on an address that others should not or
    cannot reach. Raises CannotStart.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and address.is_unspecified:
        raise CannotStart(
            f"--host {host} is every address of this machine, and gateways need one that leads to it: give "
            "its private address."
        )
    try:
        family_of(host)
    except (OSError, UnicodeError) as exc:
        raise CannotStart(
            f"--host {host} is no address of this machine ({getattr(exc, 'strerror', None) or exc}): give "
            "its private address."
        ) from exc
    if address is not None and address.is_global:
        return (
            f"{host} is a public address: the engine's key guards /v1 and stopping by id, but not /"
            "metrics, /health and the rest"
        )
    return None


def in_url(host: str) -> str:
    """As a URL spells it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def find_python(settings: WorkerSettings) -> Path:
    """The Python that runs vLLM. The path is not resolved, because a virtual environment's Python is a link
    that must stay one. Raises CannotStart.
    """
    python = settings.vllm_python.absolute()
    if not python.exists():
        raise CannotStart(
            f"There is no {python}. `make up` makes the environment of vLLM; --vllm-python names the Python "
            "of another one."
        )
    return python


def find_model(
    settings: WorkerSettings, name: str, path: Path | None, python: Path, note: Callable[[str], None]
) -> Path:
    """The folder of the model's files; those of a model we know are fetched. Raises CannotStart or
    ModelFilesError.
    """
    folder = path or settings.home / "models" / name
    if path is None and name in known_models():
        folder = ensure_model(settings.home, name, python, note)
    if not (folder / "config.json").exists():
        raise CannotStart(
            f"{folder} holds no model (no config.json). Put the files of {name} there, or name their folder "
            "with --path."
        )
    return folder.absolute()


def plan_worker(
    settings: WorkerSettings,
    model: ServedModel,
    instance: str,
    port: int,
    python: Path,
    model_path: Path,
    engine_args: tuple[str, ...],
) -> WorkerPlan:
    """The whole plan, with a new key. Raises CannotStart for an engine argument that is not allowed, and if a
    private model cannot have its own user or folder.
    """
    known = known_models().get(model.name)
    key = secrets.token_urlsafe(32)
    private = None if model.owner is None else _private_user(settings, model.name, python, model_path)
    options = EngineOptions(
        python=python,
        model_path=model_path,
        host=settings.worker_host,
        port=port,
        gpu=settings.vllm == "gpu",
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_gib=settings.kv_cache_gib,
        shutdown_timeout_s=settings.engine_shutdown_timeout_s,
        dtype=None if settings.vllm == "gpu" else cpu_dtype(),
        adapters=_adapter_slots(settings, model),
        engine_args=engine_args or (known.engine_args if known is not None and model.generates else ()),
        private_environment={} if private is None else private.environment,
        cache_socket=_cache_socket(None if private is None else private.folder, port)
        if settings.cache_events and model.generates
        else None,
    )
    try:
        command = build_command(model, options, key, inherited_environment())
    except ValueError as exc:
        raise CannotStart(str(exc)) from exc
    if private is not None:
        command = replace(command, user=private.number if private.own else None, folder=private.folder)
    times = WorkerTimes(
        start_timeout_s=settings.engine_start_timeout_s,
        drain_s=settings.drain_s,
        lease_ms=round(settings.presence_s * 1000),
        engine_shutdown_timeout_s=settings.engine_shutdown_timeout_s,
    )
    log_path = (settings.home / "logs" / f"engine-{instance}.log").absolute()
    return WorkerPlan(
        instance=instance,
        model=model,
        url=f"http://{in_url(settings.worker_host)}:{port}",
        key=key,
        command=command,
        model_path=model_path,
        adapters=options.adapters,
        cache_socket=options.cache_socket,
        log_path=log_path,
        times=times,
        private=private,
    )


def _cache_socket(private_folder: Path | None, port: int) -> Path:
    """Where the engine with this port tells of its cache, tokens included: in a folder that only its own user
    can enter. Engines of one private model share that folder. Raises CannotStart.
    """
    if importlib.util.find_spec("zmq") is None:
        raise CannotStart("--cache-events needs pyzmq: pip install 'taas[cache-events]'.")
    socket = Path(private_folder or tempfile.mkdtemp(prefix="taas-cache-")) / f"cache-{port}.sock"
    if len(bytes(socket)) > _SOCKET_BYTES_MAX:
        raise CannotStart(f"--cache-events: {socket} is too long for a socket; use a shorter TAAS_HOME.")
    return socket


def _private_user(settings: WorkerSettings, model: str, python: Path, model_path: Path) -> PrivateUser:
    """With its folders, and able to run the engine. Raises CannotStart."""
    try:
        user = find_user(model, settings.home, settings.private_users)
        make_folders(user, python, (GUARD, LOGGING_CONFIG, REQUEST_COUNTS_FOLDER, model_path))
    except NoPrivateUser as exc:
        raise CannotStart(str(exc)) from exc
    return user


def _adapter_slots(settings: WorkerSettings, model: ServedModel) -> AdapterSlots:
    """None for an engine that pools: adapters generate text."""
    return AdapterSlots(count=settings.adapters if model.generates else 0, rank_max=settings.adapter_rank)


def _no_redis(address: RedisAddress, exc: Exception) -> CannotStart:
    return CannotStart(f"{trouble(address, exc)}. Start it (`make up` does), or correct TAAS_REDIS_URL.")


def _decoded(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
