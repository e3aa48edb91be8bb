"""The settings of the billing process, read once at start from environment variables that begin with
`TAAS_`.
"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class BillingSettings(BaseSettings):
    """Settings of one billing process; any number of processes may share one Redis and one PostgreSQL."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True)

    database_url: str = Field(default="postgresql+psycopg://127.0.0.1:5432/taas", repr=False)
    redis_url: str = Field(default="redis://127.0.0.1:6390/0", repr=False)

    # The admin API. With an empty key it refuses every caller.
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8001, ge=0, le=65535)
    admin_key: str = Field(default="", repr=False)
    service_key: str = Field(default="", repr=False)

    metrics_host: str = Field(default="127.0.0.1", alias="TAAS_BILLING_METRICS_HOST")
    metrics_port: int = Field(default=9109, ge=0, le=65535, alias="TAAS_BILLING_METRICS_PORT")

    # One SQL transaction: large enough to amortise a commit, small enough to be redone after a crash in well
    # under a second.
    usage_batch_entries: int = Field(default=500, ge=1, le=5000)
    # How long an entry may stay with a consumer before another takes it. Taking one early is harmless: SQL is
    # unique by id.
    usage_claim_idle_ms: int = Field(default=5_000, ge=0)
    usage_poll_ms: int = Field(default=50, ge=1)
    reap_interval_ms: int = Field(default=1_000, ge=10)
    counters_interval_ms: int = Field(default=5_000, ge=10)
    audit_interval_ms: int = Field(default=30_000, ge=10)
    engine_timeout_ms: int = Field(default=2_000, ge=10)
    # The private key that signs evidence of instances, usage checkpoints and invoices (Ed25519, PEM, of mode
    # 0600). Without it nothing is signed, and no invoice is issued.
    evidence_key_file: Path | None = None
    # Who issues invoices, as they name it; without it none is issued.
    issuer: str = Field(default="", max_length=200)
    # A TrueType font (.ttf) for invoices as PDF, in place of our own, whose letters are those of Western
    # Europe and Turkey.
    invoice_font_file: Path | None = None
    # So many days of usage events are kept, whole ones; None: all.
    usage_retention_days: int | None = Field(default=None, ge=35, le=36_500)
    # Authorities, beyond the usual ones, that sign the certificates of engines and providers (PEM).
    upstream_ca_file: Path | None = None
