"""The keys of one home: made once, kept in `secrets.json`, readable by its owner only. And the file that
an SDK's user sources.
"""

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from billing.wire import evidence
from deploy.local.settings import LocalSettings


@dataclass(frozen=True, slots=True)
class Credentials:
    """Admin key (everything), service key (a gateway's receipts), the password of our own Valkey."""

    admin_key: str = field(repr=False)
    service_key: str = field(repr=False)
    valkey_password: str = field(repr=False)


def of(settings: LocalSettings) -> Credentials:
    """The keys of this home, made if there are none; those that the environment gives win. Raises
    ValueError when the file is damaged.
    """
    made = load_or_make(settings.folder)
    return replace(
        made,
        admin_key=settings.admin_key or made.admin_key,
        service_key=settings.service_key or made.service_key,
    )


def load_or_make(home: Path) -> Credentials:
    """The keys of this home, made if there are none. Raises ValueError when the file is damaged."""
    path = home / "secrets.json"
    if path.exists():
        try:
            return Credentials(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as exc:
            raise ValueError(f"{path} is damaged: {exc}") from exc
    made = Credentials(
        *(prefix + secrets.token_urlsafe(32) for prefix in ("taas-admin-", "taas-service-", ""))
    )
    write_private(path, json.dumps(asdict(made)))
    return made


def write_services_env(settings: LocalSettings, keys: Credentials, redis_url: str, database_url: str) -> None:
    """`services.env`: what further processes of this home need, for whoever starts them by hand."""
    values = {
        "TAAS_HOME": str(settings.folder),
        "TAAS_REDIS_URL": redis_url,
        "TAAS_DATABASE_URL": database_url,
        "TAAS_ADMIN_URL": settings.admin_url,
        "TAAS_ADMIN_KEY": keys.admin_key,
        "TAAS_SERVICE_KEY": keys.service_key,
    }
    write_env(settings.folder / "services.env", values)


def write_service_key(settings: LocalSettings, keys: Credentials) -> None:
    """`service.key`: the key alone, as Prometheus reads it from a file."""
    write_private(settings.folder / "service.key", keys.service_key)


def evidence_key(settings: LocalSettings) -> Path:
    """The file of the key that signs evidence, made once; beside it `evidence.pub`, for everybody."""
    path = settings.folder / "evidence.key"
    if not path.exists():
        pem = evidence.make_key()
        (settings.folder / "evidence.pub").write_text(
            evidence.public_pem(evidence.read_private_key(pem)), encoding="utf-8"
        )
        write_private(path, pem)
    return path


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Lines for `set -a; . FILE`."""
    write_private(path, "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))


def read_env(path: Path) -> dict[str, str]:
    """What `write_env` wrote; nothing when it is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}
