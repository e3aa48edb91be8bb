"""The settings of a gateway process, read once at start from environment variables that begin with `TAAS_`.
It knows no other part.
"""

from pathlib import Path
from typing import Final

from pydantic import Field, FilePath, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.edge.cors import parse_origins

_PORT_MAX: Final = 65_535
_PROCESSES_MAX: Final = 256


class GatewaySettings(BaseSettings):
    """Settings of one gateway; all its processes share them. Descriptions are what `taas gateway --help`
    prints.
    """

    model_config = SettingsConfigDict(env_prefix="TAAS_", extra="ignore", frozen=True, populate_by_name=True)

    home: Path = Field(
        default=Path(".taas"), description="Folder for what must outlive a process: the journal."
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6390/0",
        repr=False,
        description="Redis or Valkey, with limits and catalogue.",
    )
    redis_timeout_ms: int = Field(default=1_000, ge=10, description="How long one Redis call may take.")
    log_level: str = Field(
        default="info",
        pattern="^(?i:debug|info|warning|error)$",
        description="The lowest severity that is logged.",
    )

    host: str = Field(
        default="127.0.0.1",
        alias="TAAS_GATEWAY_HOST",
        description="Address to listen on; 0.0.0.0 to be reached from elsewhere.",
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=_PORT_MAX,
        alias="TAAS_GATEWAY_PORT",
        description="Port of the API; 0 picks a free one.",
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=_PROCESSES_MAX,
        alias="TAAS_GATEWAY_PROCESSES",
        description="Processes that share the port.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        alias="TAAS_GATEWAY_METRICS_HOST",
        description="Address of /metrics; keep it private.",
    )
    metrics_port: int = Field(
        default=9101,
        ge=0,
        le=_PORT_MAX - _PROCESSES_MAX + 1,
        alias="TAAS_GATEWAY_METRICS_PORT",
        description="Port of /metrics of the first process; the next ones have the ports after it. 0 picks "
        "any.",
    )

    admin_url: str = Field(
        default="http://127.0.0.1:8001",
        description="Billing's API, for receipts and capacity; several processes with commas between them.",
    )
    service_key: SecretStr = Field(default=SecretStr(""), description="Key for receipt look-ups at billing.")

    batch: bool = Field(
        default=True, description="Whether files and batches are offered; 0: prompts are stored nowhere."
    )
    batch_url: str = Field(
        default="http://127.0.0.1:8002", description="The batch service, for files and batches."
    )
    upload_deadline_s: float = Field(
        default=600.0, gt=0, description="How long the upload of a file may take to arrive."
    )

    max_body_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        description="Largest request body, unless the model's entry has its own.",
    )
    receive_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Bytes of request bodies that one process may hold while they arrive.",
    )
    receive_bytes_per_tenant: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="The same for one tenant. No body may be larger, whatever its model allows.",
    )
    receive_wait_s: float = Field(
        default=2.0,
        ge=0,
        description="How long a body waits to be received before it is refused (429 or 503).",
    )
    wake_requests: int = Field(
        default=100,
        ge=0,
        description="Requests of one process that may wait for a pool that is scaled and has no instance, at "
        "most half of them of one tenant.",
    )
    wake_wait_s: float = Field(default=180.0, ge=0, description="How long each of them waits at most.")
    head_deadline_s: float = Field(
        default=10.0, gt=0, description="How long a request's head may take to arrive."
    )
    body_deadline_s: float = Field(
        default=30.0, gt=0, description="How long a request's body may take to arrive."
    )
    # Longer than the idle time of common load balancers and clients (nginx and AWS 60 s, Go 90 s), so that
    # they close first and no request meets a closing connection. Google's keep connections for 600 s: behind
    # them, 620.
    keep_alive_s: float = Field(default=120.0, gt=0, description="How long a connection may be idle.")
    heartbeat_s: float = Field(
        default=15.0,
        ge=0,
        description="A stream that is silent for this long gets a comment or ping; 0: never.",
    )
    write_stall_s: float = Field(
        default=30.0, gt=0, description="How long a client may read nothing of its answer."
    )

    cors_origins: str = Field(
        default="",
        description="Origins whose web pages may call the API, with commas: https://app.example.com, or * "
        "for all.",
    )

    request_deadline_s: float = Field(
        default=600.0, gt=0, description="How long a request may take as a whole."
    )
    first_token_deadline_s: float = Field(
        default=120.0, gt=0, description="How long an engine may take until its first token."
    )
    connect_timeout_s: float = Field(
        default=2.0, gt=0, description="How long connecting to an engine may take."
    )

    upstream_ca_file: FilePath | None = Field(
        default=None,
        description="Authorities, beyond the usual ones, that sign the certificates of engines and providers "
        "(PEM).",
    )

    read_on_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a provider's answer is read on after its caller has left, because its end says "
        "what it cost.",
    )

    wait_on_demand_s: float = Field(
        default=10.0, ge=0, description="How long an on-demand request may wait for a slot."
    )
    wait_flex_s: float = Field(default=60.0, ge=0, description="How long a flex request may wait for a slot.")
    wait_requests_per_tenant: int = Field(
        default=1_000, ge=0, description="Requests of one tenant that may wait in a class; 0: none."
    )
    wait_requests: int = Field(default=10_000, ge=0, description="Requests that may wait in one process.")
    wait_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="Bytes of request bodies that may wait in one process."
    )
    cancels_per_minute: int = Field(
        default=6_000,
        ge=-1,
        description="Requests a minute that a tenant may cancel before their first token; -1: any number.",
    )

    prefix_index_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=0,
        description="Memory for which instance has which prompts in its cache; 0: requests go by load alone.",
    )

    lease_ms: int = Field(
        default=10_000, ge=1_000, description="How long a reservation lives without a checkpoint."
    )
    checkpoint_ms: int = Field(
        default=500, ge=50, le=1_000, description="How often open streams are checkpointed."
    )

    start_wait_s: float = Field(
        default=3.0,
        ge=0,
        description="How long a starting process waits for the catalogue before it takes connections all "
        "the same.",
    )
    unready_s: float = Field(
        default=5.0,
        ge=0,
        description="How long connections are still taken after SIGTERM, while /readyz already says 503, so "
        "that load balancers notice.",
    )
    drain_s: float = Field(default=30.0, ge=0, description="How long streams may run on after that.")
    settle_s: float = Field(
        default=5.0, gt=0, description="Time after that to end the rest with an error and settle."
    )
    unsaved_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a stopping process waits for Redis or its disk to take the settles that "
        "neither takes.",
    )

    @property
    def stop_s(self) -> float:
        """The longest that a process takes to end by itself."""
        return self.unready_s + self.drain_s + self.settle_s + self.unsaved_wait_s

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, text: str) -> str:
        parse_origins(text)
        return text

    @property
    def metrics_ports(self) -> list[int]:
        """Port of the metrics of each process."""
        return [self.metrics_port and self.metrics_port + index for index in range(self.processes)]

    @property
    def journal_path(self) -> Path:
        """Folder of the journal of settles that Redis has not taken yet."""
        return self.home / "journal"
