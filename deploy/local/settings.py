"""What `up`, `down` and `status` read from the environment, once (names begin with `TAAS_`), and what they
hand on to the processes they start.
"""

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.local.progress import StepFailed

ROOT: Final = Path(__file__).parents[2]
HOST: Final = "127.0.0.1"
# On every process that is started here and on all its descendants. It does not begin with TAAS_, which a
# worker keeps from its engine.
HOME_MARK: Final = "LOCAL_TAAS_HOME"
DEFAULT_MODEL: Final = "smollm2-135m-instruct"
# Each process gets those that it needs: a gateway never holds the ledger's address or the admin key. The
# model is an argument of those that need it, so that nothing starts again in a shell that has `demo.env`.
_GIVEN_ONE_BY_ONE: Final = frozenset(
    {
        "TAAS_MODEL",
        "TAAS_REDIS_URL",
        "TAAS_DATABASE_URL",
        "TAAS_ADMIN_KEY",
        "TAAS_SERVICE_KEY",
        "TAAS_ENGINE_KEY",
        "TAAS_ENGINE_URL",
    }
)


class LocalSettings(BaseSettings):
    """Where everything of one home lies and listens. Two homes with different ports run side by side."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True)

    home: Path = Path(".taas")
    # None: the small model that the catalogue knows; with an engine that is there already, the one it serves.
    model: str | None = None

    # Given: that server is used, and none is started.
    redis_url: str | None = None
    database_url: str | None = None
    engine_url: str | None = None
    engine_key: str | None = Field(default=None, repr=False)
    # Given: these instead of keys of our own making.
    admin_key: str | None = Field(default=None, repr=False)
    service_key: str | None = Field(default=None, repr=False)

    gateway_host: str = HOST
    gateway_port: int = Field(default=8000, ge=1, le=65_535)
    gateway_processes: int = Field(default=1, ge=1, le=256)
    # The first process's; there are 255 ports after it for the others.
    gateway_metrics_port: int = Field(default=9101, ge=1, le=65_280)
    admin_port: int = Field(default=8001, ge=1, le=65_535)
    billing_metrics_port: int = Field(default=9109, ge=1, le=65_535)
    batch_port: int = Field(default=8002, ge=1, le=65_535)
    batch_metrics_port: int = Field(default=9108, ge=1, le=65_535)
    valkey_port: int = Field(default=6390, ge=1, le=65_535)

    # Files and batches; without them prompts are stored nowhere.
    batch: bool = True
    # A second engine, for the routes of the model that generate no text.
    pooling: bool = True
    vllm: Literal["cpu", "gpu"] = "cpu"
    # Of the GPU's memory; the CPU build does not read it.
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    vllm_python: Path = ROOT / ".venv-vllm" / "bin" / "python"
    torch_index: str | None = None
    # How long gateways and workers may let requests end; they have their own defaults.
    drain_s: float | None = Field(default=None, ge=0)
    # Large models load for many minutes.
    engine_start_timeout_s: float = Field(default=1800, gt=0)

    @property
    def folder(self) -> Path:
        """The home, absolute."""
        return self.home.absolute()

    @property
    def logs(self) -> Path:
        """One log a process and a build."""
        return self.folder / "logs"

    @property
    def gateway_metrics_ports(self) -> range:
        """One for each process of the gateway."""
        return range(self.gateway_metrics_port, self.gateway_metrics_port + self.gateway_processes)

    @property
    def gateway_url(self) -> str:
        """Where this machine reaches the API."""
        return f"http://{HOST if self.gateway_host == '0.0.0.0' else self.gateway_host}:{self.gateway_port}"  # noqa: S104

    @property
    def admin_url(self) -> str:
        """Where this machine reaches the admin API."""
        return f"http://{HOST}:{self.admin_port}"

    @property
    def batch_url(self) -> str:
        """Where gateways of this machine reach the batch service."""
        return f"http://{HOST}:{self.batch_port}"


def _batch_environment(settings: LocalSettings) -> dict[str, str]:
    return {
        "TAAS_BATCH": "1" if settings.batch else "0",
        "TAAS_BATCH_PORT": str(settings.batch_port),
        "TAAS_BATCH_METRICS_PORT": str(settings.batch_metrics_port),
        "TAAS_BATCH_URL": settings.batch_url,
        "TAAS_BATCH_GATEWAY_URL": settings.gateway_url,
    }


def read_settings() -> LocalSettings:
    """From the environment. Raises StepFailed that names each wrong variable."""
    try:
        return LocalSettings()
    except ValidationError as exc:
        wrong = "; ".join(f"TAAS_{str(error['loc'][0]).upper()}: {error['msg']}" for error in exc.errors())
        raise StepFailed(f"a setting is wrong: {wrong}", "Correct or unset it.") from exc


def child_environment(settings: LocalSettings, **more: str) -> dict[str, str]:
    """What a process of ours is started with: our own environment less addresses and keys, the home and
    its mark, the ports, and `more`.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _GIVEN_ONE_BY_ONE}
    return inherited | {
        "TAAS_HOME": str(settings.folder),
        HOME_MARK: str(settings.folder),
        "TAAS_GATEWAY_HOST": settings.gateway_host,
        "TAAS_GATEWAY_PORT": str(settings.gateway_port),
        "TAAS_GATEWAY_METRICS_PORT": str(settings.gateway_metrics_port),
        "TAAS_ADMIN_PORT": str(settings.admin_port),
        "TAAS_ADMIN_URL": settings.admin_url,
        "TAAS_BILLING_METRICS_PORT": str(settings.billing_metrics_port),
        **_batch_environment(settings),
        "TAAS_VLLM": settings.vllm,
        "TAAS_VLLM_PYTHON": str(settings.vllm_python),
        "PYTHONUNBUFFERED": "1",
        **more,
    }
