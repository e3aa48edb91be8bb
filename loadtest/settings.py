"""What load tests and the benchmark read from their environment, and what they hand on to the processes
they start.
"""

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class HomeSettings(BaseSettings):
    """Where state lies."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True)

    home: Path = Path(".taas")


class TargetSettings(BaseSettings):
    """What is loaded, as an SDK finds it. Unset names are looked up in `demo.env` of the home, which `make
    up` writes.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    base_url: str = Field(default="", alias="OPENAI_BASE_URL")
    api_key: SecretStr = Field(default=SecretStr(""), alias="OPENAI_API_KEY")
    model: str = Field(default="", alias="TAAS_MODEL")


def read_target() -> TargetSettings:
    """The environment, and `demo.env` behind it."""
    demo = HomeSettings().home / "demo.env"
    return TargetSettings(_env_file=demo if demo.is_file() else None)


class AdminSettings(BaseSettings):
    """The operator's side of what is loaded; unset names are looked up as above."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    url: str = Field(default="", alias="TAAS_ADMIN_URL")
    key: SecretStr = Field(default=SecretStr(""), alias="TAAS_ADMIN_KEY")


def read_admin() -> AdminSettings:
    """The environment, and `demo.env` behind it."""
    demo = HomeSettings().home / "demo.env"
    return AdminSettings(_env_file=demo if demo.is_file() else None)


def child_environment(settings: dict[str, str]) -> dict[str, str]:
    """Ours without what configures a TAAS that may run beside, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAAS_")}
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[1])} | settings


def replace_environment(settings: dict[str, str]) -> None:
    """For a fork: what it would have been started with."""
    os.environ.clear()
    os.environ.update(settings)
