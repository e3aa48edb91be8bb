"""The settings of a batch process, read once at start from environment variables that begin with `TAAS_`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class BatchSettings(BaseSettings):
    """Settings of one batch process; any number of processes may share one PostgreSQL and one store of
    objects.
    """

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True, populate_by_name=True)

    home: Path = Path(".taas")
    database_url: str = Field(default="postgresql+psycopg://127.0.0.1:5432/taas", repr=False)
    # For the list of scrape targets only.
    redis_url: str = Field(default="redis://127.0.0.1:6390/0", repr=False)
    service_key: SecretStr = SecretStr("")

    host: str = Field(default="127.0.0.1", alias="TAAS_BATCH_HOST")
    port: int = Field(default=8002, ge=0, le=65535, alias="TAAS_BATCH_PORT")
    metrics_host: str = Field(default="127.0.0.1", alias="TAAS_BATCH_METRICS_HOST")
    metrics_port: int = Field(default=9108, ge=0, le=65535, alias="TAAS_BATCH_METRICS_PORT")
    # Where lines are sent: one gateway, or several with commas between them.
    gateway_url: str = Field(default="http://127.0.0.1:8000", alias="TAAS_BATCH_GATEWAY_URL")
    # Where files are stored: a URL such as s3://bucket/prefix; empty: a folder in the home.
    store_url: str = Field(default="", alias="TAAS_BATCH_STORE_URL")

    # Whether a bucket may be reached without TLS.
    store_allow_http: bool = Field(default=False, alias="TAAS_BATCH_STORE_ALLOW_HTTP")

    # Lines of all batches that one process has under way.
    concurrency: int = Field(default=32, ge=1, le=4096, alias="TAAS_BATCH_CONCURRENCY")
    file_bytes_max: int = Field(default=200_000_000, ge=1024, alias="TAAS_BATCH_MAX_FILE_BYTES")
    line_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, alias="TAAS_BATCH_MAX_LINE_BYTES")
    # Bytes that one tenant may have stored at a time, its inputs and outputs together.
    tenant_bytes_max: int = Field(default=10_000_000_000, ge=1024, alias="TAAS_BATCH_MAX_TENANT_BYTES")
    # How long files are kept unless their owner says otherwise.
    retention_s: int = Field(default=30 * 86_400, ge=3_600, alias="TAAS_BATCH_RETENTION_S")
    # The time that a batch has.
    window_s: int = Field(default=86_400, ge=1, alias="TAAS_BATCH_WINDOW_S")
    # After so long without a sign of life the lines of a process are served by another.
    lease_s: float = Field(default=10.0, ge=1.0, alias="TAAS_BATCH_LEASE_S")

    @property
    def folder(self) -> Path:
        """Where files are stored, unless a URL is given."""
        return self.home / "batch"
