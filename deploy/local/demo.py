"""The demo tenant: a project, a key, the right to be served on demand; and `demo.env`, which an SDK's user
sources.
"""

from pathlib import Path
from typing import Final

import httpx

from billing.wire.certificates import checked_by
from deploy.local.admin_api import AdminApi
from deploy.local.credentials import Credentials, read_env, write_env
from deploy.local.progress import Step, StepFailed
from deploy.local.settings import LocalSettings

TENANT: Final = "demo"
PROJECT: Final = "first-steps"
# Far above what one machine serves: they are there to be seen in the `x-ratelimit-*` headers, and changed.
LIMITS: Final = {"requests_per_minute": 1_000_000, "units_per_minute": 1_000_000_000, "concurrency": 10_000}
_KEY_NAME: Final = "make up"


def env_path(settings: LocalSettings) -> Path:
    """The file to source."""
    return settings.folder / "demo.env"


def ensure(admin: AdminApi, settings: LocalSettings, credentials: Credentials, model: str, step: Step) -> str:
    """The demo's key, the same as long as it works."""
    tenant = admin.find("tenants", name=TENANT)
    if tenant is None:
        tenant = admin.post("tenants", name=TENANT, on_demand=True)
        admin.put("limits", tenant=tenant["tenant"], model="*", **LIMITS)
    if tenant["status"] != "active":
        raise StepFailed(f"tenant {TENANT} is suspended", f"taas tenant resume {TENANT}")
    if admin.find("projects", {"tenant": TENANT}, name=PROJECT) is None:
        admin.post("projects", tenant=TENANT, name=PROJECT)
    key = read_env(env_path(settings)).get("OPENAI_API_KEY")
    if key is None or not _works(settings, key):
        key = str(admin.post("keys", tenant=TENANT, project=PROJECT, name=_KEY_NAME)["key"])
    values = {
        "OPENAI_BASE_URL": f"{settings.gateway_url}/v1",
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": settings.gateway_url,
        "ANTHROPIC_API_KEY": key,
        "TAAS_ADMIN_URL": settings.admin_url,
        "TAAS_ADMIN_KEY": credentials.admin_key,
        "TAAS_MODEL": model,
    }
    write_env(env_path(settings), values)
    step.result = f"tenant {TENANT}, project {PROJECT}, key in {env_path(settings)}"
    return key


def _works(settings: LocalSettings, key: str) -> bool:
    try:
        answer = httpx.get(
            f"{settings.gateway_url}/v1/models",
            headers={"authorization": f"Bearer {key}"},
            timeout=5,
            trust_env=False,
            verify=checked_by(settings.gateway_url),
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
