"""What `taas` reads from its environment: where the admin API is, and with which key (names begin with
`TAAS_`).
"""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CliSettings(BaseSettings):
    """What is unset is looked up in `demo.env` of the home, which `taas up` writes."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True)

    home: Path = Path(".taas")
    admin_url: str | None = None
    admin_key: str | None = Field(default=None, repr=False)
    # What an engine asks of us; kept out of the command line, which other users of a machine can read.
    engine_key: str | None = Field(default=None, repr=False)
    # Where instances are registered with their keys; only `taas calibrate` looks there.
    redis_url: SecretStr | None = None
